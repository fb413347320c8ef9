"""Clients that hold a connection for as long as the gateway lets them, each in one way."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

Stream: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]
HEAD = b"POST /x HTTP/1.1\r\nHost: g\r\n"
LENGTH = HEAD + b"Content-Length: 1000000\r\n\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
UPGRADE = (
    b"GET /x HTTP/1.1\r\nHost: g\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: a2V5\r\n\r\n"
)
PLAIN = frozenset({"says nothing", "slow handshake"})
"""Kinds that do not come to TLS."""
SAYS: dict[str, tuple[bytes, bytes]] = {
    "says nothing": (b"", b""),
    "slow handshake": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"x"),
    "no request": (b"", b""),
    "slow header": (HEAD + b"X: ", b"x"),
    "slow body": (LENGTH, b"x"),
    "slow chunks": (CHUNKED, b"1\r\nx\r\n"),
    "websocket": (UPGRADE, b""),
}
"""By kind of client: what it says at first, and then again and again."""


@dataclass(frozen=True)
class Slow:
    """One such client, at a port, from a source address of its own."""

    kind: str
    port: int
    source: str
    context: ssl.SSLContext | None
    every_s: float = 0.5

    async def connect(self) -> Stream:
        """Connect and say the first words. Raises OSError when it is not let in."""
        tls = None if self.kind in PLAIN else self.context
        stream = await asyncio.open_connection(
            "127.0.0.1",
            self.port,
            local_addr=(self.source, 0),
            ssl=tls,
            server_hostname="localhost" if tls else None,
            ssl_handshake_timeout=30 if tls else None,
        )
        stream[1].write(SAYS[self.kind][0])
        return stream

    async def hold(self, connected: Callable[[], object] = lambda: None) -> bytes:
        """Hold a connection until its other end closes it; what was answered. `connected` is called once it is open."""
        try:
            reader, writer = await self.connect()
        except (OSError, EOFError):
            return b""
        connected()
        saying = asyncio.create_task(self._say(writer))
        try:
            return await _all(reader)
        finally:
            saying.cancel()
            await asyncio.wait([saying])
            writer.transport.abort()

    async def _say(self, writer: asyncio.StreamWriter) -> None:
        more = SAYS[self.kind][1]
        while more and not writer.is_closing():
            await asyncio.sleep(self.every_s)
            writer.write(more)


async def _all(reader: asyncio.StreamReader) -> bytes:
    answer = b""
    try:
        while piece := await reader.read(65536):
            answer += piece
    except OSError:
        pass  # closed with what it had still sent unread
    return answer


async def all_held(clients: list[Slow], meanwhile: Callable[[], Awaitable[object]]) -> list[bytes]:
    """Each client tries to hold a connection; `meanwhile` is awaited when all have been let in or not."""
    tried = [asyncio.Event() for _ in clients]

    async def hold(client: Slow, event: asyncio.Event) -> bytes:
        try:
            return await client.hold(event.set)
        finally:
            event.set()

    async with asyncio.TaskGroup() as tasks:
        holding = [tasks.create_task(hold(c, e)) for c, e in zip(clients, tried, strict=True)]
        for event in tried:
            await event.wait()
        await meanwhile()
    return [task.result() for task in holding]
