"""Gateways' signed reports: what nginx now admits, what an operator admitted by break-glass, and what was refused.

A gateway remembers what was taken away, whatever the bus shows. With a lease that it refuses for that it encloses what
it has seen, as it was signed: so a worker learns it from which the bus hides it. The gateway's word counts for nothing
there, only the enclosed statement's signature does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain

from attestgate.bus.api import Bus
from attestgate.manager.audit.orders import Orders
from attestgate.manager.events.emitter import Emit, plain
from attestgate.manager.local.marks import Marks
from attestgate.manager.policy.enrolments import Enrolments
from attestgate.manager.policy.revocations import Revocations
from attestgate.manager.records.current import CurrentSessions
from attestgate.manager.records.session_messages import SessionMessages
from attestgate.manager.sessions.inter_session import AppliedAtGateway
from attestgate.schemas.admission import (
    BUCKET,
    REVOKE,
    AppliedStatement,
    GatewayReport,
    Lease,
    RefusedLease,
    Tenure,
    Withdrawal,
    open_posted,
    open_report,
)
from attestgate.schemas.base import Reason, Refusal, unpack
from attestgate.schemas.enrolment import Command
from attestgate.schemas.signing import Signed, TrustedKeys

MAX_STRANGE = 8
"""Certificates without a lease, or without so new a one, that a report may name: it may be older than the bucket's
present contents."""
REMEMBERED = 20_000
"""Leases that were looked up, about 500 bytes of memory each."""


@dataclass
class _Known:
    """A certificate as the bucket had it: its session ("" once it is withdrawn), its lease's sequence, and the gateways
    whose report of this very lease was passed on."""

    session: str
    sequence: int
    passed_on: set[str] = field(default_factory=set)


class Floors:
    """What gateways remember, as far as their reports show it, in this worker's own memory.

    `obey` applies an operator's Revoke; `emit` publishes the events of `worker`.
    """

    def __init__(
        self,
        marks: Marks,
        managers: TrustedKeys,
        current: CurrentSessions,
        revocations: Revocations,
        obey: Callable[[Signed, Command], Awaitable[None]],
        worker: str,
        emit: Emit,
    ) -> None:
        self._marks = marks
        self._managers = managers
        self._current = current
        self._revocations = revocations
        self._obey = obey
        self._worker = worker
        self._emit = emit

    async def count(self, report: GatewayReport) -> None:
        """Remember how many changes of its floors a gateway counts; fewer than before are told. Raises BusError."""
        before = self._marks.floors_lost(report.gateway, report.floors, report.at)
        if before is not None:
            reasons = plain([_lost(report, before)])
            await self._emit("manager", self._worker, "floors-lost", gateway=report.gateway, reasons=reasons)
        self._marks.floors(report.gateway, report.floors, report.at)

    async def learn(self, refused: RefusedLease) -> None:
        """Take over what a gateway has refused a lease for. Raises Refusal (`signature.*`, `message.*`), BusError."""
        if refused.floor_key.startswith(REVOKE):
            signed = unpack(Signed, refused.floor)
            await self._obey(signed, self._revocations.read(refused.floor_key, signed))
            return
        statement = open_posted(refused.floor_key, refused.floor, self._managers)
        if isinstance(statement, Withdrawal):
            if statement.ends is not None:
                await self._was_current(statement.ends)
                self._marks.ended(statement.ends.session)
            return
        await self._was_current(statement.tenure)
        self._marks.rests_on(statement.subject, statement.enrolled, statement.policy)

    async def _was_current(self, tenure: Tenure) -> None:
        self._marks.was_current(tenure)
        # A report comes to one worker, and the next session of the place may be opened by another.
        await self._current.raise_rank(tenure)


class GatewayReports:
    """Handles the reports of gateways. `managers` sign the leases."""

    def __init__(
        self,
        bus: Bus,
        enrolments: Enrolments,
        messages: SessionMessages,
        orders: Orders,
        managers: TrustedKeys,
        floors: Floors,
    ) -> None:
        self._admissions = bus.bucket(BUCKET)
        self._enrolments = enrolments
        self._messages = messages
        self._orders = orders
        self._managers = managers
        self._floors = floors
        self._known: dict[str, _Known] = {}

    async def take(self, id: str, data: bytes) -> None:
        """Inform each application session in the report that it is admitted. Raises Refusal, BusError."""
        gateway = await self._enrolments.gateway(id)
        report = open_report(data, id, TrustedKeys(self._managers.deployment, {"gateway": {gateway.identity}}))
        await self._floors.count(report)
        # Only what a manager leased is passed on, to the session that it was leased to, and once for each lease and
        # gateway: else each name that a gateway makes up, or repeats, would cost a message.
        admitted = {item.key: item.sequence for item in report.applied if _is_admitted(item)}
        strange = 0
        for key, sequence in sorted(admitted.items()):
            known = await self._lease(key, sequence)
            if known is None or sequence > known.sequence:
                strange += 1
                if strange > MAX_STRANGE:
                    raise _made_up(key)
            if known is not None and known.session and id not in known.passed_on:
                await self._pass_on(id, key, known)
        learned = (self._floors.learn(refused) for refused in report.refused)
        await _each(chain(learned, (self._orders.broken_glass(id, signed) for signed in report.glass)))

    async def _pass_on(self, id: str, key: str, known: _Known) -> None:
        known.passed_on.add(id)
        try:
            message = AppliedAtGateway(gateway=id, serial=key.removeprefix("cert."))
            await self._messages.send("app", known.session, "applied", message)
        except BaseException:
            known.passed_on.discard(id)
            raise

    async def _lease(self, key: str, sequence: int) -> _Known | None:
        """What a certificate is leased to, by its newest lease if that is older than `sequence`; None if nothing."""
        known = self._known.get(key)
        if known is not None and sequence <= known.sequence:
            return known
        entry = await self._admissions.get(key)
        if entry is None or entry.value is None:
            return known
        try:
            statement = open_posted(key, entry.value, self._managers)
        except Refusal:  # of the identity before this one, until the lease is renewed: a gateway cannot write here
            return known or _Known("", sequence)
        if known is None or statement.sequence > known.sequence:
            known = _Known(statement.app_session if isinstance(statement, Lease) else "", statement.sequence)
            self._known[key] = known
            if len(self._known) > REMEMBERED:
                del self._known[next(iter(self._known))]
        return known


async def _each(parts: Iterable[Awaitable[None]]) -> None:
    """Each part of a report, whatever is wrong with another beside it. Raises Refusal, BusError."""
    reasons: list[Reason] = []
    for part in parts:
        try:
            await part
        except Refusal as refusal:
            reasons.extend(refusal.reasons)
    if reasons:
        raise Refusal(*reasons)


def _lost(report: GatewayReport, before: int) -> Reason:
    return Reason(
        code="gateway.floors",
        field="floors",
        expected=f"at least {before} changes, as it has counted them before",
        found=f"{report.floors} at {report.at}",
        action="find out what became of the gateway's floors file; revoke again what has to stay revoked there",
    )


def _is_admitted(item: AppliedStatement) -> bool:
    """Whether nginx is said to admit a certificate; of hosts' leases nobody waits for a word."""
    return item.state == "admitted" and item.key.startswith("cert.")


def _made_up(key: str) -> Refusal:
    return Refusal.because(
        "gateway.applied",
        "applied",
        expected=f"leases that a manager signed, {MAX_STRANGE} others at most",
        found=f"more, the last is {key}",
        action="find out what that gateway worker runs: revoke it if it is not yours",
    )
