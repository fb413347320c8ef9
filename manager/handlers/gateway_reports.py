"""Gateways' signed reports: which certificates nginx now admits, and which an operator admitted by break-glass."""

from __future__ import annotations

from dataclasses import dataclass, field

from attestgate.bus.api import Bus
from attestgate.manager.audit.orders import Orders
from attestgate.manager.policy.enrolments import Enrolments
from attestgate.manager.records.session_messages import SessionMessages
from attestgate.manager.sessions.inter_session import AppliedAtGateway
from attestgate.schemas.admission import BUCKET, AppliedStatement, Lease, open_posted, open_report
from attestgate.schemas.base import Reason, Refusal
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


class GatewayReports:
    """Handles the reports of gateways. `managers` sign the leases."""

    def __init__(
        self, bus: Bus, enrolments: Enrolments, messages: SessionMessages, orders: Orders, managers: TrustedKeys
    ) -> None:
        self._admissions = bus.bucket(BUCKET)
        self._enrolments = enrolments
        self._messages = messages
        self._orders = orders
        self._managers = managers
        self._known: dict[str, _Known] = {}

    async def take(self, id: str, data: bytes) -> None:
        """Inform each application session in the report that it is admitted. Raises Refusal, BusError."""
        gateway = await self._enrolments.gateway(id)
        report = open_report(data, id, TrustedKeys(self._managers.deployment, {"gateway": {gateway.identity}}))
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
        await self._enter(id, report.glass)

    async def _enter(self, id: str, admissions: list[Signed]) -> None:
        """Each in the decision log, whatever is wrong with another beside it. Raises Refusal, BusError."""
        reasons: list[Reason] = []
        for signed in admissions:
            try:
                await self._orders.broken_glass(id, signed)
            except Refusal as refusal:
                reasons.extend(refusal.reasons)
        if reasons:
            raise Refusal(*reasons)

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
