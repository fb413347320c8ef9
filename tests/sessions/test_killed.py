"""A worker killed between any two of its operations on the bus: another comes to the same end."""

from __future__ import annotations

import asyncio
from collections import Counter as Counted
from pathlib import Path

import pytest

from attestgate.bus.api import BusError
from attestgate.bus.layout import LOG
from attestgate.manager.sessions.record import AppRecord, HostRecord
from attestgate.manager.sessions.states import State
from attestgate.schemas.audit import open_decision
from attestgate.schemas.enrolment import Revoke
from tests.support.audit.decisions import decided, said
from tests.support.manager.deployment import Deployment, deployed
from tests.support.manager.mortal import Counter, Killed, MortalBus
from tests.support.manager.world import LONG, World
from tests.support.threats import rows, threat

SLICES = 20
"""The operations are dealt out to so many tests, so that a failure names a few of them."""


async def story(site: Deployment) -> None:
    """Everything that a worker does: enrol, admit, recheck both, revoke the application."""
    await site.begin()
    await site.admitted()
    await site.recheck_both()
    await site.order(Revoke(kind="app", id="a1", reason="test"))
    await site.until("app", "a1", "revoked")
    await site.quiet()


async def all_entered(site: Deployment, *records: HostRecord | AppRecord) -> None:
    """Return once the log's stream has every decision of these: what could not be entered comes later."""
    stream = site.wire.streams[LOG.name]

    def entered() -> bool:
        found = Counted(open_decision(s.subject, s.data, site.world.managers).session for s in stream.items())
        return all(found[record.session] >= record.decisions for record in records)

    await site.pass_until(entered)


async def one_run(
    world: World, folder: Path, dies_before: int | None, fails: type[BaseException], then: int | None = None
) -> int:
    """The story with one worker that dies (or fails once), and what must be true at the end.

    With `then` its successor dies too, before its own operation of that number.
    """
    async with deployed(world, folder, timing=LONG, workers=0) as site:
        counter = Counter(dies_before, fails)
        site.run(MortalBus(site.wire.connect(), counter))
        path = asyncio.create_task(story(site))
        while not path.done():
            await asyncio.wait([path], timeout=0.02)
            if site.worker_died():
                site.run(MortalBus(site.wire.connect(), Counter(then, fails)))
                then = None
                # What the dead one had in hand is offered again after the consumer's `ack_wait`.
                site.clock.at += 31
                site.wire.tick()
            elif fails is BusError:
                site.clock.at += 0.5
                site.wire.tick()
        await path
        await site.settled()
        (host,) = await site.records(HostRecord)
        *tries, app = await site.records(AppRecord)
        # The order to recheck may come once more; an application that asked too early tries again.
        assert host.state in (State.TRUSTED, State.RECHECKING), dies_before
        assert app.state is State.REVOKED, dies_before
        assert all(one.state in (State.CHALLENGED, State.SUPERSEDED, State.EXPIRED) for one in tries), dies_before
        assert fails is BusError or not tries
        assert len({lease.serial for lease in site.gateway.leases}) == 1, dies_before
        assert not site.gateway.passes("a1")
        for kind, id, once in (("host", "h1", "granted"), ("host", "h1", "trusted"), ("app", "a1", "certified")):
            assert len({e.id for e in site.events if (e.kind, e.subject, e.what) == (kind, id, once)}) == 1
        await all_entered(site, host, app)
        decisions = await decided(site.bus, world, int(site.clock.at))
        assert said(decisions, host.session) == ["accepted"], dies_before
        assert said(decisions, app.session) == ["accepted", "issued", "admitted", "ended"], dies_before
        orders = [decision.fact.command for decision in decisions if decision.fact.did == "ordered"]
        assert orders == ["put-policy", "enrol", "enrol", "enrol", "revoke"], dies_before
        return counter.done


@threat(rows.WORKER_KILLED)
@pytest.mark.parametrize("part", range(SLICES))
async def test_killed_before_each_operation(world: World, tmp_path: Path, part: int) -> None:
    operations = await one_run(world, tmp_path / "alive", None, Killed)
    assert operations > 90
    half = operations // 2 + 1
    for dies_before in range(part, half, SLICES):
        # The successor takes the other half, so that each run has two deaths.
        await one_run(world, tmp_path / str(dies_before), dies_before, Killed, half)


@threat(rows.WORKER_KILLED)
@pytest.mark.parametrize("part", range(SLICES))
async def test_an_operation_fails_once(world: World, tmp_path: Path, part: int) -> None:
    """Every sixth one: a bus that cannot now is a smaller trouble than death, but reads fail too."""
    operations = await one_run(world, tmp_path / "alive", None, BusError)
    for fails_before in range(6 * part, operations, 6 * SLICES):
        await one_run(world, tmp_path / str(fails_before), fails_before, BusError)
