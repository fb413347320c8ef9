"""A wiretap: relays a connection to the bus and keeps what the client publishes.

The demo's adversary controls the bus and the network; recording takes no more than this.
"""

from __future__ import annotations

import asyncio
import re
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_PUB = re.compile(rb"(H?)PUB (\S+)((?: \S+)*)\r\n")


class Wiretap:
    """A relay on loopback in front of a bus at `url`. Use as an async context manager."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 4222
        self._heard = bytearray()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """The URL to connect to instead of the bus's."""
        if self._server is None:
            raise RuntimeError("the relay is not running")
        return f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def published(self, subject: str) -> list[bytes]:
        """The payloads that were published on a subject, in order (NATS client protocol, PUB and HPUB)."""
        found = []
        for match in _PUB.finditer(bytes(self._heard)):
            if match[2].decode() != subject:
                continue
            sizes = [int(word) for word in match[3].split() if word.isdigit()]
            headers = sizes[0] if match[1] else 0
            start = match.end() + headers
            found.append(bytes(self._heard[start : match.end() + sizes[-1]]))
        return found

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(self._host, self._port)
        for source, sink, keep in ((reader, there_writer, True), (there_reader, writer, False)):
            task = asyncio.create_task(self._pump(source, sink, keep))
            self._tasks.add(task)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, keep: bool) -> None:
        try:
            while data := await source.read(65536):
                if keep:
                    self._heard += data
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            return
        finally:
            sink.close()
