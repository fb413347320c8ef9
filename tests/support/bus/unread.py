"""A connection to the real server that reads when it is told to: what has been sent to it waits in the server."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Self

import nkeys

from attestgate.bus.auth.credentials import holder

LINE = 64 * 1024


def connect_lines(credentials: Path, nonce: str) -> bytes:
    """What a client says first: the CONNECT of a credential, which signs the server's nonce, and a PING."""
    lines = credentials.read_text().splitlines()
    token, seed = lines[1], lines[lines.index("-----BEGIN USER NKEY SEED-----") + 1]
    signature = nkeys.from_seed(bytearray(seed.encode())).sign(nonce.encode())
    said = {
        "jwt": token,
        "sig": base64.urlsafe_b64encode(signature).rstrip(b"=").decode(),
        "verbose": False,
        "pedantic": False,
        "headers": True,
        "no_responders": True,
    }
    return f"CONNECT {json.dumps(said)}\r\nPING\r\n".encode()


class Unread:
    """NATS's protocol by hand, since the client library reads whatever comes. Made by `connect`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, inbox: str) -> None:
        self._reader = reader
        self._writer = writer
        self.inbox = f"{inbox}.unread"

    @classmethod
    async def connect(cls, url: str, credentials: Path) -> Self:
        """Connect and subscribe to an inbox. Raises ConnectionError with the server's reason."""
        host, _, port = url.removeprefix("nats://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=LINE)
        info = json.loads((await reader.readline()).removeprefix(b"INFO "))
        self = cls(reader, writer, holder(credentials).inbox)
        writer.write(connect_lines(credentials, info["nonce"]))
        answer = await reader.readline()
        if answer != b"PONG\r\n":
            writer.close()
            raise ConnectionError(answer.decode())
        writer.write(f"SUB {self.inbox} 1\r\n".encode())
        return self

    def ask(self, subject: str, body: dict[str, object], times: int = 1) -> None:
        """Send a request, or the same many times; answers come to the inbox."""
        data = json.dumps(body).encode()
        request = f"PUB {subject} {self.inbox} {len(data)}\r\n".encode() + data + b"\r\n"
        self._writer.write(request * times)

    async def disconnected(self) -> None:
        """Return once the server has closed the connection: nothing is read, so what is written must fail."""
        while True:
            try:
                self._writer.write(b"PING\r\n")
                await self._writer.drain()
            except ConnectionError:
                return
            await asyncio.sleep(0.05)

    async def read(self) -> list[bytes]:
        """Read all messages that wait for it, until the answer to a PING. Raises ConnectionError if it was cut off."""
        self._writer.write(b"PING\r\n")
        messages: list[bytes] = []
        while (line := await self._reader.readline()) != b"PONG\r\n":
            if not line:
                raise ConnectionError("disconnected")
            if line.split(b" ", 1)[0] in (b"MSG", b"HMSG"):
                messages.append((await self._reader.readexactly(int(line.split()[-1]) + 2))[:-2])
            elif line == b"PING\r\n":
                self._writer.write(b"PONG\r\n")
        return messages

    def close(self) -> None:
        """Drop it, read or not."""
        self._writer.transport.abort()
