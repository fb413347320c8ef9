"""What the bus in memory has beyond the contract: a clock of the test's own, and a past to go back to."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from attestgate.bus import layout, subjects
from attestgate.bus.api import Delivery, Entry
from attestgate.bus.memory.server import MemoryBus, MemoryServer

WORK = subjects.work("test", "ab" * 16, "x")
ACK_WAIT = layout.WORKERS.ack_wait_s


class Clock:
    def __init__(self) -> None:
        self.at = 1_800_000_000.0

    def __call__(self) -> float:
        return self.at


async def one(bus: MemoryBus) -> Delivery:
    async with aclosing(bus.consume("workers")) as deliveries:
        return await anext(deliveries)


async def test_what_is_not_acknowledged_in_time_comes_again() -> None:
    clock = Clock()
    server = MemoryServer(clock)
    bus = server.connect()
    await bus.publish(WORK, b"x")
    first = await one(bus)
    clock.at += ACK_WAIT - 1
    assert server.consumers["workers"].take() is None
    await first.working()
    clock.at += ACK_WAIT - 1
    assert server.consumers["workers"].take() is None
    clock.at += 1
    assert (await one(bus)).attempt == 2
    await bus.close()


async def test_a_delay_is_kept() -> None:
    clock = Clock()
    server = MemoryServer(clock)
    bus = server.connect()
    await bus.publish(WORK, b"x")
    for attempt in (1, 2, 3):
        delivery = await one(bus)
        assert delivery.attempt == attempt
        await delivery.again(5)
        assert server.consumers["workers"].take() is None
        clock.at += 5
    await bus.close()


async def test_an_id_is_new_again_after_the_window() -> None:
    clock = Clock()
    bus = MemoryServer(clock).connect()
    await bus.publish(WORK, b"x", message_id="id")
    clock.at += layout.WORK.duplicate_window_s - 1
    await bus.publish(WORK, b"x", message_id="id")
    await (await one(bus)).done()
    clock.at += 1
    await bus.publish(WORK, b"again", message_id="id")
    assert (await one(bus)).data == b"again"
    await bus.close()


async def test_old_events_give_way() -> None:
    server = MemoryServer(Clock())
    bus = server.connect()
    subject = subjects.event("host", "h1", "trusted")
    for number in range(layout.EVENTS.max_msgs_per_subject + 2):
        await bus.publish(subject, b"%d" % number)
    stored = server.stored(layout.EVENTS.name)
    assert (len(stored), stored[0].data) == (layout.EVENTS.max_msgs_per_subject, b"2")
    await bus.close()


async def test_a_bucket_goes_back_in_time_and_watchers_see_it() -> None:
    server = MemoryServer(Clock())
    bucket = server.connect().bucket("sessions")
    await bucket.put("kept", b"old")
    past = server.snapshot("sessions")
    changes: Any = bucket.watch()
    async with aclosing(changes):
        assert [await anext(changes), await anext(changes)] == [Entry("kept", b"old", 1), None]
        newer = await bucket.put("kept", b"new")
        await bucket.create("later", b"x")
        await anext(changes)
        await anext(changes)
        server.restore("sessions", past)
        assert [await anext(changes), await anext(changes)] == [Entry("later", None, 1), Entry("kept", b"old", 1)]
    assert await bucket.keys() == ["kept"]
    assert await bucket.update("kept", b"replayed", 1) == newer


async def test_schedules_fire_in_the_order_of_their_times() -> None:
    clock = Clock()
    server = MemoryServer(clock)
    bus = server.connect()
    for session, delay in (("aa" * 16, 9), ("bb" * 16, 3), ("cc" * 16, 30)):
        await bus.schedule(subjects.deadline(session), session.encode(), at=int(clock.at) + delay)
    server.tick()
    assert server.stored(layout.WORK.name) == []
    clock.at += 10
    server.tick()
    assert [message.data[:2] for message in server.stored(layout.WORK.name)] == [b"bb", b"aa"]
    await bus.close()


async def test_a_repeated_schedule_is_set_once() -> None:
    clock = Clock()
    server = MemoryServer(clock)
    bus = server.connect()
    subject = subjects.deadline("aa" * 16)
    await bus.schedule(subject, b"x", at=int(clock.at), message_id="id")
    await bus.schedule(subject, b"x", at=int(clock.at), message_id="id")
    assert len(server.stored(layout.WORK.name)) == 1
    await bus.close()
