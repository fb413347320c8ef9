"""A stolen credential of each role sends all it can, while an honest host and its application enrol and are rechecked.

Garbage and near misses, small and of the largest size, on every subject that the credential may publish to, until the
honest are through. Then nothing waits, and the worker has kept nothing of it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import cycle
from pathlib import Path

import pytest

from attestgate.bus import layout, subjects
from attestgate.bus.api import BusError
from attestgate.bus.auth.credentials import load
from attestgate.bus.auth.permissions import MANAGER, NAME, ROLES, VIEWER
from attestgate.bus.client.depth import waiting
from attestgate.bus.client.nats import NatsBus
from attestgate.bus.server.embedded import EmbeddedServer
from attestgate.schemas.base import MAX_MESSAGE
from attestgate.schemas.enrolment import RecheckNow
from attestgate.schemas.limits import INBOUND
from tests.support.bus.everything import name_of
from tests.support.hostile_messages import costliest, hello
from tests.support.manager.fleet import Fleet
from tests.support.manager.world import World
from tests.support.threats import rows, threat

pytestmark = pytest.mark.stack

THIEVES = [role for role in ROLES if role != MANAGER]
ROUNDS, LARGE_EVERY = 40, 8
"""Different rounds, which are repeated; and in how many of them there is one with the largest messages."""
WITHIN_S = 60.0
"""Patience with a busy machine; nothing is timed."""
LARGE = {"host": len(subjects.LISTS), "operator": len(subjects.POLICY_COMMANDS)}
"""Consumers that take messages of the largest size, at most, by the role that sends them."""


def kept(role: str) -> int:
    """Most bytes that this process may have grown by: not by what was sent, which has no end, but by a message of each
    consumer, which the worker lets go when the next one comes, and one on its way at each end."""
    return 4 * layout.MIB + (LARGE[role] + 2) * MAX_MESSAGE if role in LARGE else 4 * layout.MIB


@threat(rows.FLOOD, rows.VIEWER_FLOODS)
@pytest.mark.parametrize("role", THIEVES)
async def test_a_flood_with_one_stolen_credential_keeps_nobody_out(role: str, world: World, tmp_path: Path) -> None:
    async with (
        EmbeddedServer(tmp_path / "bus", load(world.keys / "bus")) as server,
        Fleet(world, server.url, tmp_path / "fleet") as fleet,
    ):
        worker = await fleet.worker("manager-1")
        await fleet.gateway()
        await fleet.enrol_host("thief")
        await fleet.enrol_app("thief", "thief")
        manager, thief = await fleet.join(MANAGER, "looks"), await fleet.join(role, name_of(role, "thief"))
        before = await settled(manager)
        async with flooding(thief, role) as sent:
            await enrol_and_recheck(fleet)
        assert sent
        assert await settled(manager) - before < kept(role)
        assert fleet.failed() == []
        assert worker.counts["quarantined"] == 0


async def enrol_and_recheck(fleet: Fleet) -> None:
    await fleet.enrol_host("h1")
    await fleet.enrol_app("a1", "h1")
    await fleet.host("h1")
    await fleet.until("host", "h1", "trusted", WITHIN_S)
    await fleet.app("a1", "h1")
    await fleet.until("app", "a1", "admitted", WITHIN_S)
    await fleet.order(RecheckNow(kind="host", id="h1"))
    await fleet.until("host", "h1", "rechecked", WITHIN_S)
    await fleet.order(RecheckNow(kind="app", id="a1"))
    await fleet.until("app", "a1", "rechecked", WITHIN_S)


@asynccontextmanager
async def flooding(thief: NatsBus, role: str) -> AsyncIterator[list[int]]:
    """Send within, and once before: how much was sent, in messages of each round."""
    sent: list[int] = []
    begun, enough = asyncio.Event(), asyncio.Event()
    rounds = [list(of_a_viewer() if role == VIEWER else of_a_publisher(role, number)) for number in range(ROUNDS)]

    async def flood() -> None:
        for messages in cycle(rounds):
            for subject, data in messages:
                if enough.is_set():
                    return
                with suppress(BusError):  # its room is full
                    await publish(thief, role, subject, data)
            await thief.flush()
            sent.append(len(messages))
            begun.set()

    task = asyncio.create_task(flood())
    try:
        await begun.wait()
        yield sent
    finally:
        enough.set()
        await task


async def publish(thief: NatsBus, role: str, subject: str, data: bytes) -> None:
    if role == VIEWER:
        await thief.client.publish(subject, data, reply=thief.client.new_inbox())
    else:
        await thief.publish(subject, data)


def of_a_publisher(role: str, number: int) -> Iterator[tuple[str, bytes]]:
    """A round: on each subject something small, something costly, now and then the largest that there is."""
    for pattern in ROLES[role].publish:
        subject = pattern.replace(NAME, name_of(role, "thief"))
        step = subject.rpartition(".")[2]
        largest = INBOUND.get((role, step), ROLES[role].max_payload)
        yield subject, b"garbage"
        if (role, step) in INBOUND and largest <= 64 * layout.KIB:
            shapes = list(costliest(role, step))
            yield subject, shapes[number % len(shapes)][1]
        if number % LARGE_EVERY == 0:
            yield subject, bytes(largest)
        if step == "hello":
            yield subject, hello(role, name_of(role, "thief"), number.to_bytes(32, "big"))


def of_a_viewer() -> Iterator[tuple[str, bytes]]:
    """A round: each call that it may make, with garbage and with a page of everything, and consumers without end."""
    page = json.dumps({"seq": 1, "next_by_subj": ">", "batch": 256}).encode()
    for subject in ROLES[VIEWER].may_publish():
        concrete = subject.replace(NAME, "thief").replace("*", "x").replace(">", "x.y")
        yield concrete, b"garbage"
        if "GET" in subject:
            yield concrete, page


async def settled(manager: NatsBus) -> int:
    """Bytes in use by this process once nothing waits for a worker."""
    async with asyncio.timeout(WITHIN_S):
        while any((await waiting(manager)).values()):
            continue
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@pytest.fixture(autouse=True)
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()
