"""WebSockets under way: carried between nginx and the controller, and cut when their admission or their time is over.

nginx looks at an upgraded connection no more, so it hands each one, once its request has been judged, to this unix
socket, and names the keys of its leases in a header that only it can set. A connection is cut the moment the worker
hears of a withdrawal, whether or not nginx can be reached; and with the worker itself.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import structlog

from attestgate.schemas.base import Refusal
from attestgate.schemas.settings import RelaySettings

MOST = 1000
"""WebSockets at once; one more is refused."""
_MAX_HEAD = 64 * 1024
_HEAD_S = 10.0
_PIECE = 64 * 1024
_NAMED = re.compile(rb"\r\nX-Attestgate-Admission: ([^\r]*)(?=\r\n)")
_KEYS = re.compile(r"(cert\.[0-9a-f]{2,40}) (host\.[0-9a-f]{32})")
_log = structlog.get_logger(__name__)
Ends: TypeAlias = Callable[[str], float]
"""When the admission under a key ends, in Unix seconds; 0 if there is none."""
_Stream: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, eq=False)
class _Carried:
    """One WebSocket. `over` is its time at the latest, by the loop's clock."""

    keys: tuple[str, str]
    over: float
    bound: asyncio.Timeout


class Relay:
    """The relay of one gateway. `ends` is asked when a connection begins, and again when `changed` says so."""

    def __init__(self, settings: RelaySettings, ends: Ends, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._ends = ends
        self._clock = clock
        self._carried: dict[str, set[_Carried]] = defaultdict(set)
        self._open = 0

    def __len__(self) -> int:
        return self._open

    def check(self) -> None:
        """Whether a socket can be made where the settings say. Raises Refusal `gateway.relay`: no other file goes."""
        path = self._settings.socket
        if not path.parent.is_dir() or (path.exists() and not path.is_socket()):
            raise Refusal.because(
                "gateway.relay",
                str(path),
                expected="a path in a folder, free or with a socket left behind",
                found="another file" if path.exists() else "no such folder",
                action="correct `socket` of [relay] in the settings",
            )

    async def run(self) -> None:
        """Carry until cancelled; then every connection is cut. asyncio takes away a socket that was left behind."""
        path = self._settings.socket
        async with asyncio.TaskGroup() as tasks:
            # Made 0600, not changed to it: nobody else gets in between.
            mask = os.umask(0o177)
            try:
                server = await asyncio.start_unix_server(
                    lambda reader, writer: tasks.create_task(self._take((reader, writer))), path, limit=_MAX_HEAD
                )
            finally:
                os.umask(mask)
            try:
                await asyncio.Event().wait()
            finally:
                server.close()
                path.unlink(missing_ok=True)

    def changed(self, key: str) -> None:
        """An admission has changed: longer, shorter, or over."""
        for carried in self._carried.get(key, ()):
            self._bind(carried)

    async def _take(self, nginx: _Stream) -> None:
        self._open += 1
        try:
            async with asyncio.timeout(_HEAD_S):
                head = await nginx[0].readuntil(b"\r\n\r\n")
            named = _NAMED.findall(head)
            keys = _KEYS.fullmatch(named[0].decode("latin-1")) if len(named) == 1 else None
            if keys is not None and self._open <= MOST:
                await self._carry(nginx, head, (keys[1], keys[2]))
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
            _log.warning("a WebSocket was not carried", problem=str(error) or type(error).__name__)
        finally:
            self._open -= 1
            nginx[1].transport.abort()

    async def _carry(self, nginx: _Stream, head: bytes, keys: tuple[str, str]) -> None:
        begun = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(None) as bound, self._controller() as controller:
                with self._listed(_Carried(keys, begun + self._settings.longest_s, bound)):
                    if self._left(keys) > 0:
                        controller[1].write(head)
                        await _both_ways(nginx, controller)
        except TimeoutError:
            lived = round(asyncio.get_running_loop().time() - begun, 3)
            _log.info("a WebSocket was cut", keys=keys, lived_s=lived, admitted=self._left(keys) > 0)

    @contextmanager
    def _listed(self, carried: _Carried) -> Iterator[None]:
        """Bound in time from here on, by its admission as it is and as it changes."""
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


async def _both_ways(one: _Stream, other: _Stream) -> None:
    """Until both sides have ended, or one is lost."""
    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(_one_way(one[0], other[1]))
            both.create_task(_one_way(other[0], one[1]))
    except* OSError as errors:
        _log.debug("a WebSocket was lost", problem=str(errors.exceptions[0]))


async def _one_way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(_PIECE):
        writer.write(piece)
        await writer.drain()
    writer.write_eof()
