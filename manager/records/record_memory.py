"""What a worker holds against a bus that shows it a record from before: the highest revision seen of each record, which
sessions have ended, and which session is current at each place.

Of two workers that write the same record one loses its compare-and-set and reads again: it never sees an older record
than before. A cluster between two leaders may show one for a moment. So an older record is no reason to refuse until
the bus has shown it for `CERTAIN_S`: until then whoever needs the record comes again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from attestgate.bus.api import BusError
from attestgate.manager.local.marks import Marks
from attestgate.manager.sessions.record import AppRecord, HostRecord, place_of, record_key, tenure_of
from attestgate.schemas.base import Refusal

N = TypeVar("N", int, float)
CERTAIN_S = 2.0
"""How long the bus has to show an older record: longer than a leader that was replaced still answers."""
REMEMBERED = 50_000
"""Records whose revision is remembered, about 150 bytes of memory each."""
ROLLBACK = "record.rollback"


class RecordMemory:
    """One worker's. `steady` is the monotonic clock."""

    def __init__(self, marks: Marks, steady: Callable[[], float]) -> None:
        self._marks = marks
        self._steady = steady
        self._seen: OrderedDict[str, int] = OrderedDict()
        self._doubted: OrderedDict[str, float] = OrderedDict()
        """Since when the bus has shown an older record, by key."""

    def take(self, record: HostRecord | AppRecord) -> None:
        """A record as the bus shows it, or as this worker has stored it.

        Raises BusError for one that is older than what this worker has seen, and Refusal `record.rollback` once the bus
        has shown that for `CERTAIN_S`.
        """
        key = record_key(record.role, record.session)
        if (expected := self._newer(key, record)) is not None:
            self._doubt(key, record, expected)
        self._doubted.pop(key, None)
        _note(self._seen, key, record.revision)
        if (tenure := tenure_of(record)) is not None:
            self._marks.was_current(tenure)
            if record.over:
                self._marks.ended(record.session)
        if isinstance(record, HostRecord) and record.held and record.basis is not None:
            self._marks.hold(record.subject, record.basis.enrolled)

    def superseded_by(self, record: HostRecord | AppRecord) -> str | None:
        """The session known to be the current one of its place after it; None where there is none."""
        if not record.rank:
            return "any: a version before this one opened it, without a rank"
        known = self._marks.current(place_of(record))
        return known[1] if tenure_of(record) and (record.rank, record.session) < known else None

    def _newer(self, key: str, record: HostRecord | AppRecord) -> str | None:
        """What this worker knows to have come after a record, in words."""
        if record.revision < self._seen.get(key, 0):
            return f"revision {self._seen[key]} or a later one, as this worker has seen it"
        if not record.over and self._marks.has_ended(record.session):
            return "no such session, or that it has ended"
        return None

    def _doubt(self, key: str, record: HostRecord | AppRecord, expected: str) -> None:
        now = self._steady()
        since = self._doubted.get(key)
        if since is None:
            _note(self._doubted, key, now)
        if since is None or now - since < CERTAIN_S:
            raise BusError(f"{key}: an older record than before; read again")
        raise Refusal.because(
            ROLLBACK,
            key,
            expected=expected,
            found=f"revision {record.revision}, {record.state}",
            action="if the bus was restored from a backup: nothing, agents begin new sessions;"
            " otherwise find out who rolled it back",
        )


def _note(table: OrderedDict[str, N], key: str, value: N) -> None:
    table[key] = value
    table.move_to_end(key)
    if len(table) > REMEMBERED:
        table.popitem(last=False)
