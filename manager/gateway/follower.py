"""Follows the admissions on the bus: verifies each signed statement and adds it to what nginx must hold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from attestgate.bus.api import Bus, BusError
from attestgate.manager.gateway.desired_state import DesiredState
from attestgate.manager.gateway.events import GatewayEvents
from attestgate.manager.gateway.metrics import GatewayMetrics
from attestgate.manager.gateway.public import publish
from attestgate.manager.gateway.retries import bus_retries
from attestgate.schemas.admission import BUCKET, CRL, open_posted
from attestgate.schemas.base import Refusal


class StatementFollower:
    """Watches the bucket of admissions. `managers` are the identities whose signatures count, 32 raw bytes each.

    Revocation lists travel in the same bucket and are put into the folder `public`, if there is one.
    """

    def __init__(
        self,
        bus: Bus,
        managers: set[bytes],
        desired: DesiredState,
        events: GatewayEvents,
        *,
        public: Path | None,
        clock: Callable[[], float],
        metrics: GatewayMetrics,
    ) -> None:
        self._bus = bus
        self._managers = managers
        self._desired = desired
        self._events = events
        self._public = public
        self._clock = clock
        self._metrics = metrics

    async def run(self) -> None:
        """Follow until cancelled; a watch that fails or ends is started again and reads everything again."""
        async for attempt in bus_retries("watching the admissions failed, retrying"):
            with attempt:
                async for entry in self._bus.bucket(BUCKET).watch():
                    if entry is None:
                        self._desired.all_read()
                    elif entry.value is not None and entry.key.startswith(CRL):
                        self._publish(entry.key, entry.value)
                    elif entry.value is not None:
                        await self._take(entry.key, entry.value)
                    # A deletion is not signed, so it ends nothing: the lease's own expiry does.
                raise BusError("the watch ended")

    def _publish(self, key: str, der: bytes) -> None:
        if self._public is None:
            return
        try:
            publish(self._public, key, der)
        except Refusal as refusal:
            self._events.refused(key, refusal)

    async def _take(self, key: str, value: bytes) -> None:
        try:
            statement = open_posted(key, value, self._managers)
            changed = self._desired.take(statement, int(self._clock()))
        except Refusal as refusal:
            # Expired leases stay in the bucket until they are purged; every start reads them all.
            if self._desired.complete or refusal.reasons[0].code != "admission.expired":
                self._events.refused(key, refusal)
            return
        if changed:
            self._metrics.received(key)
        # A long first load must not keep a withdrawal from being applied.
        await asyncio.sleep(0)
