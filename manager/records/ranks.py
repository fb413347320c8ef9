"""The highest rank known of a place: by the pointer on the bus, and by this worker's own memory."""

from __future__ import annotations

from attestgate.manager.local.marks import Marks
from attestgate.manager.records.current import CurrentSessions
from attestgate.manager.sessions.record import AppRecord, HostRecord, place_of


class Ranks:
    """What a session that is about to become current has to be above."""

    def __init__(self, current: CurrentSessions, marks: Marks) -> None:
        self._current = current
        self._marks = marks

    async def known(self, record: HostRecord | AppRecord) -> int:
        """The highest rank known of a session's place; 0 for none. Raises Refusal `record.open`, BusError."""
        on_bus = await self._current.rank(record.role, record.subject, record.host)
        return max(on_bus, self._marks.current(place_of(record))[0])
