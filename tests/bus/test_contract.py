"""What `bus.api` promises, held against the bus in memory and the real server alike."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import nats.errors
import pytest

from attestgate.bus import layout, subjects
from attestgate.bus.api import ONCE, Bus, BusError, Conflict, Delivery, Entry, Message
from attestgate.bus.client.errors import translated
from attestgate.bus.memory.server import MemoryServer
from tests.support.bus.fixtures import Join
from tests.support.threats import rows, threat

SESSION = "ab" * 16
OTHER = "cd" * 16
HELLO = subjects.inbound("host", "h1", "hello")


@dataclass
class Sides:
    """One bus: the manager's connection, a host's, and how to let time pass."""

    manager: Bus
    host: Bus
    now: Callable[[], int]
    pass_time: Callable[[int], Awaitable[None]]


@pytest.fixture
async def memory_sides() -> AsyncIterator[Sides]:
    clock = [1_800_000_000.0]
    server = MemoryServer(lambda: clock[0])

    async def pass_time(seconds: int) -> None:
        clock[0] += seconds
        server.tick()

    manager, host = server.connect(), server.connect()
    yield Sides(manager, host, lambda: int(clock[0]), pass_time)
    await host.close()
    await manager.close()


@pytest.fixture
async def nats_sides(join: Join) -> Sides:
    async def wait(seconds: int) -> None:
        """The real server keeps its own time; the test waits for what it does then."""

    return Sides(await join("manager", "m"), await join("host", "h1"), lambda: int(time.time()), wait)


@pytest.fixture(params=["memory_sides", pytest.param("nats_sides", marks=pytest.mark.stack)])
def sides(request: pytest.FixtureRequest) -> Sides:
    chosen: Sides = request.getfixturevalue(request.param)
    return chosen


async def take(bus: Bus, consumer: str, count: int = 1) -> list[Delivery]:
    """The next deliveries, not acknowledged."""
    taken: list[Delivery] = []
    async with asyncio.timeout(10), aclosing(generator(bus.consume(consumer))) as deliveries:
        async for delivery in deliveries:
            taken.append(delivery)
            if len(taken) == count:
                break
    return taken


def generator(iterator: Any) -> Any:
    """The interface says iterator; both are generators, which can be closed."""
    return iterator


async def nothing_waits(bus: Bus, consumer: str, mark: str) -> None:
    """Assert that a marker sent now is the very next delivery."""
    await bus.publish(mark, b"marker")
    (delivery,) = await take(bus, consumer)
    assert (delivery.subject, delivery.data) == (mark, b"marker")
    await delivery.done()


TOLD = ["trusted", "untrusted", "rechecked", "revoked"]
"""Events of a host: two of routine, and two alarms, which another stream keeps."""
MARK_WORK = subjects.work("test", SESSION, "mark")


async def test_a_published_message_is_delivered_with_its_headers(sides: Sides) -> None:
    await sides.host.publish(HELLO, b"hi", headers={"ce-id": "7"})
    (delivery,) = await take(sides.manager, "host-hellos")
    assert (delivery.subject, delivery.data, delivery.attempt) == (HELLO, b"hi", 1)
    assert delivery.headers["ce-id"] == "7"


async def test_a_repeated_id_is_stored_once(sides: Sides) -> None:
    work = subjects.work("test", SESSION, "step")
    for _ in range(3):
        await sides.manager.publish(work, b"once", message_id="an-id")
    (delivery,) = await take(sides.manager, "workers")
    await delivery.done()
    await sides.manager.publish(work, b"once", message_id="an-id")  # also after it was taken
    await nothing_waits(sides.manager, "workers", MARK_WORK)


async def test_the_same_data_without_an_id_is_stored_twice(sides: Sides) -> None:
    for _ in range(2):
        await sides.host.publish(HELLO, b"hi")
    assert [delivery.data for delivery in await take(sides.manager, "host-hellos", 2)] == [b"hi", b"hi"]


async def test_what_is_given_back_comes_again_and_says_so(sides: Sides) -> None:
    await sides.manager.publish(MARK_WORK, b"x")
    for attempt in range(1, 31):
        (delivery,) = await take(sides.manager, "workers")
        assert delivery.attempt == attempt
        await delivery.again()
    (delivery,) = await take(sides.manager, "workers")
    await delivery.done()
    await nothing_waits(sides.manager, "workers", MARK_WORK)


async def test_what_is_stored_for_a_time_leaves_by_itself(sides: Sides) -> None:
    await sides.manager.publish(layout.ADMISSIONS.subject("host.ab"), b"x", headers={layout.TTL: "1s"})
    await sides.pass_time(1)
    async with asyncio.timeout(20):
        while await sides.manager.bucket("admissions").get("host.ab") is not None:
            await asyncio.sleep(0.1)


async def test_two_workers_share_a_consumer(sides: Sides) -> None:
    for number in range(6):
        await sides.manager.publish(subjects.work("test", SESSION, f"n{number}"), b"%d" % number)
    first = await take(sides.manager, "workers", 3)
    second = await take(sides.manager, "workers", 3)
    assert sorted(delivery.data for delivery in [*first, *second]) == [b"%d" % n for n in range(6)]


async def test_messages_come_in_order(sides: Sides) -> None:
    for number in range(40):
        await sides.manager.publish(subjects.work("test", SESSION, f"n{number}"), b"%d" % number)
    taken = await take(sides.manager, "workers", 40)
    assert [delivery.data for delivery in taken] == [b"%d" % n for n in range(40)]


async def test_a_full_subject_refuses_its_own_sender_only(sides: Sides) -> None:
    for _ in range(layout.HOSTS.max_msgs_per_subject):
        await sides.host.publish(HELLO, b"hi")
    with pytest.raises(BusError, match="maximum messages per subject exceeded"):
        await sides.host.publish(HELLO, b"one too many")
    await sides.host.publish(subjects.inbound("host", "h1", "evidence"), b"another subject")
    (delivery,) = await take(sides.manager, "host-hellos")
    await delivery.done()
    async with asyncio.timeout(10):
        while True:  # the server makes room some time after it has the acknowledgement, and tells nobody
            try:
                await sides.host.publish(HELLO, b"room again")
                break
            except BusError:
                await asyncio.sleep(0.01)


@threat(rows.FLOOD)
async def test_what_is_put_back_keeps_nobody_else_waiting(sides: Sides) -> None:
    """However much of it: a consumer has no limit of what was delivered and is not acknowledged."""
    for number in range(3000):
        await sides.manager.publish(subjects.work("test", SESSION, f"n{number}"), b"later")
    async with aclosing(generator(sides.manager.consume("workers"))) as deliveries:
        for _ in range(3000):
            await (await anext(deliveries)).again(600)
    await nothing_waits(sides.manager, "workers", MARK_WORK)


@threat(rows.FLOOD)
async def test_classes_of_steps_do_not_wait_for_each_other(sides: Sides) -> None:
    await sides.host.publish(HELLO, b"first")
    await sides.host.publish(subjects.inbound("host", "h1", "recheck_evidence"), b"second")
    (delivery,) = await take(sides.manager, "host-rechecks")
    assert delivery.data == b"second"
    (delivery,) = await take(sides.manager, "host-hellos")
    assert delivery.data == b"first"


async def test_a_subject_that_no_stream_takes_is_an_error() -> None:
    server = MemoryServer()
    bus = server.connect()
    with pytest.raises(BusError, match="no stream"):
        await bus.publish("attest.v1.nowhere", b"")


async def test_a_plain_message_reaches_who_listens(sides: Sides) -> None:
    heard: asyncio.Queue[Message] = asyncio.Queue()
    subscription = await sides.host.listen(subjects.outbound_all("host", "h1"), heard.put)
    await sides.host.flush()
    await sides.manager.send(subjects.outbound("host", "h1", "challenge"), b"one")
    await sides.manager.send(subjects.outbound("host", "h2", "challenge"), b"not for h1")
    await sides.manager.send(subjects.outbound("host", "h1", "grant"), b"two")
    async with asyncio.timeout(5):
        messages = [await heard.get(), await heard.get()]
    assert [(message.subject, message.data) for message in messages] == [
        (subjects.outbound("host", "h1", "challenge"), b"one"),
        (subjects.outbound("host", "h1", "grant"), b"two"),
    ]
    await subscription.close()


async def test_a_handler_that_raises_gets_the_next_message(sides: Sides) -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def handler(message: Message) -> None:
        if message.data == b"bad":
            raise ValueError("a fault of the handler")
        await heard.put(message.data)

    await sides.host.listen(subjects.outbound_all("host", "h1"), handler)
    await sides.host.flush()
    for data in (b"bad", b"good"):
        await sides.manager.send(subjects.outbound("host", "h1", "challenge"), data)
    async with asyncio.timeout(5):
        assert await heard.get() == b"good"


async def test_a_closed_subscription_hears_nothing(sides: Sides) -> None:
    closed: asyncio.Queue[Message] = asyncio.Queue()
    still: asyncio.Queue[Message] = asyncio.Queue()
    subscription = await sides.host.listen(subjects.outbound_all("host", "h1"), closed.put)
    await sides.host.listen(subjects.outbound_all("host", "h1"), still.put)
    await subscription.close()
    await sides.host.flush()
    await sides.manager.send(subjects.outbound("host", "h1", "challenge"), b"x")
    async with asyncio.timeout(5):
        await still.get()
    assert closed.empty()


async def test_a_bucket_keeps_the_newest_value(sides: Sides) -> None:
    bucket = sides.manager.bucket("sessions")
    assert await bucket.get("a.b") is None
    first = await bucket.put("a.b", b"1")
    second = await bucket.put("a.b", b"2")
    assert second > first
    assert await bucket.get("a.b") == Entry("a.b", b"2", second)
    await bucket.put("c", b"")
    assert await bucket.get("c") == Entry("c", b"", second + 1)
    assert await bucket.keys() == ["a.b", "c"]
    assert [await bucket.keys(pattern) for pattern in ("a.*", "*", "b.>")] == [["a.b"], ["c"], []]


async def test_compare_and_set_has_one_winner(sides: Sides) -> None:
    bucket = sides.manager.bucket("sessions")
    revision = await bucket.create("k", b"0")
    with pytest.raises(Conflict):
        await bucket.create("k", b"again")
    with pytest.raises(Conflict):
        await bucket.update("k", b"x", revision + 1)
    results = await asyncio.gather(*(bucket.update("k", b"%d" % n, revision) for n in range(5)), return_exceptions=True)
    winners = [n for n, result in enumerate(results) if isinstance(result, int)]
    assert len(winners) == 1
    assert sum(isinstance(result, Conflict) for result in results) == 4
    entry = await bucket.get("k")
    assert entry is not None and entry.value == b"%d" % winners[0]


async def test_a_deleted_key_is_free_again(sides: Sides) -> None:
    bucket = sides.manager.bucket("sessions")
    revision = await bucket.create("k", b"0")
    await bucket.delete("k")
    await bucket.delete("never-there")
    assert await bucket.get("k") is None
    assert await bucket.keys() == []
    with pytest.raises(Conflict):
        await bucket.update("k", b"stale", revision)
    again = await bucket.create("k", b"1")
    assert await bucket.get("k") == Entry("k", b"1", again)


async def test_what_is_published_to_a_keys_subject_is_its_value(sides: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket, subject = sides.manager.bucket("admissions"), layout.ADMISSIONS.subject("serial.1")
    first = await bucket.put("serial.1", b"put")
    for _ in range(2):
        await sides.manager.publish(subject, b"published", message_id="an-id")
    assert await bucket.get("serial.1") == Entry("serial.1", b"published", first + 1)
    await bucket.put("serial.1", b"newer")
    await sides.manager.publish(subject, b"published", message_id="an-id")
    assert await bucket.get("serial.1") == Entry("serial.1", b"newer", first + 2)
    await sides.manager.publish(subject, b"", headers={"KV-Operation": "DEL"})
    assert await bucket.get("serial.1") is None
    monkeypatch.setattr("attestgate.bus.client.connection.PATIENCE_S", 0.1)
    with pytest.raises(BusError):
        await sides.manager.publish("$KV.nowhere.serial.1", b"no such bucket")


@pytest.mark.parametrize("key", ["", "*", ">", "a.*", "a..b", ".a", "a.", "a b", "a\r\n"])
async def test_what_is_no_key_is_refused(sides: Sides, key: str) -> None:
    bucket = sides.manager.bucket("sessions")
    await bucket.put("a.b", b"another's")
    for attempt in (bucket.get(key), bucket.put(key, b""), bucket.create(key, b""), bucket.delete(key)):
        with pytest.raises(ValueError, match="not a valid bucket key"):
            await attempt


async def test_a_value_too_large_is_refused(sides: Sides) -> None:
    bucket = sides.manager.bucket("sessions")
    await bucket.put("k", bytes(layout.SESSIONS.max_value - 1024))
    with pytest.raises(BusError, match="message size exceeds maximum allowed"):
        await bucket.put("k", bytes(layout.SESSIONS.max_value + 1))


async def test_a_watch_shows_what_is_and_then_what_changes(sides: Sides) -> None:
    bucket = sides.manager.bucket("admissions")
    one = await bucket.put("serial.1", b"1")
    await bucket.put("gone", b"x")
    await bucket.delete("gone")
    two = await bucket.put("serial.2", b"2")
    async with asyncio.timeout(10), aclosing(generator(bucket.watch())) as changes:
        assert [await anext(changes) for _ in range(3)] == [
            Entry("serial.1", b"1", one),
            Entry("serial.2", b"2", two),
            None,
        ]
        three = await bucket.put("serial.1", b"3")
        assert await anext(changes) == Entry("serial.1", b"3", three)
        await bucket.delete("serial.2")
        assert await anext(changes) == Entry("serial.2", None, three + 1)


async def test_a_watch_of_a_pattern_shows_that_only(sides: Sides) -> None:
    bucket = sides.manager.bucket("admissions")
    await bucket.put("host.a", b"1")
    await bucket.put("serial.a", b"2")
    async with asyncio.timeout(10), aclosing(generator(bucket.watch("host.*"))) as changes:
        first = await anext(changes)
        assert first is not None and first.key == "host.a"
        assert await anext(changes) is None
        await bucket.put("serial.b", b"3")
        await bucket.put("host.b", b"4")
        second = await anext(changes)
        assert second is not None and second.key == "host.b"


async def test_a_watch_misses_nothing_of_a_burst(sides: Sides) -> None:
    bucket = sides.manager.bucket("admissions")
    async with asyncio.timeout(20), aclosing(generator(bucket.watch())) as changes:
        assert await anext(changes) is None
        await asyncio.gather(*(bucket.put(f"k{n}", b"%d" % n) for n in range(600)))
        seen: dict[str, bytes | None] = {}
        while len(seen) < 600:
            entry = await anext(changes)
            assert entry is not None
            seen[entry.key] = entry.value
    assert seen == {f"k{n}": b"%d" % n for n in range(600)}


async def test_a_large_bucket_is_read_whole(sides: Sides) -> None:
    bucket = sides.manager.bucket("sessions")
    await asyncio.gather(*(bucket.put(f"k{n}", bytes(2000)) for n in range(1300)))
    assert await bucket.keys() == sorted(f"k{n}" for n in range(1300))


async def test_events_can_be_read_back(sides: Sides) -> None:
    for number in range(300):
        what = TOLD[number % len(TOLD)]
        await sides.manager.publish(subjects.event("host", "h1", what), b"%d" % number, headers={"ce-id": "1"})
    await sides.manager.publish(subjects.event("host", "h2", "trusted"), b"x")
    pattern = f"{subjects.EVENTS}.host.h1.*"
    told = [message async for message in sides.manager.history(pattern)]
    assert [message.data for message in told] == [b"%d" % n for n in range(300)]
    assert told[0].subject == subjects.event("host", "h1", TOLD[0]) and told[0].headers["ce-id"] == "1"
    assert [m async for m in sides.manager.history(f"{subjects.EVENTS}.app.>")] == []


async def test_a_deadline_fires_once(sides: Sides) -> None:
    await sides.manager.schedule(subjects.deadline(SESSION), b"late", at=sides.now() + 1)
    await sides.pass_time(2)
    (delivery,) = await take(sides.manager, "workers")
    assert (delivery.subject, delivery.data) == (subjects.due(subjects.deadline(SESSION)), b"late")
    assert delivery.headers["Nats-Scheduler"] == subjects.deadline(SESSION)
    await delivery.done()
    await nothing_waits(sides.manager, "workers", MARK_WORK)


async def test_a_deadline_in_the_past_fires(sides: Sides) -> None:
    await sides.manager.schedule(subjects.deadline(SESSION), b"late", at=sides.now() - 5)
    (delivery,) = await take(sides.manager, "workers")
    assert delivery.data == b"late"


async def test_a_new_deadline_replaces_the_old(sides: Sides) -> None:
    at = sides.now()
    await sides.manager.schedule(subjects.deadline(SESSION), b"old", at=at + 1)
    await sides.manager.schedule(subjects.deadline(SESSION), b"new", at=at + 2)
    await sides.pass_time(3)
    (delivery,) = await take(sides.manager, "workers")
    assert delivery.data == b"new"
    await delivery.done()
    await nothing_waits(sides.manager, "workers", MARK_WORK)


async def test_only_a_deadline_can_be_scheduled(sides: Sides) -> None:
    with pytest.raises(ValueError, match="not a deadline"):
        await sides.manager.schedule(HELLO, b"", at=sides.now())


async def test_after_the_close_everything_is_an_error(sides: Sides) -> None:
    await sides.host.close()
    await sides.host.close()
    with pytest.raises(BusError):
        await sides.host.publish(HELLO, b"")
    with pytest.raises(BusError):
        await sides.host.send("x", b"")
    with pytest.raises(BusError):
        await sides.host.flush()
    with pytest.raises(BusError):
        await sides.host.listen("x", _ignore)


async def test_a_consumer_ends_with_its_connection(sides: Sides) -> None:
    waiting = asyncio.create_task(take(sides.manager, "host-hellos"))
    await sides.manager.flush()
    await sides.manager.close()
    with pytest.raises(BusError, match="closed"):
        await waiting


async def _ignore(_message: Message) -> None:
    pass


async def test_a_message_is_stored_once_on_its_subject_and_read_back_in_pages(sides: Sides) -> None:
    """Whatever its id; and the pages of a stream go on after any sequence."""
    subject = subjects.event("host", "h1", "trusted")
    await sides.manager.publish(subject, b"first", headers=ONCE)
    for message_id in (None, "another"):
        with pytest.raises(Conflict):
            await sides.manager.publish(subject, b"second", message_id=message_id, headers=ONCE)
    for number in range(300):
        other = subjects.event("host", f"h{2 + number % 4}", "trusted")
        await sides.manager.publish(other, str(number).encode())
    page, more = await sides.manager.page(layout.EVENTS.name, 0)
    assert (page[0].data, page[0].sequence, more) == (b"first", 1, True)
    rest, more = await sides.manager.page(layout.EVENTS.name, page[-1].sequence)
    assert ([stored.data for stored in [*page, *rest][1:]], more) == ([str(n).encode() for n in range(300)], False)
    assert [s.data for s in (await sides.manager.page(layout.EVENTS.name, 0, subject))[0]] == [b"first"]
    assert await sides.manager.page(layout.EVENTS.name, rest[-1].sequence) == ([], False)


@pytest.mark.parametrize("raised", [None, nats.errors.TimeoutError(), nats.errors.NoRespondersError()], ids=repr)
async def test_a_cancellation_that_the_client_swallows_is_not_lost(raised: Exception | None) -> None:
    """Neither where it goes on as if nothing had been, nor where it makes an error of it, which would be retried."""
    entered = asyncio.Event()

    async def work() -> None:
        with translated("test"):
            try:
                entered.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if raised is not None:
                    raise raised from None

    task = asyncio.create_task(work())
    await entered.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
