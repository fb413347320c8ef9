"""The gateway worker: makes one nginx hold exactly the admissions that the managers have signed.

It starts tasks that run side by side, so that none of them delays a withdrawal: one follows the signed statements on
the bus (follower.py), one brings nginx in line with them (reconciler.py), two publish reports and events (reports.py),
and one carries WebSockets where they are enabled (relay.py). The worker has no state of its own on disk: killed at any
point and restarted, it reads the bucket and nginx and arrives at the same result. It never extends a lease; without it,
every admission still expires at its own time. A step of the clock makes it read and compare everything again.
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
from attestgate.manager.gateway.follower import StatementFollower
from attestgate.manager.gateway.lease_table import LeaseTable
from attestgate.manager.gateway.lockfile import locked
from attestgate.manager.gateway.map_file import MapFile
from attestgate.manager.gateway.metrics import GatewayMetrics
from attestgate.manager.gateway.reconciler import AdmissionStore, Reconciler
from attestgate.manager.gateway.relay import Relay
from attestgate.manager.gateway.reports import PublishEvent, Reporter
from attestgate.manager.local.clock_steps import ClockSteps
from attestgate.schemas.break_glass import BreakGlass
from attestgate.schemas.settings import GatewaySettings
from attestgate.schemas.signing import Signed, Signer, TrustedKeys


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
        leases = LeaseTable(
            settings.gateway_set,
            longest_lease_s=settings.longest_lease_s,
            remember_s=settings.break_glass.longest_s if settings.break_glass else 0,
            steady=steady,
        )
        self._steps = ClockSteps(clock, steady, memory_s=leases.memory_s)
        self._desired = DesiredState(leases)
        self._reporter = Reporter(settings.id, bus=bus, identity=identity, emit=emit)
        self._events = GatewayEvents(self._reporter, leases, clock)
        self._follower = StatementFollower(
            bus,
            settings.managers,
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
                await self._work(store)

    async def _work(self, store: AdmissionStore) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follower.run())
            tasks.create_task(self._reconciler(store).run())
            tasks.create_task(self._reporter.publish_reports())
            tasks.create_task(self._reporter.publish_events())
            if self._relay is not None:
                tasks.create_task(self._relay.run())

    def _reconciler(self, store: AdmissionStore) -> Reconciler:
        return Reconciler(
            store,
            self._desired,
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

        operators = TrustedKeys(self._settings.trust_domain, {"operator": set(map(bytes.fromhex, settings.operators))})
        return BreakGlassFolder(settings, operators, self._settings.gateway_set, admitted, self._events.refused)
