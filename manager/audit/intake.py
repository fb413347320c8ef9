"""The way into the decision log: an entry is stored once, however often it comes, and tracked until it is in the tree.

A worker keeps what it handed in until it is in the tree. The bus cannot lose an entry between here and the tree without
somebody who misses it, and hands it in again; what a worker that was killed had handed in is missed by the numbers of
its session's entries (manager/audit/check).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import takewhile

import structlog

from attestgate.bus import subjects
from attestgate.bus.api import ONCE, Bus, BusError, Conflict, StoredMessage
from attestgate.bus.layout import LOG
from attestgate.manager.audit.merkle import leaf_hash
from attestgate.schemas.audit import Decision, open_decision
from attestgate.schemas.base import Refusal
from attestgate.schemas.signing import TrustedKeys

log = structlog.get_logger(__name__)
OVERDUE_S = 60
"""Seconds after which an entry that is not in the tree is reported, and the log stands still."""
AGAIN_S = 2
"""Seconds after which an entry that could not be stored is tried again."""
MAX_WAITING = 10_000
"""Most entries that are kept, about 1 KiB each: where the log is not updated, the oldest are enough to report it."""


def subject_of(decision: Decision) -> str:
    """The subject of an entry in the stream."""
    return subjects.decision(decision.kind, decision.subject, decision.id)


class NotLogged(BusError):
    """An entry of the decision log is not stored, and what it grants has to wait."""


@dataclass
class _Waiting:
    """An entry that is not in the tree, as this worker knows. Times are seconds of the monotonic clock."""

    subject: str
    entry: bytes
    since: float
    tried: float
    stored: bool = False
    told: bool = False


class Intake:
    """Takes entries in, from one worker. `managers` sign them; `now` is a monotonic clock, in seconds."""

    def __init__(self, bus: Bus, managers: TrustedKeys, now: Callable[[], float]) -> None:
        self._bus = bus
        self._managers = managers
        self._now = now
        self._waiting: dict[bytes, _Waiting] = {}
        """By leaf hash, the oldest first."""
        self.news = asyncio.Event()
        """Set when there is something new to take into the tree."""
        self.cursor = 0
        """The last sequence of the stream that is in the tree, as far as this worker has seen."""

    async def put(self, subject: str, entry: bytes) -> None:
        """Store an entry that something waits for, unless it is stored already. Raises NotLogged."""
        leaf = leaf_hash(entry)
        try:
            await self._store(leaf, self._track(leaf, subject, entry))
        except BusError as error:
            # Whoever waits for it brings it again.
            self._waiting.pop(leaf, None)
            raise NotLogged(f"{subject}: {error}") from error
        except BaseException:
            self._waiting.pop(leaf, None)
            raise

    async def keep(self, subject: str, entry: bytes) -> bool:
        """Store an entry that nothing waits for. Returns whether it is; if not, it is kept, and tried again."""
        leaf = leaf_hash(entry)
        try:
            await self._store(leaf, self._track(leaf, subject, entry))
        except BusError as error:
            log.warning("entry of the decision log not stored, kept", subject=subject, error=str(error))
            return False
        return True

    async def has(self, subject: str) -> bool:
        """Whether the stream has an entry on a subject. Raises BusError."""
        kept, _ = await self._bus.page(LOG.name, 0, subject)
        return bool(kept)

    async def try_again(self) -> None:
        """Store once more what could not be stored, and what is not in the tree long after it was.

        The bus may have lost that, with its last writes, or dropped it.
        """
        now = self._now()
        for leaf, waiting in list(self._waiting.items()):
            if now - waiting.tried < (OVERDUE_S if waiting.stored else AGAIN_S):
                continue
            try:
                await self._store(leaf, waiting)
            except BusError as error:
                log.warning("entry of the decision log not stored yet", subject=waiting.subject, error=str(error))
                return  # the others would not be either

    def taken(self, leaves: Iterable[bytes], cursor: int) -> None:
        """The tree has grown by these leaf hashes, and has taken the stream in up to `cursor`."""
        self.cursor = cursor
        for leaf in leaves:
            self._waiting.pop(leaf, None)

    def age_s(self) -> float:
        """How long the oldest entry of this worker has been waiting, in seconds; 0 if none is."""
        oldest = next(iter(self._waiting.values()), None)
        return max(self._now() - oldest.since, 0.0) if oldest is not None else 0.0

    @property
    def late(self) -> bool:
        """Whether an entry is not in the tree that was found overdue."""
        oldest = next(iter(self._waiting.values()), None)
        return oldest is not None and oldest.told

    def overdue(self) -> list[bytes]:
        """Leaf hashes of entries that should be in the tree by now; each is returned once."""
        late = self._now() - OVERDUE_S
        waiting = takewhile(lambda item: item[1].since <= late, self._waiting.items())
        found = {leaf: one for leaf, one in waiting if not one.told}
        for one in found.values():
            one.told = True
        return list(found)

    def _is_in(self, stored: StoredMessage, waiting: _Waiting) -> bool:
        """Whether an entry need not be waited for: in the tree, or another's to wait for."""
        if stored.data == waiting.entry:
            return stored.sequence <= self.cursor
        try:
            # The same decision, made by the managers' identity before this one.
            return self._opened(waiting.subject, stored.data) == self._opened(waiting.subject, waiting.entry)
        except Refusal:
            return False

    def _opened(self, subject: str, entry: bytes) -> Decision:
        return open_decision(subject, entry, self._managers)

    def _track(self, leaf: bytes, subject: str, entry: bytes) -> _Waiting:
        # Before it is stored, since another worker may have it in the tree before the bus has answered this one.
        waiting = self._waiting.get(leaf) or _Waiting(subject, entry, self._now(), self._now())
        if len(self._waiting) < MAX_WAITING:
            self._waiting.setdefault(leaf, waiting)
        return waiting

    async def _store(self, leaf: bytes, waiting: _Waiting) -> None:
        waiting.tried = self._now()
        try:
            await self._bus.publish(waiting.subject, waiting.entry, headers=ONCE)
        except Conflict:
            kept, _ = await self._bus.page(LOG.name, 0, waiting.subject)
            if any(self._is_in(one, waiting) for one in kept):
                self._waiting.pop(leaf, None)
        waiting.stored = True
        self.news.set()
