"""Sends what a record's outbox says. Every entry may be sent twice: its id, or what it is, makes that harmless."""

from __future__ import annotations

import asyncio
import json

from bus import subjects
from bus.api import Bus, Conflict
from manager.sessions.record import AppRecord, HostRecord, Outgoing, current_key
from manager.sessions.work import Order
from manager.vault import Vault
from schemas.base import Model, Reason, SessionId, pack

POINTERS = "sessions"


class Pointer(Model):
    """Which session speaks for a subject."""

    session: SessionId
    counter: int


class Outbox:
    """Publishes outboxes on the bus."""

    def __init__(self, bus: Bus, vault: Vault) -> None:
        self._bus = bus
        self._vault = vault
        self._sessions = bus.bucket(POINTERS)
        self._summaries = bus.bucket("summaries")

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
            await self._bus.send(message.subject, message.data)

    async def pointer(self, key: str) -> str | None:
        """The session that a pointer names, or None."""
        entry = await self._sessions.get(key)
        if entry is None or entry.value is None:
            return None
        return self._vault.open(Pointer, POINTERS, key, entry.value).session

    async def point(self, key: str, session: str, replaced: str) -> None:
        """Let a pointer name `session`; the one before it is told, as `replaced`, that it was superseded."""
        while True:
            entry = await self._sessions.get(key)
            value = entry.value if entry is not None else None
            before = self._vault.open(Pointer, POINTERS, key, value) if value is not None else None
            if before is not None and before.session == session:
                return
            counter = before.counter + 1 if before else 1
            sealed = self._vault.seal(POINTERS, key, counter, Pointer(session=session, counter=counter))
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
        role = key.split(".")[1]
        subject = subjects.work(role, before, what)
        await self._bus.publish(subject, pack(Order(reasons=[reason])), message_id=f"{what}-{before}-{by}")

    async def _one(self, record: HostRecord | AppRecord, outgoing: Outgoing) -> None:
        match outgoing.how:
            case "publish":
                await self._bus.publish(
                    outgoing.subject, outgoing.data, message_id=outgoing.id, headers=outgoing.headers
                )
            case "wake":
                await self._bus.schedule(outgoing.subject, outgoing.data, at=outgoing.at, message_id=outgoing.id)
            case "sleep":
                await self._bus.cancel(outgoing.subject)
            case "summary":
                key = f"{record.role}.{record.subject}.{record.session}"
                await self._summaries.put(key, summary(record))
            case "current":
                await self.point(current_key(record.role, record.subject, record.host), record.session, "superseded")


def summary(record: HostRecord | AppRecord) -> bytes:
    """The readable line beside a record, in JSON: for `nats kv watch`, deciding nothing."""
    line = {
        "role": record.role,
        "id": record.subject,
        "host": record.host,
        "session": record.session,
        "state": str(record.state),
        "created_at": record.created_at,
        "lease_end": record.lease_end,
        "next_recheck": record.next_recheck,
        "simulated": record.outcome.simulated if record.outcome else None,
        "integrity": record.outcome.integrity if record.outcome else None,
        "serial": record.serial if isinstance(record, AppRecord) and record.serial else None,
        "host_session": record.host_session if isinstance(record, AppRecord) else None,
        "reasons": [reason.model_dump() for reason in record.reasons],
    }
    return json.dumps({key: value for key, value in line.items() if value is not None}).encode()
