"""Deadlines: none is left of a session that has moved on, and one that comes too soon is heard in time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from attestgate.bus import layout, subjects
from attestgate.bus.api import BusError
from attestgate.bus.memory.bucket import MemoryBucket
from attestgate.manager.sessions.draft import KEPT_S
from attestgate.manager.sessions.record import AppRecord, HostRecord
from attestgate.manager.sessions.states import State
from attestgate.schemas.enrolment import Revoke
from tests.support.manager.deployment import Deployment
from tests.support.manager.world import LISTS
from tests.support.threats import rows, threat

Story = Callable[[Deployment], Awaitable[None]]


async def revoked(site: Deployment) -> None:
    await site.admitted()
    await site.order(Revoke(kind="host", id="h1", reason="test"))
    await site.until("app", "a1", "untrusted")


async def superseded(site: Deployment) -> None:
    host, _ = await site.admitted()
    await host.stop()
    await site.advance(2)
    await site.host()
    await site.until("host", "h1", "superseded")


async def expired(site: Deployment) -> None:
    for agent in await site.admitted():
        await agent.stop()
    for _ in range(5):
        await site.advance(10)


async def untrusted(site: Deployment) -> None:
    await site.admitted()
    site.measurement_list.write_bytes((LISTS / "drift.bin").read_bytes())
    await site.advance(10)
    await site.until("host", "h1", "untrusted")


async def refused(site: Deployment) -> None:
    site.measurement_list.write_bytes((LISTS / "drift.bin").read_bytes())
    await site.enrol_host()
    await site.host()
    await site.until("host", "h1", "refused")


def scheduled(site: Deployment) -> dict[str, int]:
    """What waits in the server: when, by session."""
    return {subject.rsplit(".", 1)[1]: waiting.at for subject, waiting in site.wire._schedules.items()}


async def records(site: Deployment) -> list[HostRecord | AppRecord]:
    return [*await site.records(HostRecord), *await site.records(AppRecord)]


@pytest.mark.parametrize("story", [revoked, superseded, expired, untrusted, refused])
async def test_of_a_session_that_is_over_only_its_clearing_away_is_left(site: Deployment, story: Story) -> None:
    await story(site)
    await site.quiet()
    there = await records(site)
    assert State[story.__name__.upper()] in [record.state for record in there]
    assert scheduled(site) == {record.session: record.next_timer for record in there}
    for record in there:
        assert not record.over or record.next_timer == record.deadline
    for agent in site.agents:
        await agent.stop()
    while there:
        await site.advance(KEPT_S + 60)
        there = await records(site)
    assert scheduled(site) == {}


async def trusted(site: Deployment) -> HostRecord:
    await site.enrol_host()
    await site.host()
    await site.until("host", "h1", "trusted")
    await site.quiet()
    (host,) = await site.records(HostRecord)
    return host


def fire(site: Deployment, host: HostRecord) -> None:
    """What a server does whose clock has come to the session's deadline."""
    subject = subjects.deadline(host.session)
    del site.wire._schedules[subject]
    site.wire.inject(subjects.due(subject), b"host")


async def test_a_bus_whose_clock_is_ahead_delays_no_recheck(site: Deployment) -> None:
    host = await trusted(site)
    await site.advance(host.next_timer - site.clock() - site.timing.skew_s)
    fire(site, host)
    await site.quiet()
    assert "rechecking" not in site.what("host", "h1")
    await site.advance(site.timing.skew_s)
    await site.until("host", "h1", "rechecked")


@threat(rows.WAKING_WITHHELD)
async def test_a_bus_that_is_full_for_minutes_loses_no_deadline(
    site: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = await trusted(site)
    for agent in site.agents:
        await agent.stop()

    async def full(*_: object) -> int:
        raise BusError("maximum bytes exceeded")

    with monkeypatch.context() as bus:
        bus.setattr(MemoryBucket, "update", full)
        for _ in range(60):
            await site.advance(5)
    await site.settled()
    await site.until("host", "h1", "expired", session=host.session)


@threat(rows.HOST_SILENT)
async def test_a_host_that_fell_silent_expires_also_when_every_worker_was_started_anew(site: Deployment) -> None:
    """Timers are kept by the bus, and a record's times are compared on each load: no worker has to remember."""
    host = await trusted(site)
    for agent in site.agents:
        await agent.stop()
    await site.kill_workers()
    assert host.lease_end is not None
    site.clock.at = host.lease_end + 1
    site.add_worker()
    site.wire.tick()
    await site.until("host", "h1", "expired", session=host.session)


@threat(rows.WAKING_WITHHELD)
async def test_a_waking_long_before_its_time_is_none(site: Deployment) -> None:
    host = await trusted(site)
    await site.advance(1)
    fire(site, host)
    await site.settled()
    assert site.wire.stored(layout.WORK.name) == []
    assert (await site.record(HostRecord, host.session)).state is State.TRUSTED
