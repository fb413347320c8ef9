"""A gateway worker put together from its settings."""

from __future__ import annotations

import time
from secrets import token_hex

from pydantic import JsonValue, TypeAdapter

from bus import subjects
from bus.nats import connect
from manager.gateway.metrics import GatewayMetrics
from manager.gateway.worker import GatewayWorker
from manager.keyfiles import read_identity
from manager.metrics_http import served
from schemas.events import Event
from schemas.settings import GatewaySettings

_DATA = TypeAdapter(dict[str, JsonValue])


async def run(settings: GatewaySettings) -> None:
    """Work until cancelled. Raises Refusal, BusError."""
    identity = read_identity(settings.identity)
    bus = await connect([settings.bus.url], settings.bus.credentials)

    async def emit(kind: str, id: str, what: str, data: dict[str, object]) -> None:
        event = Event(
            id=token_hex(16),
            kind=kind,
            subject=id,
            what=what,
            at=int(time.time()),
            source=f"attestgate/gateway/{settings.id}",
            data=_DATA.validate_python(data),
        )
        subject = subjects.event(kind, id, what)
        await bus.publish(subject, event.body(), message_id=event.id, headers=event.headers())
        metrics.event(what)

    metrics = GatewayMetrics()
    try:
        with served(settings.metrics, metrics.registry):
            await GatewayWorker(settings, bus=bus, identity=identity, emit=emit, metrics=metrics).run()
    finally:
        await bus.close()
