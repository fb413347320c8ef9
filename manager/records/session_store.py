"""Transitions: load the record, take a pure step, compare-and-set it with its outbox, publish the outbox.

After a kill at any point the message is redelivered and the transition reaches the same result: the step is taken once,
since the record has moved on; its outbox stays in the record until it is published, always before the next step, with
ids that make a repeat idempotent.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias, TypeVar, TypeVarTuple

from attestgate.bus import subjects
from attestgate.bus.api import MAX_CONFLICTS, Bus, Conflict
from attestgate.bus.logs import bind_session
from attestgate.manager.audit.intake import NotLogged
from attestgate.manager.events.observer import Observer
from attestgate.manager.records.outbox import Outbox
from attestgate.manager.records.record_cipher import RecordCipher
from attestgate.manager.records.record_memory import ROLLBACK, RecordMemory
from attestgate.manager.sessions.draft import Context
from attestgate.manager.sessions.inter_session import Order
from attestgate.manager.sessions.recheck import end_stale, expire
from attestgate.manager.sessions.record import ROLE, AppRecord, HostRecord, Outgoing, record_key, waking
from attestgate.manager.sessions.termination import supersede, superseded_by
from attestgate.schemas.base import Reason, Refusal

R = TypeVar("R", HostRecord, AppRecord)
T = TypeVar("T")
Given = TypeVarTuple("Given")
Kind: TypeAlias = type[HostRecord] | type[AppRecord]
REMEMBERED = 4096
"""Record revisions whose outbox this worker remembers to have published."""
BUCKET = "sessions"
UNKNOWN = "session.unknown"


@dataclass(frozen=True)
class _Left:
    """What a published outbox leaves: entries of the decision log that are still to be stored, and why a grant was not
    sent, if it was not."""

    entries: Sequence[Outgoing] = ()
    unlogged: NotLogged | None = None


class SessionStore:
    """Session records in the bucket, encrypted, and the only way to change them."""

    def __init__(
        self,
        bus: Bus,
        cipher: RecordCipher,
        outbox: Outbox,
        context: Callable[[], Context],
        memory: RecordMemory,
        tell: Callable[[Reason], Awaitable[None]],
        observer: Observer | None = None,
    ) -> None:
        """`tell` is told of a record that the bus has rolled back."""
        self._observer = observer or Observer()
        self._bus = bus
        self._bucket = bus.bucket(BUCKET)
        self._cipher = cipher
        self._outbox = outbox
        self._context = context
        self._memory = memory
        self._tell = tell
        self._told: set[tuple[str, int]] = set()
        """What was told of: the key, and the bus's revision of what it showed there."""
        self._published: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._locks: dict[str, asyncio.Lock] = {}
        self._timers: dict[tuple[Kind, str], int] = {}
        """When each live session is due that this worker stored, Unix seconds."""

    async def load(self, kind: type[R], session: str) -> R:
        """A record as it is stored. Raises Refusal `session.unknown`, or `record.open`."""
        record, _ = await self._load(kind, record_key(ROLE[kind], session))
        return record

    async def create(self, record: R) -> None:
        """Store a new session and publish its outbox. If it exists already, only its outbox is published again."""
        bind_session(record.session)
        key = record_key(record.role, record.session)
        try:
            revision = await self._bucket.create(key, self._cipher.seal(BUCKET, key, record.revision, record))
        except Conflict:
            record, revision = await self._load(type(record), key)
        else:
            self._stored(record)
        await self._publish(key, record, revision)

    async def apply(self, kind: type[R], session: str, step: Callable[[R, Context, T], R], given: T) -> R:
        """Take one pure step on the record, with the context and `given`. Raises as `change` does."""

        async def taken(record: R) -> R:
            return step(record, self._context(), given)

        return await self.change(kind, session, taken)

    async def change(self, kind: type[R], session: str, step: Callable[[R, *Given], Awaitable[R]], *given: *Given) -> R:
        """Take one step on the record, with `given`. A step that returns the same record stores nothing.

        `step` may run again after a lost compare-and-set: it must do nothing but return the next record. Raises
        Refusal and InvalidTransition from the step, BusError from the bus.
        """
        bind_session(session)
        key = record_key(ROLE[kind], session)
        async with self._locks.setdefault(key, asyncio.Lock()):
            try:
                return await self._change(kind, key, lambda record: step(record, *given))
            finally:
                # The locks only save lost compare-and-sets, which alone decide: one dropped too early does no harm.
                if len(self._locks) > REMEMBERED:
                    self._locks = {k: lock for k, lock in self._locks.items() if lock.locked()}

    async def _change(self, kind: type[R], key: str, step: Callable[[R], Awaitable[R]]) -> R:
        for _ in range(MAX_CONFLICTS):
            record, revision = await self._load(kind, key)
            left = await self._before(key, record, revision)
            ended = self._ended(record)
            taken = ended or await step(record)
            # What takes away does not wait for the entry of a grant that was never sent.
            if left.unlogged is not None and not taken.over:
                raise left.unlogged
            if taken is record:
                return record
            following = _with(left.entries, taken)
            try:
                stored = await self._bucket.update(
                    key, self._cipher.seal(BUCKET, key, following.revision, following), revision
                )
            except Conflict:
                continue
            self._stored(following)
            await self._publish(key, following, stored)
            if ended is None:
                return following
        raise Conflict(f"{key}: {MAX_CONFLICTS} compare-and-sets lost")

    async def forget(self, record: HostRecord | AppRecord) -> None:
        """Delete a session that ended long ago: its summary, then its record."""
        await self._outbox.forget(record)
        await self._bucket.delete(record_key(record.role, record.session))

    async def sessions(self) -> list[tuple[Kind, str]]:
        """All sessions that are kept, hosts' first. Raises BusError."""
        kinds: tuple[Kind, ...] = (HostRecord, AppRecord)
        return [
            (kind, key.split(".")[1]) for kind in kinds for key in await self._bucket.keys(record_key(ROLE[kind], "*"))
        ]

    def overdue(self, by: int) -> list[tuple[Kind, str]]:
        """Sessions that this worker stored and that were due before Unix second `by`; each is returned once.

        Most are none: another worker has stored them since.
        """
        late = [key for key, at in self._timers.items() if at < by]
        for key in late:
            del self._timers[key]
        return late

    def still_due(self, sessions: Iterable[tuple[Kind, str]], at: int) -> None:
        """These could not be looked at now."""
        for key in sessions:
            self._timers.setdefault(key, at)

    async def wake_in_time(self, record: HostRecord | AppRecord) -> None:
        """Set a session's timer again, in the place of whatever is set. Raises BusError."""
        await self._bus.schedule(subjects.deadline(record.session), waking(record), at=record.next_timer)

    async def resend(self, kind: type[R], session: str) -> R:
        """Resend what the agent has not acknowledged, with the same bytes."""
        record = await self.load(kind, session)
        await self._outbox.resend(record)
        return record

    def _ended(self, record: R) -> R | None:
        """The session ended if its times say so, or a newer one of its place, whatever message it was loaded for."""
        if (ended := _ended_by_clock(record, self._context())) is not None:
            return ended
        newer = None if record.over else self._memory.superseded_by(record)
        if newer is None:
            return None
        return supersede(record, self._context(), Order(reasons=[superseded_by(newer)]))

    async def _load(self, kind: type[R], key: str) -> tuple[R, int]:
        entry = await self._bucket.get(key)
        if entry is None or entry.value is None:
            raise Refusal.because(
                UNKNOWN,
                "session",
                expected="a session that this manager opened",
                found=key,
                action="send a new hello",
            )
        record = self._cipher.open(kind, BUCKET, key, entry.value)
        try:
            self._memory.take(record)
        except Refusal as refusal:
            if refusal.reasons[0].code == ROLLBACK and (key, entry.revision) not in self._told:
                await self._tell(refusal.reasons[0])
                if len(self._told) > REMEMBERED:
                    self._told.clear()
                self._told.add((key, entry.revision))
            raise
        return record, entry.revision

    async def _before(self, key: str, record: HostRecord | AppRecord, revision: int) -> _Left:
        """Publish the outbox of a record that another worker may have left. Raises BusError."""
        if not record.outbox or (key, revision) in self._published:
            return _Left()
        try:
            unstored = await self._outbox.publish(record)
        except NotLogged as unlogged:
            entries = [outgoing for outgoing in record.outbox if outgoing.how in ("enter", "note")]
            return _Left([entry.model_copy(update={"how": "note"}) for entry in entries], unlogged)
        if not unstored:
            self._remember(key, revision)
        return _Left(unstored)

    async def _publish(self, key: str, record: HostRecord | AppRecord, revision: int) -> None:
        """Publish the outbox of the newest record. A record at rest is then stored without it: most are at rest."""
        if await self._outbox.publish(record):
            return  # kept as it is: whoever takes the next step has its entries to store
        self._remember(key, revision)
        if record.resting and record.outbox:
            at_rest = record.model_copy(update={"outbox": []})
            # On a conflict another worker has changed, cleared or re-encrypted the record: the newer one has its own
            # outbox, and this one is published. After a crash before this line it is published again, under its ids.
            with suppress(Conflict):
                await self._bucket.update(key, self._cipher.seal(BUCKET, key, record.revision, at_rest), revision)

    def _stored(self, record: HostRecord | AppRecord) -> None:
        """Count the events of this transition: once, in the worker that stored it, however often they are sent."""
        self._memory.take(record)
        if record.over:
            self._timers.pop((type(record), record.session), None)
        else:
            self._timers[type(record), record.session] = record.next_timer
        for outgoing in record.outbox:
            if outgoing.how == "publish":
                self._observer.published(outgoing.subject, outgoing.data)

    def _remember(self, key: str, revision: int) -> None:
        self._published[key, revision] = None
        while len(self._published) > REMEMBERED:
            self._published.popitem(last=False)


def _with(entries: Sequence[Outgoing], record: R) -> R:
    """A record that also has these to send, before its own."""
    return record.model_copy(update={"outbox": [*entries, *record.outbox]})


def _ended_by_clock(record: R, context: Context) -> R | None:
    """The session ended if its times say so; else None."""
    if record.over:
        return None
    if record.stale(context.now, context.timing.skew_s):
        return end_stale(record, context)
    return expire(record, context) if context.now >= record.deadline else None
