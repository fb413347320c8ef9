"""What a gateway worker publishes: signed reports of what nginx now holds, and events for operators.

Both are queued here until the bus accepts them, so that a slow bus never delays nginx. Of reports only the newest for
each key is kept; events beyond a bound are dropped, and that is logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice
from secrets import token_hex
from typing import TypeAlias

import structlog

from attestgate.bus import subjects
from attestgate.bus.api import Bus, BusError
from attestgate.manager.gateway.retries import bus_retries
from attestgate.schemas.admission import (
    MAX_APPLIED,
    MAX_GLASS,
    MAX_REFUSED,
    MAX_REVOKED,
    AppliedStatement,
    GatewayReport,
    RefusedLease,
    sign_report,
)
from attestgate.schemas.event_data import GatewayWhat
from attestgate.schemas.signing import Signed, Signer

PublishEvent: TypeAlias = Callable[[str, str, str, dict[str, object]], Awaitable[None]]
"""`publish(kind, id, what, data)`: publish an event. May raise BusError: that event is lost, and logged."""

_MAX_EVENTS = 4096
_MAX_REFUSED = 1024
_REPORT_S = 0.1
"""Least time between two reports: half of the rate that a manager worker takes (manager/handlers/worker.py)."""
_log = structlog.get_logger()


class Reporter:
    """Publishes for one gateway. `publish_reports` and `publish_events` run as tasks for as long as the worker does."""

    def __init__(self, gateway: str, *, bus: Bus, identity: Signer, emit: PublishEvent) -> None:
        self._gateway = gateway
        self._bus = bus
        self._identity = identity
        self._emit = emit
        self._unreported: dict[str, AppliedStatement] = {}
        self._break_glass: list[Signed] = []
        self._revoked: dict[bytes, None] = {}
        self._refused: dict[str, RefusedLease] = {}
        self._epoch, self._at, self._floors = "", 0, 0
        self._first: GatewayReport | None = None
        self._pending = asyncio.Event()
        self._events: asyncio.Queue[tuple[str, dict[str, object]]] = asyncio.Queue(_MAX_EVENTS)

    def begin(self, epoch: str, at: int, floors: int) -> None:
        """Queue the first report of this run: nothing but the floors as they were found on disk.

        It comes before all others, so that a file that was set back is seen before new changes make up for it.
        """
        self._first = GatewayReport(gateway=self._gateway, epoch=epoch, applied=[], at=at, floors=floors)
        self._pending.set()

    def report(
        self, applied: Iterable[AppliedStatement], epoch: str, at: int, *, floors: int, revoked: Iterable[bytes] = ()
    ) -> None:
        """Queue a report that nginx holds this, in an epoch of its memory, since Unix second `at`, and that `floors`
        changes are on disk. `revoked`: digests of Revokes that are on disk, and out of nginx."""
        self._unreported |= {item.key: item for item in applied}
        self._revoked |= dict.fromkeys(revoked)
        self._epoch, self._at, self._floors = epoch, at, floors
        if self._waiting():
            self._pending.set()

    def report_refused(self, refused: RefusedLease) -> None:
        """Include a lease that was refused in a report; of each key the last one."""
        self._refused.pop(refused.key, None)
        self._refused[refused.key] = refused
        if len(self._refused) > _MAX_REFUSED:
            del self._refused[next(iter(self._refused))]
        if self._epoch:
            self._pending.set()

    def _waiting(self) -> bool:
        return bool(self._unreported or self._break_glass or self._revoked or self._refused)

    def report_break_glass(self, signed: Signed) -> None:
        """Include an operator's signed admission, which this gateway follows, in the next report."""
        self._break_glass.append(signed)

    def event(self, what: GatewayWhat, data: dict[str, object], session: str | None = None) -> None:
        """Queue an event of this gateway; the log line also names the session that it is about."""
        _log.info(what, gateway=self._gateway, **data, **({"session": session} if session else {}))
        try:
            self._events.put_nowait((what, data))
        except asyncio.QueueFull:
            _log.warning("event dropped: the bus is too slow", what=what)

    async def publish_reports(self) -> None:
        """Sign and publish reports until cancelled; each is retried until the bus has accepted it."""
        subject = subjects.inbound("gateway", self._gateway, "report")
        while True:
            await self._pending.wait()
            signed, message_id = sign_report(self._identity, self._next_report()), token_hex(16)
            # The same message id at each attempt: if only the acknowledgement was lost, the bus drops the duplicate.
            async for attempt in bus_retries("publishing a report failed, retrying"):
                with attempt:
                    await self._bus.publish(subject, signed, message_id=message_id)
            await asyncio.sleep(_REPORT_S)

    def _next_report(self) -> GatewayReport:
        if self._first is not None:
            first, self._first = self._first, None
            if not self._waiting():
                self._pending.clear()
            return first
        applied = list(islice(self._unreported.values(), MAX_APPLIED))
        for item in applied:
            del self._unreported[item.key]
        revoked = list(islice(self._revoked, MAX_REVOKED))
        for digest in revoked:
            del self._revoked[digest]
        refused = list(islice(self._refused.values(), MAX_REFUSED))
        for lease in refused:
            del self._refused[lease.key]
        glass, self._break_glass = self._break_glass[:MAX_GLASS], self._break_glass[MAX_GLASS:]
        if not self._waiting():
            self._pending.clear()
        return GatewayReport(
            gateway=self._gateway,
            epoch=self._epoch,
            applied=applied,
            at=self._at,
            glass=glass,
            floors=self._floors,
            revoked=revoked,
            refused=refused,
        )

    async def publish_events(self) -> None:
        """Publish events until cancelled."""
        while True:
            what, data = await self._events.get()
            try:
                await self._emit("gateway", self._gateway, what, data)
            except BusError as error:
                _log.warning("event lost: publishing failed", what=what, problem=str(error))
