"""The transactional outbox: sends the messages that a record holds, after the record is stored.

Each may be sent twice: it has a message id by which the server drops the repeat, or it is idempotent. What grants waits
until its entry of the decision log is stored; what takes away waits for nothing.
"""

from __future__ import annotations

import asyncio

from attestgate.bus import subjects
from attestgate.bus.api import Bus
from attestgate.bus.layout import SUMMARIES
from attestgate.manager.audit.intake import Intake
from attestgate.manager.records.current import CurrentSessions
from attestgate.manager.records.session_messages import SessionMessages
from attestgate.manager.sessions.inter_session import HostLost
from attestgate.manager.sessions.record import AppRecord, HostRecord, Outgoing, current_key
from attestgate.schemas.base import pack
from attestgate.schemas.summary import Summary

BEFORE = ("enter", "send", "note")
"""What `publish` sends in an order of its own."""


class Outbox:
    """Publishes the outboxes of records."""

    def __init__(self, bus: Bus, messages: SessionMessages, current: CurrentSessions, intake: Intake) -> None:
        self._bus = bus
        self._messages = messages
        self._current = current
        self._intake = intake
        self._summaries = bus.bucket(SUMMARIES.name)

    async def publish(self, record: HostRecord | AppRecord) -> list[Outgoing]:
        """Send everything in the outbox: entries of grants first, then messages to the agent in order, then the rest.

        Returns the other entries of the decision log that could not be stored: this worker keeps them and tries again.
        Raises NotLogged, before anything was sent; BusError.
        """
        for outgoing in record.outbox:
            if outgoing.how == "enter":
                await self._intake.put(outgoing.subject, outgoing.data)
        for outgoing in record.outbox:
            if outgoing.how == "send":
                await self._bus.send(outgoing.subject, outgoing.data)
        entries = [outgoing for outgoing in record.outbox if outgoing.how == "note"]
        others = [self._one(record, outgoing) for outgoing in record.outbox if outgoing.how not in BEFORE]
        stored, _ = await asyncio.gather(
            asyncio.gather(*(self._intake.keep(entry.subject, entry.data) for entry in entries)),
            asyncio.gather(*others),
        )
        return [entry for entry, is_stored in zip(entries, stored, strict=True) if not is_stored]

    async def resend(self, record: HostRecord | AppRecord) -> None:
        """Resend what the agent has not acknowledged, with the same bytes."""
        for message in record.unacknowledged:
            await self._bus.send(subjects.outbound(record.role, record.name, message.step), message.data)

    async def forget(self, record: HostRecord | AppRecord) -> None:
        """Delete what is stored beside a record. (Its admissions were withdrawn when it ended.)"""
        await self._summaries.delete(summary_key(record))

    async def _one(self, record: HostRecord | AppRecord, outgoing: Outgoing) -> None:
        match outgoing.how:
            case "publish":
                await self._bus.publish(
                    outgoing.subject, outgoing.data, message_id=outgoing.id, headers=outgoing.headers
                )
            case "work":
                await self._messages.publish(outgoing.subject, outgoing.data, outgoing.id)
            case "lost":
                lost = HostLost(state=record.state, reasons=record.reasons)
                await self._messages.publish(outgoing.subject, pack(lost), outgoing.id)
            case "wake":
                await self._bus.schedule(outgoing.subject, outgoing.data, at=outgoing.at, message_id=outgoing.id)
            case "summary":
                subject = SUMMARIES.subject(summary_key(record))
                await self._bus.publish(subject, summary(record), message_id=outgoing.id)
            case "hold":
                await self._current.hold(record)
            case "current":
                key = current_key(record.role, record.subject, record.host)
                await self._current.point(key, record.session, "superseded", record.rank)


def summary_key(record: HostRecord | AppRecord) -> str:
    """The key of a record's readable line."""
    return f"{record.role}.{record.subject}.{record.session}"


def summary(record: HostRecord | AppRecord) -> bytes:
    """The readable line beside a record, in JSON, for `nats kv watch`: nothing decides on it."""
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
