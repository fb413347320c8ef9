"""Writes a gateway's floors to its disk, once a round, and lets no disk hold up what takes away.

A disk that is full, or does not answer, is told of once; every round tries again. Meanwhile nothing is admitted whose
floors are not on disk, and nothing that was taken away is confirmed (kept_floors.py).
"""

from __future__ import annotations

import asyncio

from attestgate.manager.gateway.events import GatewayEvents
from attestgate.manager.gateway.floors import Row
from attestgate.manager.gateway.floors_file import FloorsFile, FloorsNotWritten
from attestgate.manager.gateway.kept_floors import KeptFloors

PATIENCE_S = 1.0
"""How long a round waits for the disk."""


class FloorsWriter:
    """Writes to one file; `write` is called by one task."""

    def __init__(self, floors: KeptFloors, file: FloorsFile, events: GatewayEvents) -> None:
        self._floors = floors
        self._file = file
        self._events = events
        self.found = file.counter
        """How many changes were on disk at the start."""
        self._writing: tuple[list[Row], asyncio.Future[int]] | None = None
        self._failed = False

    async def write(self) -> None:
        """Write what is known and not on disk, in one transaction, and wait for it."""
        if self._writing is None:
            rows = self._floors.unwritten()
            if not rows:
                return
            # In a thread: a slow disk must not hold up the WebSockets, nor what is read from the bus.
            self._writing = rows, asyncio.ensure_future(asyncio.to_thread(self._file.write, rows))
        rows, written = self._writing
        await asyncio.wait({written}, timeout=PATIENCE_S)
        if not written.done():
            self._tell_failed(f"no answer within {PATIENCE_S:.0f} s")
            return
        self._writing = None
        try:
            self._floors.wrote(rows, written.result())
        except FloorsNotWritten as error:
            self._tell_failed(str(error))
            return
        if self._failed:
            self._failed = False
            self._events.floors_written(len(rows))

    def _tell_failed(self, problem: str) -> None:
        if not self._failed:
            self._failed = True
            self._events.floors_unwritten(problem, len(self._floors.unwritten()))
