"""A bus connection that kills its worker before its nth operation, as `kill -9` would: nothing after it happens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from attestgate.bus.api import Stored
from attestgate.bus.memory.bucket import MemoryBucket
from attestgate.bus.memory.server import MemoryBus, MemoryDelivery


class Killed(BaseException):
    """The worker is dead."""


class Counter:
    """Counts operations; raises from the one before which its worker is to die, and from all after it.

    With another exception than Killed only that one operation fails. A read changes nothing, so that to die before one
    is to die before the write that follows: for Killed only writes count.
    """

    def __init__(self, dies_before: int | None, fails: type[BaseException] = Killed) -> None:
        self.done = 0
        self._dies_before = dies_before
        self._fails = fails

    def die_in(self, operations: int | None) -> None:
        """Let the worker do so many more operations; None: as many as it likes."""
        self._dies_before = None if operations is None else self.done + operations

    def count(self, *, reads: bool = False) -> None:
        if reads and self._fails is Killed:
            return
        if self._dies_before is not None and self.done >= self._dies_before:
            if self._fails is not Killed:
                self._dies_before = None
            raise self._fails("the test said so")
        self.done += 1


class MortalBus:
    """A `bus.api.Bus` whose every operation counts."""

    def __init__(self, bus: MemoryBus, counter: Counter) -> None:
        self._bus = bus
        self._counter = counter

    async def publish(
        self, subject: str, data: bytes, *, message_id: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        self._counter.count()
        await self._bus.publish(subject, data, message_id=message_id, headers=headers)

    async def send(self, subject: str, data: bytes) -> None:
        self._counter.count()
        await self._bus.send(subject, data)

    async def schedule(self, subject: str, data: bytes, *, at: int, message_id: str | None = None) -> None:
        self._counter.count()
        await self._bus.schedule(subject, data, at=at, message_id=message_id)

    def bucket(self, name: str) -> Any:
        return MortalBucket(self._bus.bucket(name), self._counter)

    async def consume(self, consumer: str, *, batch: int = 16) -> AsyncGenerator[Any]:
        async for delivery in self._bus.consume(consumer, batch=batch):
            yield MortalDelivery(delivery, self._counter)

    async def listen(self, subject: str, handler: Callable[..., Any]) -> Any:
        return await self._bus.listen(subject, handler)

    async def page(self, stream: str, after: int, pattern: str = ">") -> tuple[list[Stored], bool]:
        self._counter.count(reads=True)
        return await self._bus.page(stream, after, pattern)

    async def flush(self) -> None:
        await self._bus.flush()

    async def close(self) -> None:
        await self._bus.close()

    def history(self, subject: str) -> Any:
        return self._bus.history(subject)


class MortalBucket:
    """A `bus.api.Bucket` whose every operation counts."""

    def __init__(self, bucket: MemoryBucket, counter: Counter) -> None:
        self._bucket = bucket
        self._counter = counter

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._bucket, name)
        if name == "watch":  # tells; does nothing
            return operation

        async def counted(*arguments: Any) -> Any:
            self._counter.count(reads=name in ("get", "keys"))
            return await operation(*arguments)

        return counted


class MortalDelivery:
    """A `bus.api.Delivery`: a worker may die before it acknowledges."""

    def __init__(self, delivery: MemoryDelivery, counter: Counter) -> None:
        self._delivery = delivery
        self._counter = counter
        self.subject, self.data, self.headers = delivery.subject, delivery.data, delivery.headers
        self.attempt = delivery.attempt

    async def done(self) -> None:
        self._counter.count()
        await self._delivery.done()

    async def again(self, delay_s: float = 0.0) -> None:
        self._counter.count()
        await self._delivery.again(delay_s)

    async def working(self) -> None:
        self._counter.count()
        await self._delivery.working()
