"""A gateway worker put together from its settings."""

from __future__ import annotations

import time
from secrets import token_hex

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import JsonValue, TypeAdapter

from bus import subjects
from bus.api import Bus, BusError
from bus.nats import connect
from manager.gateway.metrics import GatewayMetrics
from manager.gateway.worker import GatewayWorker
from manager.keyfiles import read_identity
from manager.metrics_http import served
from schemas.base import Refusal
from schemas.events import Event
from schemas.settings import GatewaySettings

_DATA = TypeAdapter(dict[str, JsonValue])


TELL_S = 2.0
"""How long a worker that cannot begin tries to reach the bus to say so."""
log = structlog.get_logger(__name__)


async def run(settings: GatewaySettings) -> None:
    """Work until cancelled. Raises Refusal, told as an event too, and BusError."""
    try:
        await _work(settings, read_identity(settings.identity))
    except Refusal as refusal:
        await _tell(settings, refusal)
        raise


async def _work(settings: GatewaySettings, identity: Ed25519PrivateKey) -> None:
    bus = await connect([settings.bus.url], settings.bus.credentials)
    metrics = GatewayMetrics()

    async def emit(kind: str, id: str, what: str, data: dict[str, object]) -> None:
        await _publish(bus, settings.id, kind, id, what, data)
        metrics.event(what)

    try:
        with served(settings.metrics, metrics.registry):
            await GatewayWorker(settings, bus=bus, identity=identity, emit=emit, metrics=metrics).run()
    finally:
        await bus.close()


async def _tell(settings: GatewaySettings, refusal: Refusal) -> None:
    """Say as an event why this worker ends. The refusal is what is raised, whether or not the bus hears of it."""
    try:
        bus = await connect([settings.bus.url], settings.bus.credentials, patience_s=TELL_S)
    except (BusError, Refusal) as error:
        log.debug("not told as an event", error=str(error))
        return
    try:
        data: dict[str, object] = {"reasons": [reason.model_dump() for reason in refusal.reasons]}
        await _publish(bus, settings.id, "gateway", settings.id, "failed", data)
    finally:
        await bus.close()


async def _publish(bus: Bus, worker: str, kind: str, id: str, what: str, data: dict[str, object]) -> None:
    event = Event(
        id=token_hex(16),
        kind=kind,
        subject=id,
        what=what,
        at=int(time.time()),
        source=f"attestgate/gateway/{worker}",
        data=_DATA.validate_python(data),
    )
    await bus.publish(subjects.event(kind, id, what), event.body(), message_id=event.id, headers=event.headers())
