"""Events of the worker itself, which belong to no session's outbox."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from secrets import token_hex

from pydantic import JsonValue

from attestgate.bus import subjects
from attestgate.bus.api import Bus
from attestgate.manager.events.observer import Observer
from attestgate.schemas.base import Reason
from attestgate.schemas.events import Event

Emit = Callable[..., Awaitable[None]]
"""Emitter.emit: kind, name and event name, then the event's data by keyword. Raises BusError."""


def plain(reasons: Iterable[Reason]) -> list[JsonValue]:
    """Reasons in the form that event data has."""
    return [reason.model_dump() for reason in reasons]


@dataclass(frozen=True)
class Emitter:
    """Publishes events that belong to no session's outbox."""

    bus: Bus
    source: str
    now: Callable[[], float] = time.time
    observer: Observer = field(default_factory=Observer)

    async def emit(self, kind: str, name: str, what: str, /, **data: JsonValue) -> None:
        """Publish one event. Raises BusError."""
        host, _, id = name.rpartition(".")
        event = Event(
            id=token_hex(16),
            kind=kind,
            subject=id,
            host=host or None,
            what=what,
            at=int(self.now()),
            source=self.source,
            data=data,
        )
        subject = subjects.event(kind, name, what)
        await self.bus.publish(subject, event.body(), message_id=event.id, headers=event.headers())
        self.observer.published(subject, event.body())
