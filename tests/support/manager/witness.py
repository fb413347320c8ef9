"""What happened in a deployment under test: its events as they come, its records as they stand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from attestgate.bus.api import Message
from attestgate.bus.memory.server import MemoryBus
from attestgate.manager.sessions.record import AppRecord, HostRecord, record_key
from attestgate.manager.sessions.states import State
from attestgate.schemas.base import parse_json
from attestgate.schemas.binding import Role
from attestgate.schemas.events import Event
from tests.support.manager.world import World
from tests.support.reasons import event_code

PATIENCE_S = 20.0
R = TypeVar("R", HostRecord, AppRecord)


@dataclass
class Witness:
    """Hears every event on `bus`, and opens records with the world's storage keys."""

    world: World
    events: list[Event] = field(default_factory=list, init=False)
    bus: MemoryBus = field(init=False)
    _news: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    async def seen(self, fits: Callable[[Event], bool], *, since: int = 0) -> Event:
        """The first event from `since` on that fits."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for event in self.events[since:]:
                    if fits(event):
                        return event
                await self._news.wait()

    async def until(self, kind: str, id: str, what: str, *, since: int = 0, session: str | None = None) -> Event:
        """The first event of a subject from `since` on."""
        try:
            return await self.seen(
                lambda e: (e.kind, e.subject, e.what) == (kind, id, what) and session in (None, e.session), since=since
            )
        except TimeoutError:
            happened = [f"{e.kind} {e.subject} {e.what} {json.dumps(e.data)[:300]}" for e in self.events[since:]]
            raise AssertionError(f"no event {kind} {id} {what} among:\n" + "\n".join(happened)) from None

    async def dropped(self, count: int) -> None:
        """Return once this many messages were dropped in all."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.dropped_codes()) < count:
                await self._news.wait()

    async def told(self, kind: str, id: str, what: str, times: int) -> None:
        """Return once an event of a subject has come so often."""
        async with asyncio.timeout(PATIENCE_S):
            while self.what(kind, id).count(what) < times:
                await self._news.wait()

    async def answered(self, kind: type[R], session: str) -> State:
        """A session's state once it is not waiting for the answer to a recheck."""
        async with asyncio.timeout(PATIENCE_S):
            while (state := (await self.record(kind, session)).state) is State.RECHECKING:
                await self._news.wait()
        return state

    def what(self, kind: str, id: str, *, since: int = 0) -> list[str]:
        """What happened to a subject, in order."""
        return [e.what for e in self.events[since:] if (e.kind, e.subject) == (kind, id)]

    def dropped_codes(self, *, since: int = 0) -> list[str]:
        """The first reason code of every dropped message."""
        return [event_code(e) for e in self.events[since:] if e.what == "dropped"]

    async def record(self, kind: type[R], session: str) -> R:
        """A session's record as it stands."""
        role: Role = "host" if kind is HostRecord else "app"
        key = record_key(role, session)
        entry = await self.bus.bucket("sessions").get(key)
        assert entry is not None
        assert entry.value is not None
        return self.world.vault.open(kind, "sessions", key, entry.value)

    async def records(self, kind: type[R]) -> list[R]:
        """All records of a kind, oldest first."""
        role = "host" if kind is HostRecord else "app"
        keys = [key for key in await self.bus.bucket("sessions").keys() if key.startswith(f"{role}.")]
        found = [await self.record(kind, key.removeprefix(f"{role}.")) for key in keys]
        return sorted(found, key=lambda record: record.created_at)

    async def _hear(self, message: Message) -> None:
        self.events.append(parse_json(Event, message.data, source=message.subject))
        self._news.set()
        self._news = asyncio.Event()
