"""A gateway worker without an nginx: the real lease table, the real reports."""

from __future__ import annotations

import time
from collections.abc import Callable

from attestgate.bus import subjects
from attestgate.bus.api import Bus
from attestgate.manager.gateway.lease_table import LeaseTable
from attestgate.schemas.admission import (
    BUCKET,
    CRL,
    REVOKE,
    AppliedStatement,
    GatewayReport,
    Lease,
    open_posted,
    sign_report,
)
from attestgate.schemas.base import Refusal
from attestgate.schemas.signing import Signer, TrustedKeys
from tests.support.gateway.statements import FloorsInMemory
from tests.support.manager.world import GATEWAY


class Gateway:
    """Follows the admissions, believes them for their signatures, reports each."""

    def __init__(
        self,
        bus: Bus,
        clock: Callable[[], float],
        identity: Signer,
        managers: TrustedKeys,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._identity = identity
        self._managers = managers
        self.floors = FloorsInMemory()
        self.lease_table = LeaseTable("gateways", floors=self.floors, longest_lease_s=3600, steady=steady)
        self.leases: list[Lease] = []

    async def run(self) -> None:
        """Follow the admissions, report each."""
        async for entry in self._bus.bucket(BUCKET).watch():
            if entry is None or entry.value is None or entry.key.startswith((CRL, REVOKE)):
                continue
            statement = open_posted(entry.key, entry.value, self._managers)
            try:
                changed = self.lease_table.take(statement, entry.value, int(self._clock()))
            except Refusal:
                continue
            if isinstance(statement, Lease):
                self.leases.append(statement)
            if changed and isinstance(statement, Lease):
                applied = AppliedStatement(
                    key=statement.key,
                    state="admitted",
                    sequence=statement.sequence,
                    app_session=statement.app_session,
                )
                report = GatewayReport(
                    gateway=GATEWAY,
                    epoch="ab" * 16,
                    applied=[applied],
                    at=int(self._clock()),
                    floors=self.floors.written.counter,
                )
                subject = subjects.inbound("gateway", GATEWAY, "report")
                await self._bus.publish(subject, sign_report(self._identity, report))

    def passes(self, app: str) -> bool:
        """Whether a request of the application would pass now."""
        at = int(self._clock())
        return any(
            isinstance(statement, Lease)
            and statement.app == app
            and self.lease_table.entry(key, at) is not None
            and self.lease_table.entry(f"host.{statement.host_session}", at) is not None
            for key, statement in self.lease_table.items()
        )
