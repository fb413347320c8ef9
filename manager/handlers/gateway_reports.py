"""Gateways' signed reports: which certificates nginx now admits, and which an operator admitted by break-glass."""

from __future__ import annotations

from attestgate.bus.api import Bus
from attestgate.manager.audit.orders import Orders
from attestgate.manager.policy.enrolments import Enrolments
from attestgate.manager.records.session_messages import SessionMessages
from attestgate.manager.sessions.inter_session import AppliedAtGateway
from attestgate.schemas.admission import BUCKET, Lease, open_posted, open_report
from attestgate.schemas.base import Refusal

MAX_STRANGE = 8
"""Certificates without a lease that a report may name: it may be older than the bucket's present contents."""
REMEMBERED = 20_000
"""Leases that were looked up once: the session of a serial never changes. About 200 bytes of memory each."""


class GatewayReports:
    """Handles the reports of gateways. `manager` is the public key that signs the leases."""

    def __init__(
        self, bus: Bus, enrolments: Enrolments, messages: SessionMessages, orders: Orders, manager: bytes
    ) -> None:
        self._admissions = bus.bucket(BUCKET)
        self._enrolments = enrolments
        self._messages = messages
        self._orders = orders
        self._manager = manager
        self._sessions: dict[str, str] = {}

    async def take(self, id: str, data: bytes) -> None:
        """Inform each application session in the report that it is admitted. Raises Refusal, BusError."""
        gateway = await self._enrolments.gateway(id)
        report = open_report(data, {gateway.identity})
        if report.gateway != id:
            raise Refusal.because(
                "gateway.report", "gateway", expected=id, found=report.gateway, action="report on your own subject"
            )
        admitted = {item.key for item in report.applied if item.state == "admitted" and item.key.startswith("cert.")}
        strange = 0
        for key in sorted(admitted):
            # Only what a manager leased is passed on, to the session that it was leased to: else each name that a
            # gateway makes up would cost a message.
            session = await self._session(key)
            if session:
                message = AppliedAtGateway(gateway=id, serial=key.removeprefix("cert."))
                await self._messages.send("app", session, "applied", message)
            elif session is None and (strange := strange + 1) > MAX_STRANGE:
                raise _made_up(key)
        for signed in report.glass:
            await self._orders.broken_glass(id, signed)

    async def _session(self, key: str) -> str | None:
        """The application session that a certificate is leased to: "" if not any more, None if it never was."""
        known = self._sessions.get(key)
        if known is not None:
            return known
        entry = await self._admissions.get(key)
        if entry is None or entry.value is None:
            return None
        try:
            statement = open_posted(key, entry.value, {self._manager})
        except Refusal:  # of the identity before this one, until the lease is renewed: a gateway cannot write here
            return ""
        if not isinstance(statement, Lease):
            return ""
        self._sessions[key] = statement.app_session
        if len(self._sessions) > REMEMBERED:
            del self._sessions[next(iter(self._sessions))]
        return statement.app_session


def _made_up(key: str) -> Refusal:
    return Refusal.because(
        "gateway.applied",
        "applied",
        expected=f"certificates that a manager leased, {MAX_STRANGE} others at most",
        found=f"more, the last is {key}",
        action="find out what that gateway worker runs: revoke it if it is not yours",
    )
