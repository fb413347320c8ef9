"""The highest rank known of a place: by the pointer on the bus, and by this worker's own memory."""

from __future__ import annotations

from attestgate.manager.local.marks import Marks
from attestgate.manager.records.current import CurrentSessions
from attestgate.manager.sessions.record import AppRecord, HostRecord, place
from attestgate.schemas.binding import Role


class Ranks:
    """What a session that is opened, or is about to become current, has to be above."""

    def __init__(self, current: CurrentSessions, marks: Marks) -> None:
        self._current = current
        self._marks = marks

    async def known(self, role: Role, subject: str, host: str) -> tuple[int, str]:
        """The highest (rank, session) known of a place; (0, "") for none. Raises Refusal `record.open`, BusError."""
        return max(await self._current.newest(role, subject, host), self._marks.current(place(role, subject, host)))

    async def newer(self, record: HostRecord | AppRecord) -> str | None:
        """The session that is current before one that is about to become so; None where it may. Raises as `known`."""
        known = await self.known(record.role, record.subject, record.host)
        return known[1] if (record.rank, record.session) < known else None
