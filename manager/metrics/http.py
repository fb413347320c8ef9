"""`GET /metrics` of one process, in Prometheus's text format, on the address that its settings name.

One thread serves all connections, so that a busy worker still answers. Each connection is one request and has a
deadline. Whoever opens connections and says nothing locks nobody out: at the limit the oldest one is closed.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import parse_headers
from io import BytesIO
from threading import Thread

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from attestgate.schemas.base import Refusal

MOST = 32
"""Most connections at a time: a scrape takes milliseconds, so the oldest is hardly ever one."""
DEADLINE_S = 5.0
"""From the connection's start to the end of its answer."""
_MAX_HEAD = 16 * 1024
log = structlog.get_logger(__name__)


@contextmanager
def served(address: str | None, registry: CollectorRegistry) -> Iterator[str | None]:
    """Serve while the context is open; yields the URL, None if no address is set. Raises Refusal `metrics.address`."""
    if address is None:
        yield None
        return
    host, _, port = address.partition(":")
    try:
        listener = _listening(host, int(port))
    except (OSError, OverflowError) as error:
        raise Refusal.because(
            "metrics.address",
            address,
            expected="an address of this machine and a free port",
            found=getattr(error, "strerror", None) or error,
            action="correct the setting metrics, or use port 0 for a free one",
        ) from None
    scrapes, loop = _Scrapes(registry), asyncio.new_event_loop()
    thread = Thread(target=loop.run_until_complete, args=(scrapes.serve(listener),), name="metrics", daemon=True)
    thread.start()
    try:
        url = f"http://{host}:{listener.getsockname()[1]}/metrics"
        log.info("metrics served", url=url)
        yield url
    finally:
        loop.call_soon_threadsafe(scrapes.stop.set)
        thread.join()
        loop.close()


def _listening(host: str, port: int) -> socket.socket:
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


class _Scrapes:
    """The connections to one address."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.stop = asyncio.Event()
        self._registry = registry
        self._open: dict[asyncio.StreamWriter, None] = {}
        """In the order in which they were opened."""

    async def serve(self, listener: socket.socket) -> None:
        """Answer until `stop` is set."""
        async with asyncio.TaskGroup() as tasks:
            server = await asyncio.start_server(
                lambda reader, writer: tasks.create_task(self._take(reader, writer)), sock=listener, limit=_MAX_HEAD
            )
            await self.stop.wait()
            server.close()
            for writer in self._open:
                writer.transport.abort()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open[writer] = None
        if len(self._open) > MOST:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.transport.abort()
        try:
            async with asyncio.timeout(DEADLINE_S):
                writer.write(self._answer(await reader.readuntil(b"\r\n\r\n")))
                writer.close()
                await writer.wait_closed()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
            log.debug("scrape not answered", problem=str(error) or type(error).__name__)
        finally:
            self._open.pop(writer, None)
            writer.transport.abort()

    def _answer(self, head: bytes) -> bytes:
        line, _, rest = head.partition(b"\r\n")
        method, _, target = line.partition(b" ")
        if target.partition(b" ")[0].partition(b"?")[0] != b"/metrics":
            return _response("404 Not Found")
        if method != b"GET":
            return _response("405 Method Not Allowed")
        encode, content_type = choose_encoder(parse_headers(BytesIO(rest)).get("Accept", ""))
        return _response("200 OK", encode(self._registry), content_type)


def _response(status: str, body: bytes = b"", content_type: str = "text/plain") -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
