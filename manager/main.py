"""A manager worker as a process: connect, set up the bus, handle messages."""

from __future__ import annotations

import asyncio

import httpx
import structlog

from attestgate.bus.client.nats import NatsBus, join
from attestgate.bus.client.setup import ensure
from attestgate.manager.assembly import assemble
from attestgate.manager.events.emitter import Emitter, plain
from attestgate.manager.metrics.http import served
from attestgate.manager.metrics.manager import ManagerMetrics
from attestgate.schemas.base import Refusal
from attestgate.schemas.settings import ManagerSettings

log = structlog.get_logger(__name__)


async def run(settings: ManagerSettings) -> None:
    """Connect, and work until cancelled. Raises Refusal, which is published as an event too, and BusError."""
    async with await join(settings.bus, label=settings.name) as bus:
        try:
            async with httpx.AsyncClient(timeout=10.0, trust_env=False) as http:
                await _work(settings, bus, http)
        except Refusal as refusal:
            emitter = Emitter(bus, f"attestgate/{settings.name}")
            await emitter.emit("manager", settings.name, "failed", reasons=plain(refusal.reasons))
            raise


async def _work(settings: ManagerSettings, bus: NatsBus, http: httpx.AsyncClient) -> None:
    """Create or update the bus's streams and buckets, and work."""
    metrics = ManagerMetrics() if settings.metrics is not None else None
    worker = assemble(settings, bus, http, metrics=metrics)
    await ensure(bus, settings.bus.replicas)
    await Emitter(bus, f"attestgate/{settings.name}").emit("manager", settings.name, "started")
    log.info("working", worker=settings.name, simulated_allowed=settings.attestation.allow_simulated)
    if metrics is None:
        await worker.run()
        return
    with served(settings.metrics, metrics.registry):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.run())
            tasks.create_task(metrics.follow(bus))
