"""The current session of a subject: pointers on the bus, encrypted, changed by compare-and-set.

A host has two of them, an application two for each host: `current` names the session that is trusted, `pending` the
one that was opened last.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from attestgate.bus.api import MAX_CONFLICTS, Bus, Conflict, compare_and_set
from attestgate.manager.records.record_cipher import RecordCipher
from attestgate.manager.records.session_messages import SessionMessages
from attestgate.manager.sessions.inter_session import Order
from attestgate.manager.sessions.record import CURRENT, AppRecord, HostRecord, current_key, held_key, pending_key
from attestgate.manager.sessions.termination import superseded_by
from attestgate.schemas.admission import Tenure
from attestgate.schemas.base import Count, Model, SessionId
from attestgate.schemas.binding import Role

POINTERS = "sessions"
REMEMBERED = 32
"""Superseded sessions that a pointer remembers."""


class Pointer(Model):
    """The session of a subject. Those in `past` were superseded, and never become current again.

    `rank` is the session's, or a higher one that gateways have seen of its place; 0 of one that is `pending`.
    """

    session: SessionId
    counter: Count
    rank: Count = 0
    past: Annotated[list[SessionId], Field(max_length=REMEMBERED)] = []


class Hold(Model):
    """A host that has no session until an Enrol of a higher order than `enrolled` is in force."""

    enrolled: Count
    counter: Count


class CurrentSessions:
    """The index from subjects to their sessions."""

    def __init__(self, bus: Bus, cipher: RecordCipher, messages: SessionMessages) -> None:
        self._bucket = bus.bucket(POINTERS)
        self._cipher = cipher
        self._messages = messages

    async def keys(self, role: Role, id: str) -> list[str]:
        """The keys of a subject's pointers: a host's at two keys, an application's at two for each host."""
        if role == "host":
            return [current_key("host", id, id), pending_key("host", id, id)]
        patterns = (current_key("app", id, "*"), pending_key("app", id, "*"))
        return [key for pattern in patterns for key in await self._bucket.keys(pattern)]

    async def session(self, key: str) -> str | None:
        """The session that a pointer names, or None. Raises Refusal `record.open`, BusError."""
        pointer = await self._pointer(key)
        return None if pointer is None else pointer.session

    async def newest(self, role: Role, subject: str, host: str) -> tuple[int, str]:
        """Rank and id of the current session; (0, "") if there is none. Raises Refusal `record.open`, BusError."""
        pointer = await self._pointer(current_key(role, subject, host))
        return (0, "") if pointer is None else (pointer.rank, pointer.session)

    async def _pointer(self, key: str) -> Pointer | None:
        entry = await self._bucket.get(key)
        if entry is None or entry.value is None:
            return None
        return self._cipher.open(Pointer, POINTERS, key, entry.value)

    async def point(self, key: str, session: str, replaced: str, rank: int = 0) -> None:
        """Make a pointer name `session`; the one before it is superseded, and gets the message `replaced`.

        Of two that became current at once the one of the lower (rank, session) is the one superseded, whichever comes
        first. A repeat by a session that was itself superseded meanwhile changes nothing.
        """
        for _ in range(MAX_CONFLICTS):
            entry = await self._bucket.get(key)
            value = entry.value if entry is not None else None
            before = self._cipher.open(Pointer, POINTERS, key, value) if value is not None else None
            if before is not None and session in (before.session, *before.past):
                return
            if rank and before is not None and (rank, session) < (before.rank, before.session):
                await self._supersede(key, session, before.session, replaced)
                return
            counter, past = (before.counter + 1, [before.session, *before.past][:REMEMBERED]) if before else (1, [])
            sealed = self._cipher.seal(
                POINTERS, key, counter, Pointer(session=session, counter=counter, rank=rank, past=past)
            )
            if before is not None:
                # Before the pointer moves: after a kill in between, the next attempt still finds and notifies `before`.
                await self._supersede(key, before.session, session, replaced)
            if await compare_and_set(self._bucket, key, entry, sealed):
                return
        raise Conflict(f"{key}: {MAX_CONFLICTS} compare-and-sets lost")

    async def raise_rank(self, tenure: Tenure) -> None:
        """Have every worker open the next session of a place above a rank that a gateway has seen there.

        Nobody is superseded: the bus may have shown none of it. Raises Refusal `record.open`, BusError.
        """
        key = f"{CURRENT}{tenure.place}"
        for _ in range(MAX_CONFLICTS):
            entry = await self._bucket.get(key)
            value = entry.value if entry is not None else None
            pointer = Pointer(session=tenure.session, counter=0)
            if value is not None:
                pointer = self._cipher.open(Pointer, POINTERS, key, value)
            if pointer.rank >= tenure.rank:
                return
            raised = pointer.model_copy(update={"rank": tenure.rank, "counter": pointer.counter + 1})
            if await compare_and_set(
                self._bucket, key, entry, self._cipher.seal(POINTERS, key, raised.counter, raised)
            ):
                return
        raise Conflict(f"{key}: {MAX_CONFLICTS} compare-and-sets lost")

    async def held(self, host: str) -> int:
        """The order of the Enrol that a host has to be enrolled after; 0 if it is not held.

        Raises Refusal `record.open`, BusError.
        """
        key = held_key(host)
        entry = await self._bucket.get(key)
        if entry is None or entry.value is None:
            return 0
        return self._cipher.open(Hold, POINTERS, key, entry.value).enrolled

    async def hold(self, record: HostRecord | AppRecord) -> None:
        """Hold the host of an ended session, for every worker. Raises Refusal `record.open`, BusError."""
        key, enrolled = held_key(record.subject), record.basis.enrolled if record.basis is not None else 0
        for _ in range(MAX_CONFLICTS):
            entry = await self._bucket.get(key)
            value = entry.value if entry is not None else None
            before = self._cipher.open(Hold, POINTERS, key, value) if value is not None else None
            if before is not None and before.enrolled >= enrolled:
                return
            held = Hold(enrolled=enrolled, counter=before.counter + 1 if before is not None else 1)
            if await compare_and_set(self._bucket, key, entry, self._cipher.seal(POINTERS, key, held.counter, held)):
                return
        raise Conflict(f"{key}: {MAX_CONFLICTS} compare-and-sets lost")

    async def _supersede(self, key: str, before: str, by: str, what: str) -> None:
        role: Role = "host" if key.split(".")[1] == "host" else "app"
        await self._messages.send(
            role, before, what, Order(reasons=[superseded_by(by)]), message_id=f"{what}-{before}-{by}"
        )
