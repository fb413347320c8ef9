"""A bus in memory with the real one's guarantees, so that tests run the same handlers as production.

`MemoryServer` stands for nats-server, `MemoryServer.connect()` for `bus.client.nats.connect`. The test controls time:
after it has moved its clock, `tick` fires due schedules and redelivers overdue messages.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from attestgate.bus import layout, subjects
from attestgate.bus.api import BusError, Message, StoredMessage, in_order
from attestgate.bus.client.pages import PAGE
from attestgate.bus.memory.bucket import BucketState, MemoryBucket
from attestgate.bus.memory.stream import MemoryConsumer, MemoryStream

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Scheduled:
    at: int
    data: bytes


class MemoryServer:
    """Streams, consumers, buckets and schedules of `bus.layout`. `now` is the clock, in Unix seconds."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self.now = now
        self._stored_ns = 0
        self.streams = {name: MemoryStream(stream, now, self._stamp) for name, stream in layout.STREAMS.items()}
        self.consumers = {
            name: MemoryConsumer(consumer, self.streams[consumer.stream], now)
            for name, consumer in layout.CONSUMERS.items()
        }
        self.buckets = {name: MemoryBucket(bucket, now) for name, bucket in layout.BUCKETS.items()}
        self.listeners: list[MemorySubscription] = []
        self._schedules: dict[str, _Scheduled] = {}
        self._changed = asyncio.Event()

    def _stamp(self) -> int:
        """When a message is stored, in Unix nanoseconds: no two at the same time, so that streams have one order."""
        self._stored_ns = max(self._stored_ns + 1, int(self.now() * 1_000_000_000))
        return self._stored_ns

    def connect(self) -> MemoryBus:
        """A new connection."""
        return MemoryBus(self)

    def tick(self) -> None:
        """Do what is due: call it after the clock has moved."""
        for subject, scheduled in sorted(self._schedules.items(), key=lambda item: item[1].at):
            if scheduled.at <= self.now():
                del self._schedules[subject]
                headers = {"Nats-Scheduler": subject, "Nats-Schedule-Next": "purge"}
                self.streams[layout.WORK.name].store(subjects.due(subject), scheduled.data, headers, None)
        for bucket in self.buckets.values():
            bucket.tick()
        self.notify()

    def stored(self, stream: str) -> list[Message]:
        """What a stream holds, oldest first."""
        return self.streams[stream].messages()

    def snapshot(self, bucket: str) -> BucketState:
        """A bucket as it is now."""
        return self.buckets[bucket].snapshot()

    def restore(self, bucket: str, state: BucketState) -> None:
        """Roll a bucket back, as a hostile operator of the bus could."""
        self.buckets[bucket].restore(state)

    def store(self, subject: str, data: bytes, headers: Mapping[str, str], message_id: str | None) -> None:
        """Store in the stream or bucket that takes the subject, and notify listeners. Raises BusError."""
        stream = next((stream for stream in self.streams.values() if stream.takes(subject)), None)
        name, _, key = subject.removeprefix(layout.KEY_VALUE).partition(".")
        bucket = self.buckets.get(name) if subject.startswith(layout.KEY_VALUE) else None
        if stream is not None:
            stored = stream.store(subject, data, headers, message_id)
        elif bucket is not None:
            stored = bucket.publish(key, data, headers, message_id)
        else:
            raise BusError(f"store {subject}: no stream takes it")
        if stored:
            self.deliver(Message(subject, data, dict(headers)))
            self.notify()

    def deliver(self, message: Message) -> None:
        """Hand a message to the plain subscriptions it is for."""
        for listener in self.listeners:
            listener.offer(message)

    def schedule(self, subject: str, data: bytes, at: int, message_id: str | None) -> None:
        """Set or replace a schedule; one that is due already fires at once."""
        if message_id is None or self.streams[layout.WORK.name].first_sight(message_id):
            self._schedules[subject] = _Scheduled(at, data)
            self.tick()

    def notify(self) -> None:
        """Wake every waiting consumer."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Return after the next `notify`."""
        await self._changed.wait()


