"""Gateways' signed reports: which certificates nginx now admits, and which an operator admitted by break-glass."""

from __future__ import annotations

from attestgate.manager.audit.orders import Orders
from attestgate.manager.policy.enrolments import Enrolments
from attestgate.manager.records.session_messages import SessionMessages
from attestgate.manager.sessions.inter_session import AppliedAtGateway
from attestgate.schemas.admission import open_report
from attestgate.schemas.base import Refusal


class GatewayReports:
    """Handles the reports of gateways."""

    def __init__(self, enrolments: Enrolments, messages: SessionMessages, orders: Orders) -> None:
        self._enrolments = enrolments
        self._messages = messages
        self._orders = orders

    async def take(self, id: str, data: bytes) -> None:
        """Inform each application session in the report that it is admitted. Raises Refusal, BusError."""
        gateway = await self._enrolments.gateway(id)
        report = open_report(data, {gateway.identity})
        if report.gateway != id:
            raise Refusal.because(
                "gateway.report", "gateway", expected=id, found=report.gateway, action="report on your own subject"
            )
        for applied in report.applied:
            if applied.state == "admitted" and applied.app_session is not None:
                serial = applied.key.removeprefix("cert.")
                message = AppliedAtGateway(gateway=id, serial=serial)
                await self._messages.send("app", applied.app_session, "applied", message)
        for signed in report.glass:
            await self._orders.broken_glass(id, signed)
