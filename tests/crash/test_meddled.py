"""The smaller set on the real bus: what agents say and hear comes twice, swapped, or past its deadline."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from attestgate.bus import subjects
from attestgate.bus.api import BusError, Message
from attestgate.bus.auth import credentials
from attestgate.bus.client.nats import NatsBus
from attestgate.bus.server.embedded import EmbeddedServer
from attestgate.schemas.base import unpack
from attestgate.schemas.events import Event
from attestgate.schemas.messages import Sealed
from attestgate.schemas.settings import Timing
from tests.support.manager.fleet import CALM, Fleet
from tests.support.manager.world import World
from tests.support.reasons import event_code
from tests.support.threats import rows, threat

pytestmark = pytest.mark.stack
WITHIN_S = 60.0
HASTY = Timing(lease_s=600, recheck_s=300, evidence_window_s=2, skew_s=0, certificate_s=3600)
DELIVERED = subjects.inbound("host", "h1", "key_delivered")
EVIDENCE = subjects.inbound("host", "h1", "evidence")


class Connection:
    """An agent's, in the hands of the bus's operator. What it says goes by way of `meddle`, if there is one."""

    def __init__(self, bus: NatsBus, times: int) -> None:
        self._bus = bus
        self._times = times
        self.meddle: Callable[[str, bytes], Awaitable[bool]] | None = None

    async def publish(self, subject: str, data: bytes, **more: Any) -> None:
        if self.meddle is not None and await self.meddle(subject, data):
            return
        await self._bus.publish(subject, data, **more)
        for _ in range(self._times - 1):
            with contextlib.suppress(BusError):  # its subject is full
                await self._bus.publish(subject, data, **more)

    async def listen(self, subject: str, handler: Callable[[Message], Awaitable[None]]) -> Any:
        async def hear(message: Message) -> None:
            for _ in range(self._times):
                await handler(message)

        return await self._bus.listen(subject, hear)

    async def flush(self) -> None:
        await self._bus.flush()


class Meddled(Fleet):
    """A fleet whose agents' connections are kept: what they say and hear comes so many times."""

    times = 1

    async def join(self, role: str, name: str) -> Any:
        bus = await super().join(role, name)
        if role not in ("host", "app"):
            return bus
        self.agents = {**getattr(self, "agents", {}), name: Connection(bus, self.times)}
        return self.agents[name]


@contextlib.asynccontextmanager
async def meddled(tmp_path: Path, timing: Timing = CALM) -> AsyncIterator[Meddled]:
    world = await asyncio.to_thread(World, tmp_path / "world")
    async with (
        EmbeddedServer(tmp_path / "bus", credentials.load(world.keys / "bus")) as server,
        contextlib.AsyncExitStack() as stack,
    ):
        fleet = Meddled(world, server.url, tmp_path / "fleet", timing)
        await stack.enter_async_context(fleet)
        for number in range(2):
            await fleet.worker(f"manager-{number}")
        await fleet.gateway()
        await fleet.enrol_host("h1")
        yield fleet


async def two_applications_are_admitted(fleet: Meddled) -> None:
    for app in ("a1", "a2"):
        await fleet.enrol_app(app, "h1")
        await fleet.app(app, "h1")
    for app in ("a1", "a2"):
        await fleet.until("app", app, "admitted", WITHIN_S)
    events = {event.id: event for event in fleet.events}.values()
    for app in ("a1", "a2"):
        told = [event for event in events if (event.subject, event.what) == (app, "certified")]
        assert len({event.session for event in told}) == len(told), "one certificate a session"
    assert sum((event.subject, event.what) == ("h1", "granted") for event in events) == 1
    assert not [event for event in events if event.what == "quarantined"]
    assert fleet.failed() == []


@threat(rows.MESSAGE_REORDERED)
async def test_every_message_twice(tmp_path: Path) -> None:
    async with meddled(tmp_path) as fleet:
        fleet.times = 2
        await fleet.host("h1")
        await fleet.until("host", "h1", "trusted", WITHIN_S)
        await two_applications_are_admitted(fleet)


@threat(rows.MESSAGE_REORDERED)
async def test_neighbours_swapped(tmp_path: Path) -> None:
    """The host's first two answers: the second one is stored before the first."""
    async with meddled(tmp_path) as fleet:
        await fleet.host("h1")
        await fleet.until("host", "h1", "trusted", WITHIN_S)
        connection, kept = fleet.agents["h1"], list[bytes]()

        async def swap(subject: str, data: bytes) -> bool:
            if subject != DELIVERED or len(kept) == 2:
                return False
            kept.append(data)
            if len(kept) == 2:
                for late in reversed(kept):
                    await connection._bus.publish(subject, late)
            return True

        connection.meddle = swap
        await two_applications_are_admitted(fleet)
        assert len(kept) == 2


async def test_evidence_past_its_deadline_is_worth_nothing_and_the_next_try_is(tmp_path: Path) -> None:
    async with meddled(tmp_path, HASTY) as fleet:
        kept: asyncio.Queue[bytes] = asyncio.Queue()

        async def keep_first(subject: str, data: bytes) -> bool:
            if subject != EVIDENCE or fleet.agents["h1"].meddle is None:
                return False
            fleet.agents["h1"].meddle = None
            kept.put_nowait(data)
            return True

        await fleet.host("h1")
        fleet.agents["h1"].meddle = keep_first
        late = await kept.get()
        await fleet.until("host", "h1", "expired", WITHIN_S)
        await fleet.agents["h1"]._bus.publish(EVIDENCE, late)
        assert event_code(await dropped(fleet, late)) == "session.move"
        await fleet.until("host", "h1", "trusted", WITHIN_S)
        session = unpack(Sealed, late).session
        told = {event.id: event.what for event in fleet.events if event.session == session}
        assert list(told.values()) == ["challenged", "expired"]


async def dropped(fleet: Meddled, data: bytes) -> Event:
    """The event that tells of a dropped message."""
    message, news = hashlib.sha256(data).hexdigest(), fleet._news["host", "h1", "dropped"]
    async with asyncio.timeout(WITHIN_S):
        while True:
            for event in fleet.events:
                if event.what == "dropped" and event.data["message"] == message:
                    return event
            news.clear()
            await news.wait()
