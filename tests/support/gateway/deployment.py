"""A worker between a bus and the real nginx, with what it is told and what it tells."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestgate.bus.api import Bus, BusError
from attestgate.bus.subjects import inbound
from attestgate.manager.gateway.floors_file import create
from attestgate.manager.gateway.metrics import GatewayMetrics
from attestgate.manager.gateway.worker import GatewayWorker
from attestgate.schemas.admission import (
    AppliedStatement,
    GatewayReport,
    Statement,
    Tenure,
    Withdrawal,
    open_report,
    post,
)
from attestgate.schemas.event_data import BY_NAME
from attestgate.schemas.settings import BusSettings, GatewaySettings, OperatorSettings
from attestgate.schemas.signing import Signer, TrustedKeys
from tests.support.gateway.gate import HOST_SESSION, Client, FakeBus, Gate, host_lease, lease, until

HOST = f"host.{HOST_SESSION}"
TRUST_DOMAIN = "test.example"
Told = tuple[str, dict[str, object]]


def new_signer() -> Signer:
    """A new key in this deployment."""
    return Signer(TRUST_DOMAIN, Ed25519PrivateKey.generate())


OPERATOR = new_signer()
"""The operator whom every worker's settings name."""


def check_event(kind: str, name: str, what: str, **data: object) -> None:
    """An event as `Emitter.emit` takes it, with the data that is documented."""
    BY_NAME[kind, what].data.model_validate(data)


class GatewayDeployment:
    """A bus, its keys, and what the worker told."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.bus = FakeBus()
        self.manager = new_signer()
        self.identity = new_signer()
        self.floors = gate.config.folder.parent / "floors"
        create(self.floors)
        self.events: list[Told] = []
        self.emit_fails = False
        self._sequence = 0

    async def emit(self, kind: str, id_: str, what: str, data: dict[str, object]) -> None:
        assert (kind, id_) == ("gateway", "g1")
        check_event(kind, id_, what, **data)
        if self.emit_fails:
            raise BusError("not connected")
        self.events.append((what, data))

    def worker(
        self,
        bus: object = None,
        metrics: GatewayMetrics | None = None,
        clock: Callable[[], float] = time.time,
        **more: Any,
    ) -> GatewayWorker:
        """A worker by a clock; its monotonic one is the real one."""
        ann = OperatorSettings(name="ann", role="operator", identity=OPERATOR.public.hex())
        values: dict[str, Any] = {"longest_lease_s": 300, "reconcile_s": 3600, "operators": [ann]}
        settings = GatewaySettings(
            bus=BusSettings(url="nats://unused", credentials=Path("unused")),
            id="g1",
            gateway_set="sdn",
            identity=Path("unused"),
            trust_domain=TRUST_DOMAIN,
            manager_identity=[self.manager.public.hex()],
            floors=self.floors,
            nginx_socket=self.gate.config.admin,
            **values | more,
        )
        bus = cast(Bus, bus or self.bus)
        return GatewayWorker(settings, bus=bus, identity=self.identity, emit=self.emit, clock=clock, metrics=metrics)

    async def say(self, *statements: Statement, signer: Signer | None = None) -> None:
        for statement in statements:
            await self.bus.put(statement.key, post(signer or self.manager, statement))

    async def admit(self, *clients: Client, lease_s: int = 300, sequence: int = 1) -> None:
        now = int(time.time())
        await self.say(host_lease(now, lease_s=lease_s, sequence=sequence))
        await self.say(*(lease(c, now, lease_s=lease_s, sequence=sequence) for c in clients))
        for client in clients:
            await self.reported(client.key, "admitted", sequence)

    async def withdraw(self, key: str, sequence: int = 2, ends: Tenure | None = None) -> None:
        now = int(time.time())
        await self.say(
            Withdrawal(key=key, issued_at=now, until=now + 300, sequence=sequence, reason="app.revoked", ends=ends)
        )
        await self.reported(key, "withdrawn", sequence)

    def whole_reports(self) -> list[GatewayReport]:
        gateways = TrustedKeys(TRUST_DOMAIN, {"gateway": {self.identity.public}})
        assert all(subject == inbound("gateway", "g1", "report") for subject, _ in self.bus.published)
        return [open_report(data, "g1", gateways) for _, data in self.bus.published]

    def reports(self) -> list[AppliedStatement]:
        return [item for report in self.whole_reports() for item in report.applied]

    async def reported(self, key: str, state: str, sequence: int) -> AppliedStatement:
        found: list[AppliedStatement] = []
        while not (found := [r for r in self.reports() if (r.key, r.state, r.sequence) == (key, state, sequence)]):
            self.bus.heard.clear()
            async with asyncio.timeout(15):
                await self.bus.heard.wait()
        return found[-1]

    async def told(self, what: str, fits: Callable[[dict[str, object]], bool] = lambda _: True) -> dict[str, object]:
        async def found() -> list[dict[str, object]]:
            return [data for name, data in self.events if name == what and fits(data)]

        return (await until(found, bool))[-1]


@asynccontextmanager
async def at_work(worker: GatewayWorker) -> AsyncIterator[None]:
    """The worker runs meanwhile; if it falls, the test fails with its exception."""
    task = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def status(client: Client) -> int:
    """200 or 403; an answer that was cut in the middle of a withdrawal is no answer, and asked for again."""
    try:
        return (await client.http.get("/x")).status_code
    except httpx.RemoteProtocolError:
        return (await client.http.get("/x")).status_code
