"""The backlog of the managers' shared consumers."""

from __future__ import annotations

from attestgate.bus import layout
from attestgate.bus.client.errors import translated
from attestgate.bus.client.nats import NatsBus


async def waiting(bus: NatsBus) -> dict[str, int]:
    """Messages not yet acknowledged, by consumer: pending delivery and pending acknowledgement. Raises BusError."""
    depths: dict[str, int] = {}
    with translated("read the backlog"):
        for consumer in layout.CONSUMERS.values():
            info = await bus.jetstream.consumer_info(consumer.stream, consumer.name)
            depths[consumer.name] = (info.num_pending or 0) + (info.num_ack_pending or 0)
    return depths
