"""What `demo` and `up` hear of a stack."""

from __future__ import annotations

from attestgate.bus import subjects
from attestgate.bus.memory.server import MemoryServer
from attestgate.compose.local.events import EventWatch, is_event
from attestgate.schemas.events import Event


def event(number: int) -> Event:
    return Event(id=f"{number:032x}", kind="host", subject="host-1", what="rechecked", at=number, source="manager-1")


async def test_what_is_forgotten_is_not_kept_and_what_comes_later_is_heard() -> None:
    server, told = MemoryServer(), list[Event]()
    watch, bus = EventWatch(told.append), server.connect()
    await watch.follow(server.connect())
    rechecked = is_event("host", "host-1", "rechecked")
    for number in (1, 2, 2):
        await bus.publish(subjects.event("host", "host-1", "rechecked"), event(number).body())
    await watch.wait("rechecked", lambda one: one.at == 2)
    watch.forget()
    assert (watch.seen, watch.heard_at, watch.mark) == ([], {}, 0)
    await bus.publish(subjects.event("host", "host-1", "rechecked"), event(3).body())
    assert (await watch.wait("rechecked", rechecked)).at == 3
    assert [one.at for one in told] == [1, 2, 3]
