"""Assembles a gateway worker from its settings and runs it."""

from __future__ import annotations

import structlog
from pydantic import JsonValue, TypeAdapter

from attestgate.bus.api import BusError
from attestgate.bus.client.nats import NatsBus, join
from attestgate.manager.events.emitter import Emitter, plain
from attestgate.manager.gateway.metrics import GatewayMetrics
from attestgate.manager.gateway.worker import GatewayWorker
from attestgate.manager.local.keyfiles import read_identity
from attestgate.manager.metrics.http import served
from attestgate.schemas.base import Refusal
from attestgate.schemas.settings import GatewaySettings
from attestgate.schemas.signing import Signer

_DATA = TypeAdapter(dict[str, JsonValue])
TELL_S = 2.0
"""How long a worker that cannot start tries to reach the bus to report it."""
log = structlog.get_logger(__name__)


async def run(settings: GatewaySettings) -> None:
    """Work until cancelled. Raises BusError and Refusal; a refusal is also published as an event."""
    try:
        await _work(settings, Signer(settings.trust_domain, read_identity(settings.identity)))
    except Refusal as refusal:
        await _publish_failure(settings, refusal)
        raise


async def _work(settings: GatewaySettings, identity: Signer) -> None:
    metrics = GatewayMetrics()
    async with await join(settings.bus) as bus:
        emitter = _emitter(settings, bus)

        async def emit(kind: str, id: str, what: str, data: dict[str, object]) -> None:
            await emitter.emit(kind, id, what, **_DATA.validate_python(data))
            metrics.event(what)

        with served(settings.metrics, metrics.registry):
            await GatewayWorker(settings, bus=bus, identity=identity, emit=emit, metrics=metrics).run()


async def _publish_failure(settings: GatewaySettings, refusal: Refusal) -> None:
    """Publish why this worker ends, if the bus can be reached; the refusal is raised either way."""
    try:
        bus = await join(settings.bus, patience_s=TELL_S)
    except (BusError, Refusal) as error:
        log.debug("event not published", error=str(error))
        return
    async with bus:
        await _emitter(settings, bus).emit("gateway", settings.id, "failed", reasons=plain(refusal.reasons))


def _emitter(settings: GatewaySettings, bus: NatsBus) -> Emitter:
    return Emitter(bus, f"attestgate/gateway/{settings.id}")
