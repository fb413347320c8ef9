"""Sends what a record's outbox says. Every entry may be sent twice: its id, or what it is, makes that harmless.

What sessions say to each other is sealed under the storage key and bound to its subject, as their records are: the
bus can lose or repeat it, not invent it.
"""

from __future__ import annotations

import asyncio

from pydantic import BaseModel

from attestgate.bus import subjects
from attestgate.bus.api import Bus, Conflict
from attestgate.bus.layout import SUMMARIES
from attestgate.manager.audit.intake import Intake
from attestgate.manager.records.vault import Vault
from attestgate.manager.sessions.record import AppRecord, HostRecord, Outgoing, current_key, pending_key
from attestgate.manager.sessions.work import WORK, Order, Work
from attestgate.schemas.base import Model, Reason, SessionId, pack
from attestgate.schemas.binding import Role
from attestgate.schemas.summary import Summary

POINTERS = "sessions"
REMEMBERED = 32
"""Sessions that a pointer knows it has left behind."""


class Pointer(Model):
    """Which session speaks for a subject. One in `past` was superseded, and never speaks again."""

    session: SessionId
    counter: int
    past: list[SessionId] = []


class Outbox:
    """Publishes outboxes on the bus."""

    def __init__(self, bus: Bus, vault: Vault, intake: Intake) -> None:
        self._bus = bus
        self._vault = vault
        self._intake = intake
        self._sessions = bus.bucket(POINTERS)
        self._summaries = bus.bucket(SUMMARIES.name)

    async def publish(self, record: HostRecord | AppRecord) -> None:
        """Send everything in the outbox: plain messages in their order, the rest side by side. Raises BusError."""
        for outgoing in record.outbox:
            if outgoing.how == "send":
                await self._bus.send(outgoing.subject, outgoing.data)
        others = [self._one(record, outgoing) for outgoing in record.outbox if outgoing.how != "send"]
        await asyncio.gather(*others)

    async def resend(self, record: HostRecord | AppRecord) -> None:
        """Send what the agent has not been seen to have heard, as it was."""
        for message in record.unheard:
            await self._bus.send(subjects.outbound(record.role, record.subject, message.step), message.data)

    async def forget(self, record: HostRecord | AppRecord) -> None:
        """Delete what stands beside a record. (Its admissions were withdrawn when it ended.)"""
        await self._summaries.delete(summary_key(record))

    async def pointers(self, role: Role, id: str) -> list[str]:
        """Where a subject's sessions are named: a host's at two keys, an application's at two for each host."""
        if role == "host":
            return [current_key("host", id, id), pending_key("host", id, id)]
        patterns = (current_key("app", id, "*"), pending_key("app", id, "*"))
        return [key for pattern in patterns for key in await self._sessions.keys(pattern)]

    async def pointer(self, key: str) -> str | None:
        """The session that a pointer names, or None."""
        entry = await self._sessions.get(key)
        if entry is None or entry.value is None:
            return None
        return self._vault.open(Pointer, POINTERS, key, entry.value).session

    async def point(self, key: str, session: str, replaced: str) -> None:
        """Let a pointer name `session`; the one before it is told, as `replaced`, that it was superseded.

        A repeat by a session that was itself superseded meanwhile changes nothing.
        """
        while True:
            entry = await self._sessions.get(key)
            value = entry.value if entry is not None else None
            before = self._vault.open(Pointer, POINTERS, key, value) if value is not None else None
            if before is not None and session in (before.session, *before.past):
                return
            counter, past = (before.counter + 1, [before.session, *before.past][:REMEMBERED]) if before else (1, [])
            sealed = self._vault.seal(POINTERS, key, counter, Pointer(session=session, counter=counter, past=past))
            if before is not None:
                await self._tell_superseded(key, before.session, session, replaced)
            try:
                if entry is None or value is None:
                    await self._sessions.create(key, sealed)
                else:
                    await self._sessions.update(key, sealed, entry.revision)
                return
            except Conflict:
                continue

    async def _tell_superseded(self, key: str, before: str, by: str, what: str) -> None:
        reason = Reason(
            code="session.superseded",
            field="session",
            expected="the newest session of this subject",
            found=f"a newer one, {by}",
            action="nothing, if you restarted the agent; otherwise find out who runs a second one",
        )
        role: Role = "host" if key.split(".")[1] == "host" else "app"
        await self.work(role, before, what, Order(reasons=[reason]), message_id=f"{what}-{before}-{by}")

    async def work(
        self, role: Role, session: str, what: str, model: BaseModel, *, message_id: str | None = None
    ) -> None:
        """Have another session, or this one, take something up; any worker does it. Raises BusError."""
        await self._work(subjects.work(role, session, what), pack(model), message_id)

    async def _work(self, subject: str, data: bytes, message_id: str | None) -> None:
        await self._bus.publish(subject, self._vault.seal(WORK, subject, 0, Work(data=data)), message_id=message_id)

    async def _one(self, record: HostRecord | AppRecord, outgoing: Outgoing) -> None:
        match outgoing.how:
            case "publish":
                await self._bus.publish(
                    outgoing.subject, outgoing.data, message_id=outgoing.id, headers=outgoing.headers
                )
            case "work":
                await self._work(outgoing.subject, outgoing.data, outgoing.id)
            case "log":
                await self._intake.put(outgoing.subject, outgoing.data)
            case "wake":
                await self._bus.schedule(outgoing.subject, outgoing.data, at=outgoing.at, message_id=outgoing.id)
            case "summary":
                subject = SUMMARIES.subject(summary_key(record))
                await self._bus.publish(subject, summary(record), message_id=outgoing.id)
            case "current":
                await self.point(current_key(record.role, record.subject, record.host), record.session, "superseded")


def summary_key(record: HostRecord | AppRecord) -> str:
    """Where a record's readable line stands."""
    return f"{record.role}.{record.subject}.{record.session}"


def summary(record: HostRecord | AppRecord) -> bytes:
    """The readable line beside a record, in JSON: for `nats kv watch`, deciding nothing."""
    application = record if isinstance(record, AppRecord) else None
    return Summary(
        role=record.role,
        id=record.subject,
        host=record.host,
        session=record.session,
        state=str(record.state),
        created_at=record.created_at,
        lease_end=record.lease_end,
        next_recheck=record.next_recheck,
        simulated=record.outcome.simulated if record.outcome else None,
        integrity=record.outcome.integrity if record.outcome else None,
        serial=(application.serial or None) if application else None,
        host_session=application.host_session if application else None,
        reasons=record.reasons,
    ).body()
