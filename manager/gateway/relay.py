"""Carries WebSockets between nginx and the controller, and cuts each when its admission or its maximum time ends.

nginx does not check an upgraded connection again. It therefore passes each one, once its request has been admitted, to
this unix socket, and names the keys of its leases in a header that only nginx can set. A connection is cut as soon as
the worker receives a withdrawal, whether or not nginx can be reached, and when the worker itself ends.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import structlog

from attestgate.schemas.base import Refusal
from attestgate.schemas.settings import RelaySettings

MOST = 1000
"""Most WebSockets at a time; further ones are refused with 503, as are those beyond an application's share."""
_MAX_HEAD = 64 * 1024
_HEAD_S = 10.0
_PIECE = 64 * 1024
_NAMED = re.compile(rb"\r\nX-Attestgate-Admission: ([^\r]*)(?=\r\n)")
_IDENTITY = re.compile(rb"\r\nX-Attestgate-Identity: ([^\r]+)(?=\r\n)")
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_KEYS = re.compile(r"(cert\.[0-9a-f]{2,40}) (host\.[0-9a-f]{32})")
_log = structlog.get_logger(__name__)
AdmissionEnd: TypeAlias = Callable[[str], float]
"""When the admission under a key ends, in Unix seconds; 0 if there is none."""
_Stream: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, eq=False)
class _Carried:
    """One WebSocket. `over` is the latest time that it may last to, by the loop's clock."""

    keys: tuple[str, str]
    over: float
    bound: asyncio.Timeout


class Relay:
    """The relay of one gateway. It asks `ends` when a connection begins, and again on each `changed`."""

    def __init__(self, settings: RelaySettings, ends: AdmissionEnd, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._ends = ends
        self._clock = clock
        self._carried: dict[str, set[_Carried]] = defaultdict(set)
        self._open = 0
        self._by_identity: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return self._open

    def check(self) -> None:
        """Check that the socket can be created: no other file is replaced. Raises Refusal `gateway.relay`."""
        path = self._settings.socket
        if not path.parent.is_dir() or (path.exists() and not path.is_socket()):
            raise Refusal.because(
                "gateway.relay",
                str(path),
                expected="an unused path in an existing folder, or a stale socket",
                found="another file" if path.exists() else "no such folder",
                action="correct `socket` of [relay] in the settings",
            )

    async def run(self) -> None:
        """Carry until cancelled; then every connection is cut. A stale socket is replaced."""
        path = self._settings.socket
        async with asyncio.TaskGroup() as tasks:
            server = await asyncio.start_unix_server(
                lambda reader, writer: tasks.create_task(self._take((reader, writer))),
                sock=_bound(path),
                limit=_MAX_HEAD,
            )
            try:
                await asyncio.Event().wait()
            finally:
                server.close()
                path.unlink(missing_ok=True)

    def changed(self, key: str) -> None:
        """An admission was extended, shortened or ended."""
        for carried in self._carried.get(key, ()):
            self._bind(carried)

    async def _take(self, nginx: _Stream) -> None:
        self._open += 1
        try:
            async with asyncio.timeout(_HEAD_S):
                head = await nginx[0].readuntil(b"\r\n\r\n")
            # Exactly one of each: nginx sets them, and passes none of the client's headers that it does not name.
            named, identities = _NAMED.findall(head), _IDENTITY.findall(head)
            keys = _KEYS.fullmatch(named[0].decode("latin-1")) if len(named) == 1 else None
            if keys is not None and len(identities) == 1:
                with self._share(identities[0]) as granted:
                    if granted:
                        await self._carry(nginx, head, (keys[1], keys[2]))
                    else:
                        nginx[1].write(_BUSY)
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
            _log.warning("WebSocket not carried", problem=str(error) or type(error).__name__)
        finally:
            self._open -= 1
            nginx[1].transport.abort()

    @contextmanager
    def _share(self, identity: bytes) -> Iterator[bool]:
        """Whether there is room for one more of this identity, whichever of its certificates it uses."""
        if self._open > MOST or self._by_identity[identity] >= self._settings.connections_per_application:
            _log.warning("WebSocket refused: too many", identity=identity.decode("latin-1"), open=self._open)
            yield False
            return
        self._by_identity[identity] += 1
        try:
            yield True
        finally:
            self._by_identity[identity] -= 1
            if not self._by_identity[identity]:
                del self._by_identity[identity]

    async def _carry(self, nginx: _Stream, head: bytes, keys: tuple[str, str]) -> None:
        begun = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(None) as bound, self._controller() as controller:
                with self._listed(_Carried(keys, begun + self._settings.longest_s, bound)):
                    # Asked again once it is listed: a withdrawal since nginx's verdict has not called `changed` for it.
                    if self._left(keys) > 0:
                        controller[1].write(head)
                        await _both_ways(nginx, controller)
        except TimeoutError:
            lived = round(asyncio.get_running_loop().time() - begun, 3)
            _log.info("WebSocket cut", keys=keys, lived_s=lived, admitted=self._left(keys) > 0)

    @contextmanager
    def _listed(self, carried: _Carried) -> Iterator[None]:
        """From here on its time is limited by its admission, as that is now and as it changes."""
        for key in carried.keys:
            self._carried[key].add(carried)
        try:
            self._bind(carried)
            yield
        finally:
            for key in carried.keys:
                self._carried[key].discard(carried)
                if not self._carried[key]:
                    del self._carried[key]

    def _bind(self, carried: _Carried) -> None:
        if not carried.bound.expired():
            now = asyncio.get_running_loop().time()
            carried.bound.reschedule(min(carried.over, now + self._left(carried.keys)))

    def _left(self, keys: tuple[str, str]) -> float:
        return min(map(self._ends, keys)) - self._clock()

    @asynccontextmanager
    async def _controller(self) -> AsyncIterator[_Stream]:
        where = self._settings.controller
        if isinstance(where, Path):
            reader, writer = await asyncio.open_unix_connection(where)
        else:
            host, _, port = where.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


def _bound(path: Path) -> socket.socket:
    """A socket to listen on, mode 0600. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Linux gives the file the mode that the socket has when it is bound: nobody can connect in between, and the
        # umask, which is the whole process's, stays.
        os.fchmod(listener.fileno(), 0o600)
        if path.is_socket():
            path.unlink()
        listener.bind(str(path))
    except OSError:
        listener.close()
        raise
    return listener


async def _both_ways(one: _Stream, other: _Stream) -> None:
    """Copy until both sides have ended, or one connection is lost."""
    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(_one_way(one[0], other[1]))
            both.create_task(_one_way(other[0], one[1]))
    except* OSError as errors:
        _log.debug("WebSocket lost", problem=str(errors.exceptions[0]))


async def _one_way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(_PIECE):
        writer.write(piece)
        await writer.drain()
    writer.write_eof()