class MemoryBus:
    """A `bus.api.Bus` on a `MemoryServer`."""

    def __init__(self, server: MemoryServer) -> None:
        self._server = server
        self._open = True
        self._subscriptions: list[MemorySubscription] = []

    async def publish(
        self, subject: str, data: bytes, *, message_id: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """See `bus.api.Bus.publish`."""
        self._check_open()
        self._server.store(subject, data, headers or {}, message_id)

    async def send(self, subject: str, data: bytes) -> None:
        """See `bus.api.Bus.send`."""
        self._check_open()
        self._server.deliver(Message(subject, data))

    async def listen(self, subject: str, handler: Callable[[Message], Awaitable[None]]) -> MemorySubscription:
        """See `bus.api.Bus.listen`. A handler that raises is logged and goes on with the next message."""
        self._check_open()
        subscription = MemorySubscription(self._server, subject, handler)
        self._subscriptions.append(subscription)
        return subscription

    async def consume(self, consumer: str, *, batch: int = 16) -> AsyncGenerator[MemoryDelivery]:
        """See `bus.api.Bus.consume`. Takes one at a time whatever `batch` says."""
        queue = self._server.consumers[consumer]
        while True:
            self._check_open()
            taken = queue.take()
            if taken is None:
                await self._server.changed()
            else:
                yield MemoryDelivery(self._server, queue, *taken)

    async def history(self, subject: str) -> AsyncGenerator[Message]:
        """See `bus.api.Bus.history`."""
        self._check_open()
        async for stored in in_order([self._stored(stream, subject) for stream in layout.TOLD]):
            yield Message(stored.subject, stored.data, stored.headers)

    async def _stored(self, stream: str, subject: str) -> AsyncGenerator[StoredMessage]:
        for stored in self._server.streams[stream].items():
            if subjects.matches(subject, stored.subject):
                yield stored

    async def page(self, stream: str, after: int, pattern: str = ">") -> tuple[list[StoredMessage], bool]:
        """See `bus.api.Bus.page`."""
        self._check_open()
        found = [
            stored
            for stored in self._server.streams[stream].items()
            if stored.sequence > after and subjects.matches(pattern, stored.subject)
        ]
        return found[:PAGE], len(found) > PAGE

    async def schedule(self, subject: str, data: bytes, *, at: int, message_id: str | None = None) -> None:
        """See `bus.api.Bus.schedule`."""
        self._check_open()
        subjects.due(subject)  # refuses a subject that is not a deadline's
        self._server.schedule(subject, data, at, message_id)

    def bucket(self, name: str) -> MemoryBucket:
        """See `bus.api.Bus.bucket`."""
        return self._server.buckets[name]

    async def flush(self) -> None:
        """See `bus.api.Bus.flush`."""
        self._check_open()

    async def close(self) -> None:
        """End every subscription and consumer of this connection."""
        self._open = False
        for subscription in self._subscriptions:
            await subscription.close()
        self._server.notify()

    def _check_open(self) -> None:
        if not self._open:
            raise BusError("the connection to the bus is closed")


class MemorySubscription:
    """A plain subscription: a queue, and a task that hands its messages to the handler."""

    def __init__(self, server: MemoryServer, pattern: str, handler: Callable[[Message], Awaitable[None]]) -> None:
        self._server = server
        self._pattern = pattern
        self._queue: asyncio.Queue[Message] = asyncio.Queue()
        server.listeners.append(self)
        self._task = asyncio.create_task(self._run(handler))

    def offer(self, message: Message) -> None:
        """Take a message if it fits."""
        if subjects.matches(self._pattern, message.subject):
            self._queue.put_nowait(message)

    async def close(self) -> None:
        """End it; a handler may end its own subscription."""
        if self in self._server.listeners:
            self._server.listeners.remove(self)
        if self._task is not asyncio.current_task():
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self, handler: Callable[[Message], Awaitable[None]]) -> None:
        while self in self._server.listeners:
            message = await self._queue.get()
            try:
                await handler(message)
            except Exception:
                log.exception("bus.handler", subject=message.subject)


class MemoryDelivery:
    """A `bus.api.Delivery`."""

    def __init__(self, server: MemoryServer, queue: MemoryConsumer, stored: StoredMessage, attempt: int) -> None:
        self._server = server
        self._queue = queue
        self._sequence = stored.sequence
        self.subject = stored.subject
        self.data = stored.data
        self.headers = stored.headers
        self.attempt = attempt

    async def done(self) -> None:
        """See `bus.api.Delivery.done`."""
        self._queue.acknowledge(self._sequence)
        self._server.notify()

    async def again(self, delay_s: float = 0.0) -> None:
        """See `bus.api.Delivery.again`; a delay ends at a `tick`."""
        self._queue.postpone(self._sequence, delay_s)
        self._server.notify()

    async def working(self) -> None:
        """See `bus.api.Delivery.working`."""
        self._queue.postpone(self._sequence, self._queue.layout.ack_wait_s)
