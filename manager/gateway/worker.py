"""The gateway worker: follows the admissions on the bus and makes one nginx agree with them.

Its tasks run beside each other, so that none holds up a withdrawal: one takes signed statements into the ledger, one
brings nginx's dictionary in line with the ledger, two tell of it (manager/gateway/reports.py). The worker keeps nothing
of its own: killed anywhere and started again, it reads the bucket and nginx and comes to the same end. It never makes a
lease longer; without it, every admission ends at its own time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential_jitter

from attestgate.bus.api import Bus, BusError
from attestgate.manager.gateway.break_glass import BreakGlassFolder
from attestgate.manager.gateway.dictionary import Dictionary, NginxError
from attestgate.manager.gateway.ledger import CertificateEntry, Changes, Entry, Ledger, difference
from attestgate.manager.gateway.map_file import MapFile
from attestgate.manager.gateway.metrics import GatewayMetrics
from attestgate.manager.gateway.only_one import only_one
from attestgate.manager.gateway.public import publish
from attestgate.manager.gateway.relay import Relay
from attestgate.manager.gateway.reports import Emit, Telling, complain
from attestgate.schemas.admission import BUCKET, CRL, AppliedStatement, Lease, Statement, Withdrawal, open_posted
from attestgate.schemas.base import Refusal
from attestgate.schemas.break_glass import BreakGlass
from attestgate.schemas.settings import GatewaySettings
from attestgate.schemas.signing import Signed

Nginx: TypeAlias = Dictionary | MapFile
_PROBE_S = 1.0
"""How often an idle worker asks nginx for its epoch: how long a restarted nginx stays empty."""


class GatewayWorker:
    """One worker beside one nginx. `identity` is the gateway's own key, enrolled by an operator."""

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        bus: Bus,
        identity: Ed25519PrivateKey,
        emit: Emit,
        clock: Callable[[], float] = time.time,
        metrics: GatewayMetrics | None = None,
    ) -> None:
        self._metrics = metrics or GatewayMetrics()
        self._settings = settings
        self._managers = {bytes.fromhex(key) for key in settings.manager_identity}
        self._bus = bus
        self._telling = Telling(settings.id, bus=bus, identity=identity, emit=emit)
        self._clock = clock
        self._ledger = Ledger(
            settings.gateway_set,
            longest_lease_s=settings.longest_lease_s,
            remember_s=settings.break_glass.longest_s if settings.break_glass else 0,
        )
        self._dirty: set[str] = set()
        self._wake = asyncio.Event()
        self._loaded = False
        self._epoch: str | None = None
        self._reconcile_at = 0.0
        self._admitted: set[str] = set()
        self._by_hand = self._break_glass()
        self._broken: dict[str, Entry] = {}
        self._relay = Relay(settings.relay, self._ends, clock) if settings.relay else None
        self._metrics.websockets(lambda: len(self._relay or ()))

    async def run(self) -> None:
        """Work until cancelled. Neither a lost bus nor a lost nginx ends it. Raises Refusal (`gateway.*`)."""
        path = self._settings.nginx_map
        if self._relay is not None:
            self._relay.check()
        with only_one((path or self._settings.nginx_socket).parent):
            async with MapFile(path) if path else Dictionary(self._settings.nginx_socket) as nginx:
                await self._work(nginx)

    async def _work(self, nginx: Nginx) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._keep(nginx))
            tasks.create_task(self._telling.reports())
            tasks.create_task(self._telling.events())
            if self._relay is not None:
                tasks.create_task(self._relay.run())

    # Statements

    async def _follow(self) -> None:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(BusError),
            wait=wait_exponential_jitter(multiplier=0.1, max=5),
            before_sleep=complain("the bus is not reached"),
        ):
            with attempt:
                async for entry in self._bus.bucket(BUCKET).watch():
                    if entry is None:
                        self._loaded = True
                        self._wake.set()
                    elif entry.value is not None and entry.key.startswith(CRL):
                        self._publish(entry.key, entry.value)
                    elif entry.value is not None:
                        await self._take(entry.key, entry.value)
                    # A deletion is not signed: it ends nothing, the lease's own end does.
                raise BusError("the watch ended")

    def _changed(self, key: str) -> None:
        self._dirty.add(key)
        if self._relay is not None:
            self._relay.changed(key)

    def _publish(self, key: str, der: bytes) -> None:
        if self._settings.nginx_public is None:
            return
        try:
            publish(self._settings.nginx_public, key, der)
        except Refusal as refusal:
            self._telling.event("refused", {"key": key, "reason": refusal.reasons[0].model_dump()})

    async def _take(self, key: str, value: bytes) -> None:
        try:
            statement = open_posted(key, value, self._managers)
            changed = self._ledger.take(statement, int(self._clock()))
        except Refusal as refusal:
            # Leases that are over stay in the bucket until they are cleared away; a start reads them all.
            if self._loaded or refusal.reasons[0].code != "admission.expired":
                reason = refusal.reasons[0].model_dump()
                self._telling.event("refused", {"key": key, "reason": reason}, self._ledger.session(key))
            return
        if changed:
            self._metrics.heard(key)
            self._changed(key)
            self._wake.set()
        # A long first load must not keep a withdrawal from being applied.
        await asyncio.sleep(0)

    # nginx

    async def _keep(self, dictionary: Nginx) -> None:
        look_at = 0.0
        while True:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(NginxError),
                wait=wait_exponential_jitter(multiplier=0.05, max=2),
                sleep=self._pause,
                before_sleep=self._failed,
            ):
                with attempt:
                    await self._agree(dictionary)
            if time.monotonic() >= look_at:
                # Not at every batch: a whole fleet's renewals come as hundreds of them.
                look_at = time.monotonic() + _PROBE_S
                await self._tell_refusals(dictionary)
                self._forget()
            await self._pause(_PROBE_S)

    def _forget(self) -> None:
        for key, session in self._ledger.forget(int(self._clock())).items():
            # nginx has dropped it by itself; an operator's word may go on.
            self._admitted.discard(key)
            if key in self._broken:
                self._changed(key)
            self._telling.event("lapsed", {"key": key}, session)

    async def _tell_refusals(self, dictionary: Nginx) -> None:
        """Requests that nginx has refused since it was last asked, whoever they came from."""
        with suppress(NginxError):  # the next agreement will say so
            for refusal in await dictionary.refusals():
                self._metrics.refused(refusal.verdict, refusal.times)
                session = self._ledger.session(f"cert.{refusal.serial.lower()}")
                self._telling.event("request-refused", refusal.model_dump(), session)

    async def _pause(self, seconds: float) -> None:
        """Wait, but no longer than until the next statement: a withdrawal is tried at once."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    def _failed(self, state: RetryCallState) -> None:
        complain("nginx does not agree")(state)
        if state.attempt_number == 1 and state.outcome is not None:
            self._telling.event("nginx-failed", {"problem": str(state.outcome.exception())})

    async def _agree(self, dictionary: Nginx) -> None:
        """Bring nginx in line: what changed, or everything if its memory is new or the period is over."""
        self._wake.clear()
        epoch = (await dictionary.health()).epoch
        at = int(self._clock())
        self._look_for_glass(at)
        # What an operator says by hand does not wait for the bus.
        if epoch != self._epoch:
            self._dirty |= self._broken.keys()
        everything = self._loaded and (epoch != self._epoch or time.monotonic() >= self._reconcile_at)
        keys = {*self._ledger, *self._broken} if everything else self._dirty
        self._dirty = set()
        wanted = {key: entry for key in keys if (entry := self._entry(key, at)) is not None}
        # While nginx is asked, the ledger goes on: what is reported is what was asked for.
        statements = {key: self._ledger[key] for key in keys if key in self._ledger}
        try:
            if everything:
                changes = difference(wanted, (await dictionary.contents()).entries)
            else:
                changes = Changes(remove=[key for key in keys if key not in wanted], put=wanted)
            # Removals first: they are what must not wait, and they make room.
            await dictionary.remove(epoch, changes.remove)
            await dictionary.put(epoch, changes.put)
        except BaseException:
            self._dirty |= keys
            raise
        # What an earlier life of this worker, or of nginx, was told is told again.
        told = keys if epoch != self._epoch else changes.put.keys() | set(changes.remove)
        applied = [_applied(statements[key], admitted=key in wanted) for key in told if key in statements]
        self._telling.report(applied, epoch, at)
        self._metrics.agreed(keys, len(self._ledger))
        self._tell(changes)
        if everything:
            self._epoch = epoch
            self._reconcile_at = time.monotonic() + self._settings.reconcile_s
            if changes.put or changes.remove:
                self._telling.event("reconciled", {"put": len(changes.put), "removed": len(changes.remove)})

    def _entry(self, key: str, at: int) -> Entry | None:
        """What nginx must hold under a key: by the manager's word, or by hand where the manager has said nothing."""
        if key in self._ledger:
            return self._ledger.entry(key, at)
        return self._broken.get(key)

    def _ends(self, key: str) -> float:
        entry = self._entry(key, int(self._clock()))
        return entry.until if entry else 0.0

    def _break_glass(self) -> BreakGlassFolder | None:
        if self._settings.break_glass is None:
            return None

        def tell(said: BreakGlass, signed: Signed) -> None:
            self._telling.glass(signed)
            fields = ("operator", "identity", "serial", "reason")
            self._telling.event("break-glass", {**said.model_dump(include=set(fields)), "until": said.expires_at})

        def refused(name: str, refusal: Refusal) -> None:
            self._telling.event("refused", {"key": name, "reason": refusal.reasons[0].model_dump()})

        return BreakGlassFolder(self._settings.break_glass, self._settings.gateway_set, tell, refused)

    def _look_for_glass(self, at: int) -> None:
        if self._by_hand is not None:
            before, self._broken = self._broken, self._by_hand.entries(at)
            for key in {*before, *self._broken}:
                if before.get(key) != self._broken.get(key):
                    self._changed(key)

    def _tell(self, changes: Changes) -> None:
        for key in changes.remove:
            self._admitted.discard(key)
            session, held = self._ledger.session(key), self._ledger.get(key)
            if isinstance(held, Withdrawal):
                # The decision is timed in whole seconds: what is told is at most one too long.
                after = max(round(self._clock() - held.issued_at, 3), 0.0)
                self._telling.event("withdrawn", {"key": key, "reason": held.reason, "after_s": after}, session)
            else:
                self._telling.event("withdrawn", {"key": key, "reason": "not leased"}, session)
        for key, entry in changes.put.items():
            if key not in self._admitted:
                self._admitted.add(key)
                who = entry.identity if isinstance(entry, CertificateEntry) else entry.host
                data: dict[str, object] = {"key": key, "who": who, "sequence": entry.sequence, "until": entry.until}
                self._telling.event("admitted", data, self._ledger.session(key))


def _applied(statement: Statement, *, admitted: bool) -> AppliedStatement:
    return AppliedStatement(
        key=statement.key,
        state="admitted" if admitted else "withdrawn",
        sequence=statement.sequence,
        app_session=statement.app_session if isinstance(statement, Lease) else None,
    )
