"""The way into the decision log: an entry is stored once, however often it comes, and tracked until it is in the tree.

A worker remembers what it handed in. The bus cannot lose an entry between here and the tree without somebody who misses
it; what a worker that was killed had handed in is missed by the numbers of its session's entries (manager/audit/check).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from itertools import takewhile

from attestgate.bus import subjects
from attestgate.bus.api import ONCE, Bus, Conflict
from attestgate.bus.layout import LOG
from attestgate.manager.audit.merkle import leaf_hash
from attestgate.schemas.audit import Decision

OVERDUE_S = 60
"""Seconds after which an entry that is not in the tree is reported."""
MAX_WAITING = 100_000
"""Most entries that are tracked: where the log is not updated, the oldest are enough to report it."""


def subject_of(decision: Decision) -> str:
    """The subject of an entry in the stream."""
    return subjects.decision(decision.kind, decision.subject, decision.id)


class Intake:
    """Takes entries in, from one worker. `now` is a monotonic clock, in seconds."""

    def __init__(self, bus: Bus, now: Callable[[], float]) -> None:
        self._bus = bus
        self._now = now
        self._waiting: dict[bytes, float] = {}
        """The oldest first."""
        self._told: set[bytes] = set()
        self.news = asyncio.Event()
        """Set when there is something new to take into the tree."""
        self.cursor = 0
        """The last sequence of the stream that is in the tree, as far as this worker has seen."""

    async def put(self, subject: str, entry: bytes) -> None:
        """Store an entry, unless it is stored already. Raises BusError."""
        leaf = leaf_hash(entry)
        # First, since another worker may have it in the tree before the bus has answered this one.
        if len(self._waiting) < MAX_WAITING:
            self._waiting.setdefault(leaf, self._now())
        try:
            await self._bus.publish(subject, entry, headers=ONCE)
        except Conflict:
            kept, _ = await self._bus.page(LOG.name, 0, subject)
            if any(one.data == entry and one.sequence <= self.cursor for one in kept):
                self._waiting.pop(leaf, None)
                return
        except BaseException:
            self._waiting.pop(leaf, None)
            raise
        self.news.set()

    def taken(self, leaves: Iterable[bytes], cursor: int) -> None:
        """The tree has grown by these leaf hashes, and has taken the stream in up to `cursor`."""
        self.cursor = cursor
        for leaf in leaves:
            self._waiting.pop(leaf, None)
            self._told.discard(leaf)

    def age_s(self) -> float:
        """How long the oldest entry of this worker has been waiting, in seconds; 0 if none is."""
        oldest = next(iter(self._waiting.values()), self._now())
        return max(self._now() - oldest, 0.0)

    def overdue(self) -> list[bytes]:
        """Leaf hashes of entries that should be in the tree by now; each is returned once."""
        late = self._now() - OVERDUE_S
        waiting = takewhile(lambda item: item[1] <= late, self._waiting.items())
        found = [leaf for leaf, _ in waiting if leaf not in self._told]
        self._told |= set(found)
        return found
