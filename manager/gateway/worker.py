"""The gateway worker: makes one nginx hold exactly the admissions that the managers have signed.

It starts tasks that run side by side, so that none of them delays a withdrawal: one follows the signed statements on
the bus (follower.py), one brings nginx in line with them (reconciler.py), two publish reports and events (reports.py),
and one carries WebSockets where they are enabled (relay.py). On disk it keeps its floors alone (floors.py): killed at
any point and restarted, it reads them, the bucket and nginx, and arrives at the same result. It never extends a lease;
without it, every admission still expires at its own time. A step of the clock makes it read and compare everything
again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from attestgate.bus.api import Bus
from attestgate.manager.gateway.break_glass import BreakGlassFolder
from attestgate.manager.gateway.desired_state import DesiredState
from attestgate.manager.gateway.dictionary import Dictionary
from attestgate.manager.gateway.events import GatewayEvents
from attestgate.manager.gateway.floors_file import FloorsFile
from attestgate.manager.gateway.floors_writer import FloorsWriter
from attestgate.manager.gateway.follower import StatementFollower
from attestgate.manager.gateway.kept_floors import KeptFloors
from attestgate.manager.gateway.lease_table import LeaseTable
from attestgate.manager.gateway.lockfile import locked
from attestgate.manager.gateway.map_file import MapFile
from attestgate.manager.gateway.metrics import GatewayMetrics
from attestgate.manager.gateway.reconciler import AdmissionStore, Reconciler
from attestgate.manager.gateway.relay import Relay
from attestgate.manager.gateway.reports import PublishEvent, Reporter
from attestgate.manager.gateway.revocations import BlockFolder
from attestgate.manager.local.clock_steps import ClockSteps
from attestgate.manager.policy.signers import Signers
from attestgate.schemas.break_glass import BreakGlass
from attestgate.schemas.settings import GatewaySettings
from attestgate.schemas.signing import Signed, Signer


class GatewayWorker:
    """One worker beside one nginx. `identity` is the gateway's own key, enrolled by an operator."""

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        bus: Bus,
        identity: Signer,
        emit: PublishEvent,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        metrics: GatewayMetrics | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._metrics = metrics or GatewayMetrics()
        self._signers = Signers(settings.trust_domain, settings.operators, set(settings.managers.by_role["manager"]))
        self._floors = KeptFloors(
            operators=self._signers.trusted.by_role["operator"],
            longest_lease_s=settings.longest_lease_s,
            steady=steady,
        )
        leases = LeaseTable(
            settings.gateway_set,
            floors=self._floors,
            longest_lease_s=settings.longest_lease_s,
            remember_s=settings.break_glass.longest_s if settings.break_glass else 0,
            steady=steady,
        )
        self._steps = ClockSteps(clock, steady, memory_s=leases.memory_s)
        self._desired = DesiredState(leases, self._floors)
        self._reporter = Reporter(settings.id, bus=bus, identity=identity, emit=emit)
        self._events = GatewayEvents(self._reporter, leases, clock)
        self._follower = StatementFollower(
            bus,
            self._signers,
            self._desired,
            self._events,
            public=settings.nginx_public,
            clock=clock,
            metrics=self._metrics,
        )
        self._relay = self._make_relay()

    def _make_relay(self) -> Relay | None:
        if self._settings.relay is None:
            self._metrics.websockets(lambda: 0)
            return None
        relay = Relay(self._settings.relay, lambda key: self._desired.until(key, int(self._clock())), self._clock)
        self._desired.on_change(relay.changed)
        self._metrics.websockets(lambda: len(relay))
        return relay

    async def run(self) -> None:
        """Work until cancelled. Neither a lost bus nor a lost nginx ends it. Raises Refusal (`gateway.*`)."""
        path = self._settings.nginx_map
        if self._relay is not None:
            self._relay.check()
        with locked((path or self._settings.nginx_socket).parent):
            async with MapFile(path) if path else Dictionary(self._settings.nginx_socket) as store:
                await self._work(store, self._open_floors())

    def _open_floors(self) -> FloorsFile:
        # Under the lock: nobody imports floors meanwhile.
        file = FloorsFile(self._settings.floors)
        self._floors.load(file.rows(), file.counter)
        return file

    async def _work(self, store: AdmissionStore, floors: FloorsFile) -> None:
        reconciler = self._reconciler(store, floors)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follower.run())
            tasks.create_task(reconciler.run())
            tasks.create_task(self._reporter.publish_reports())
            tasks.create_task(self._reporter.publish_events())
            if self._relay is not None:
                tasks.create_task(self._relay.run())

    def _reconciler(self, store: AdmissionStore, floors: FloorsFile) -> Reconciler:
        return Reconciler(
            store,
            self._desired,
            floors=FloorsWriter(self._floors, floors, self._events),
            blocks=self._blocks(),
            break_glass=self._break_glass(),
            reporter=self._reporter,
            events=self._events,
            metrics=self._metrics,
            clock=self._clock,
            steps=self._steps,
            stepped=self._follower.read_again,
            reconcile_s=self._settings.reconcile_s,
        )

    def _break_glass(self) -> BreakGlassFolder | None:
        settings = self._settings.break_glass
        if settings is None:
            return None

        def admitted(admission: BreakGlass, signed: Signed) -> None:
            self._reporter.report_break_glass(signed)
            self._events.break_glass(admission)

        return BreakGlassFolder(
            settings,
            self._signers.trusted,
            self._settings.gateway_set,
            admitted,
            self._events.refused,
            self._floors.revoked,
        )

    def _blocks(self) -> BlockFolder | None:
        if self._settings.block_folder is None:
            return None
        folder = BlockFolder(self._settings.block_folder, self._signers, self._events.refused)
        folder.prepare()
        return folder
