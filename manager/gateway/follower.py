"""Follows the admissions on the bus: verifies each signed statement and adds it to what nginx must hold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from attestgate.bus import layout
from attestgate.bus.api import Bus, BusError, Message
from attestgate.manager.gateway.desired_state import DesiredState
from attestgate.manager.gateway.events import GatewayEvents
from attestgate.manager.gateway.floors import BelowFloor
from attestgate.manager.gateway.metrics import GatewayMetrics
from attestgate.manager.gateway.public import publish
from attestgate.manager.gateway.retries import bus_retries
from attestgate.manager.gateway.revocations import open_posted_revocation
from attestgate.manager.policy.signers import Signers
from attestgate.schemas.admission import BUCKET, CRL, REVOKE, open_posted
from attestgate.schemas.base import Refusal


class StatementFollower:
    """Watches the bucket of admissions. `signers`: the managers and operators whose signatures count.

    Revocation lists travel in the same bucket and are put into the folder `public`, if there is one.
    """

    def __init__(
        self,
        bus: Bus,
        signers: Signers,
        desired: DesiredState,
        events: GatewayEvents,
        *,
        public: Path | None,
        clock: Callable[[], float],
        metrics: GatewayMetrics,
    ) -> None:
        self._bus = bus
        self._admissions = layout.BUCKETS[BUCKET]
        self._signers = signers
        self._desired = desired
        self._events = events
        self._public = public
        self._clock = clock
        self._metrics = metrics
        self._caught_up = False
        """Whether every statement of the bucket has been read since the watch began."""
        self._reading: asyncio.Timeout | None = None

    def read_again(self) -> None:
        """Begin the watch again: the clock was set, by which statements were refused."""
        if self._reading is not None and not self._reading.expired():
            self._reading.reschedule(asyncio.get_running_loop().time())

    async def run(self) -> None:
        """Follow until cancelled; a watch that fails or ends is started again and reads everything again.

        What has just changed is also read by its key, which asks the stream itself: the watch, which misses nothing,
        reads by calls that wait behind everybody else's.
        """
        async for attempt in bus_retries("watching the admissions failed, retrying"):
            with attempt:
                heard = await self._bus.listen(self._admissions.subject(">"), self._changed)
                try:
                    async with asyncio.timeout(None) as self._reading:
                        await self._watch()
                except TimeoutError:
                    raise BusError("the clock was set: reading everything again") from None
                finally:
                    self._reading = None
                    await heard.close()
                raise BusError("the watch ended")

    async def _changed(self, message: Message) -> None:
        """Take what is stored now under the key of a message, not the message: a manager's statement that another was
        quicker with is not stored, and would stand in the way of the one that is."""
        key = message.subject.removeprefix(self._admissions.subject(""))
        # What fails, the watch comes to, and tells; under what is no key (ValueError) nothing is stored.
        with suppress(BusError, Refusal, ValueError):
            entry = await self._bus.bucket(BUCKET).get(key)
            if entry is not None and entry.value is not None and not key.startswith(CRL):
                self._accept(key, entry.value)

    async def _watch(self) -> None:
        self._caught_up = False
        async for entry in self._bus.bucket(BUCKET).watch():
            if entry is None:
                self._caught_up = True
                self._desired.all_read()
            elif entry.value is not None and entry.key.startswith(CRL):
                self._publish(entry.key, entry.value)
            elif entry.value is not None:
                await self._take(entry.key, entry.value)
            # A deletion is not signed, so it ends nothing: the lease's own expiry does.

    def _publish(self, key: str, der: bytes) -> None:
        if self._public is None:
            return
        try:
            publish(self._public, key, der)
        except Refusal as refusal:
            self._events.refused(key, refusal)

    async def _take(self, key: str, value: bytes) -> None:
        try:
            self._accept(key, value)
        except Refusal as refusal:
            # Expired leases stay in the bucket until they are purged; every reading of it comes to them all.
            if self._caught_up or refusal.reasons[0].code != "admission.expired":
                self._events.refused(key, refusal)
            return
        # A long first load must not keep a withdrawal from being applied.
        await asyncio.sleep(0)

    def _accept(self, key: str, value: bytes) -> None:
        """Verify a statement and take it. Raises Refusal."""
        if key.startswith(REVOKE):
            revocation = open_posted_revocation(key, value, self._signers)
            if self._desired.revoke(revocation):
                self._events.blocked(revocation)
            return
        statement = open_posted(key, value, self._signers.trusted)
        try:
            changed = self._desired.take(statement, value, int(self._clock()))
        except BelowFloor as refusal:
            self._events.below_floor(key, refusal)
            return
        if changed:
            self._metrics.received(key)
