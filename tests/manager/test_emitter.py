"""Events of a worker itself."""

from __future__ import annotations

from attestgate.bus import subjects
from attestgate.bus.memory.server import MemoryServer
from attestgate.manager.events.emitter import Emitter
from attestgate.schemas.base import parse_json
from attestgate.schemas.events import Event


async def test_data_may_have_any_name() -> None:
    """Also those of what the event is about: a worker whose event cannot be made ends."""
    server = MemoryServer()
    await Emitter(server.connect(), "test").emit("gateway", "g1", "break-glass", kind="host", name="h1", what="x")
    (message,) = server.stored("ATTEST_ALARMS") or server.stored("ATTEST_EVENTS")
    assert message.subject == subjects.event("gateway", "g1", "break-glass")
    assert parse_json(Event, message.data, source="event").data == {"kind": "host", "name": "h1", "what": "x"}
