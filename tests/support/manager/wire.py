"""The bus in the hands of its operator: it shows all, and lets a test change, hold, repeat or invent messages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import Any

from attestgate.bus import subjects
from attestgate.bus.api import Message
from attestgate.bus.memory.server import MemoryBus, MemoryDelivery, MemoryServer

Held = tuple[str, bytes]
Meddle = Callable[[str, bytes], Iterable[tuple[str, bytes]]]


class Clock:
    """A machine's wall clock, its own or `shared` by all; time passes where `at` is moved, and `set_by` sets it."""

    def __init__(self, shared: Clock | None = None) -> None:
        self._shared = shared
        self._passed = float(int(time.time()))
        self._set_by = 0.0

    @property
    def at(self) -> float:
        """Its time."""
        return self.steady() + self._set_by

    @at.setter
    def at(self, at: float) -> None:
        (self._shared or self)._passed += at - self.at

    def __call__(self) -> float:
        return self.at

    def steady(self) -> float:
        """The monotonic clock: nobody sets it."""
        return (self._shared or self)._passed

    def set_by(self, seconds: float) -> None:
        """Set the wall clock ahead (above 0) or back."""
        self._set_by += seconds


class Wire(MemoryServer):
    """The bus, as its operator sees and changes it. `meddle` turns each message into what is delivered in its place."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__(now)
        self.meddle: Meddle | None = None
        self.seen: list[tuple[str, bytes]] = []
        self._holds: list[tuple[str, asyncio.Future[Held]]] = []
        self.takers: dict[str, list[MemoryBus]] = {}

    def store(self, subject: str, data: bytes, headers: Any, message_id: str | None) -> None:
        self.seen.append((subject, data))
        for where, what in self._changed_by_operator(subject, data):
            if (where, what) == (subject, data):
                super().store(where, what, headers, message_id)
            else:
                self.inject(where, what)

    def deliver(self, message: Message) -> None:
        if not message.subject.startswith(f"{subjects.OUT}."):
            super().deliver(message)
            return
        self.seen.append((message.subject, message.data))
        for where, what in self._changed_by_operator(message.subject, message.data):
            self.inject(where, what)

    def inject(self, subject: str, data: bytes) -> None:
        """Put a message on the bus unseen by `meddle`."""
        if subject.startswith(f"{subjects.OUT}."):
            super().deliver(Message(subject, data))
        else:
            super().store(subject, data, {}, None)

    def connect(self) -> MemoryBus:
        """A new connection; workers take turns."""
        return TurnBus(self)

    def hold(self, pattern: str) -> asyncio.Future[Held]:
        """Keep back the next message on a subject: it is the result."""
        kept: asyncio.Future[Held] = asyncio.get_running_loop().create_future()
        self._holds.append((pattern, kept))
        return kept

    def said(self, subject: str) -> list[bytes]:
        """Everything that was ever sent on a subject."""
        return [data for where, data in self.seen if subjects.matches(subject, where)]

    def _changed_by_operator(self, subject: str, data: bytes) -> list[tuple[str, bytes]]:
        for pattern, kept in self._holds:
            if not kept.done() and subjects.matches(pattern, subject):
                kept.set_result((subject, data))
                return []
        return [(subject, data)] if self.meddle is None else list(self.meddle(subject, data))


class TurnBus(MemoryBus):
    """A connection whose consumers take turns, so that every worker gets its share."""

    async def consume(self, consumer: str, *, batch: int = 16) -> AsyncGenerator[MemoryDelivery]:
        wire = self._server
        assert isinstance(wire, Wire)
        takers = wire.takers.setdefault(consumer, [])
        takers.append(self)
        try:
            async with aclosing(super().consume(consumer, batch=batch)) as deliveries:
                while True:
                    while takers[0] is not self:
                        await wire.changed()
                    delivery = await anext(deliveries)
                    takers.append(takers.pop(0))
                    wire.notify()
                    yield delivery
        finally:
            takers.remove(self)
            wire.notify()
