"""Clocks that are set: whatever process's, however far, ahead or back, and right again. Afterwards an honest subject
passes again within two sessions, and one that has drifted meanwhile does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest

from attestgate.app_agent import main as app_agent
from attestgate.bus import layout, subjects
from attestgate.bus.agent.managers_clock import ManagersClock
from attestgate.bus.api import BusError, Entry
from attestgate.bus.memory.bucket import MemoryBucket
from attestgate.host_agent import main as host_agent
from attestgate.manager.handlers import clock_watch
from attestgate.manager.sessions.draft import KEPT_S
from attestgate.manager.sessions.record import AppRecord, HostRecord, waking
from attestgate.manager.sessions.states import State
from attestgate.schemas.admission import HostLease, Lease, Withdrawal
from attestgate.schemas.event_data import ClockStepped
from tests.support.manager.deployment import Deployment, deployed
from tests.support.manager.wire import Clock
from tests.support.manager.world import LISTS, World
from tests.support.reasons import event_code
from tests.support.threats import rows, threat

HOUR_S, DECADE_S = 3600, 3652 * 86_400
STEPS = [sign * seconds for seconds in (4, 30, HOUR_S, DECADE_S) for sign in (1, -1)]
PROCESSES: dict[str, Callable[[Deployment], list[Clock]]] = {
    "manager": lambda site: [site.managers_clock],
    "bus": lambda site: [site.bus_clock],
    "gateway": lambda site: [site.gateways_clock],
    "all": lambda site: [site.managers_clock, site.bus_clock, site.gateways_clock],
}
RETRY_S = 0.25
"""In it more than a second passes by the clocks of the test, so that few hellos are dropped."""


@pytest.fixture
async def site(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Deployment]:
    """h1 trusted and a1 admitted on it; nobody waits long in real time."""
    monkeypatch.setattr(clock_watch, "LOOK_S", 0.01)
    async with deployed(world, tmp_path) as site:
        for agent in (host_agent, app_agent):
            monkeypatch.setattr(agent, "ManagersClock", partial(ManagersClock, steady=site.clock.steady))
        await site.enrol_host()
        await site.enrol_app()
        await site.host(retry_s=RETRY_S)
        await site.until("host", "h1", "trusted")
        await site.app(retry_s=RETRY_S)
        await site.until("app", "a1", "admitted")
        await site.advance(2)  # a hello within a second of the last is dropped, and its agent waits in real time
        yield site


def set_by(site: Deployment, process: str, seconds: float) -> None:
    for clock in PROCESSES[process](site):
        clock.set_by(seconds)
    site.wire.tick()


async def live(site: Deployment, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
    """Let time pass; whether `until` holds before it is over."""
    end = site.clock() + seconds
    async with site.passing():
        while site.clock() < end and not until():
            await asyncio.sleep(0.005)
    return until()


def begun(site: Deployment, since: int) -> list[int]:
    """How many sessions h1 and a1 have begun."""
    return [site.what(kind, id, since=since).count("challenged") for kind, id in (("host", "h1"), ("app", "a1"))]


@threat(rows.CLOCK_SET)
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("seconds", STEPS)
async def test_an_honest_application_passes_again_within_two_sessions(
    site: Deployment, process: str, seconds: float
) -> None:
    set_by(site, process, seconds)
    await live(site, 25)
    since = len(site.events)
    set_by(site, process, -seconds)
    # What was leased before is over by then.
    await live(site, site.timing.lease_s)
    assert await live(site, 600, lambda: site.gateway.passes("a1"))
    assert max(begun(site, since)) <= 2


@threat(rows.CLOCK_SET)
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("seconds", STEPS)
async def test_an_application_of_a_host_that_drifted_meanwhile_is_out_for_good(
    site: Deployment, process: str, seconds: float
) -> None:
    set_by(site, process, seconds)
    await live(site, 25)
    site.measurement_list.write_bytes((LISTS / "drift.bin").read_bytes())
    set_by(site, process, -seconds)
    await live(site, site.timing.recheck_s + site.timing.lease_s)
    assert not site.gateway.passes("a1")
    states = {record.state for record in [*await site.records(HostRecord), *await site.records(AppRecord)]}
    assert not states & {State.TRUSTED, State.ADMITTED, State.RECHECKING}, "nor does any command say so"
    # Nor when the time comes that the wrong clock has leased.
    for there in (site.clock() + abs(seconds), site.clock() + abs(seconds) + site.timing.lease_s):
        for moment in range(-30, 31, 10):
            site.clock.at = max(site.clock.at, there + moment)
            site.wire.tick()
            await asyncio.sleep(0)
            assert not site.gateway.passes("a1")


@threat(rows.CLOCK_SET)
async def test_a_session_begun_ahead_of_the_clock_ends_with_withdrawals_that_outlive_its_leases(
    site: Deployment,
) -> None:
    await begin_ahead(site)
    now, held = int(site.gateways_clock()), site.gateway.lease_table
    ends = {key: lease.expires_at for key, lease in held.items() if isinstance(lease, Lease | HostLease)}
    leased = {key: ends[key] for key in ends if held.entry(key, now) is not None}
    assert len(leased) == 2
    since = len(site.events)
    set_by(site, "all", -HOUR_S)
    for kind, id in (("host", "h1"), ("app", "a1")):
        assert event_code(await site.until(kind, id, "expired", since=since)) == "session.future"
    await site.quiet()
    for key, end in leased.items():
        withdrawal = held[key]
        assert isinstance(withdrawal, Withdrawal)
        assert withdrawal.until > end > site.clock() + HOUR_S
        assert site.wire.buckets["admissions"]._leaves[key] >= withdrawal.until, "the bus keeps it for as long"


async def begin_ahead(site: Deployment) -> None:
    """Sessions that were begun while all clocks were an hour ahead, as they still are."""
    since = len(site.events)
    set_by(site, "all", HOUR_S)
    async with site.passing():  # an agent whose hello came within a second of its last waits ten seconds in real time
        await site.until("app", "a1", "admitted", since=since)


async def test_a_session_that_ended_ahead_of_the_clock_is_kept_no_longer_than_others(site: Deployment) -> None:
    await begin_ahead(site)
    for agent in site.agents:
        await agent.stop()
    await live(site, site.timing.lease_s + 10)
    assert all(record.over for record in await site.records(HostRecord))
    set_by(site, "all", -HOUR_S)

    def cleared() -> bool:
        kept = [key for key, entry in site.wire.buckets["sessions"]._entries.items() if entry.value is not None]
        return not any(key.startswith(("host.", "app.")) for key in kept)

    await live(site, 5)
    site.clock.at += KEPT_S + site.timing.skew_s + 5
    assert await live(site, 60, cleared)


@pytest.mark.parametrize("ahead_s", [7, 30, HOUR_S])
async def test_a_bus_whose_clock_is_ahead_for_good_wakes_in_time(site: Deployment, ahead_s: int) -> None:
    set_by(site, "bus", ahead_s)
    await site.quiet()
    due = {record.session: record.next_timer for record in await site.records(HostRecord)}
    since = len(site.events)
    rechecked = partial(site.what, "host", "h1", since=since)
    assert await live(site, 4 * site.timing.recheck_s, lambda: rechecked().count("rechecked") == 3)
    first = next(event for event in site.events[since:] if event.what == "rechecking" and event.kind == "host")
    assert first.session is not None
    assert first.at >= due[first.session]
    assert begun(site, since) == [0, 0]


async def test_a_waking_that_is_the_sessions_own_is_put_back_by_however_much_it_is_early(site: Deployment) -> None:
    for agent in site.agents:
        await agent.stop()
    (host,) = await site.records(HostRecord)
    deadline = subjects.deadline(host.session)
    del site.wire._schedules[deadline]
    site.wire.inject(subjects.due(deadline), waking(host))
    await site.quiet()
    assert [message.subject for message in site.wire.stored(layout.WORK.name)] == [subjects.due(deadline)]
    assert await live(site, site.timing.recheck_s + 2, lambda: "rechecking" in site.what("host", "h1"))


async def test_a_waking_from_before_the_sessions_last_step_does_not_stay(site: Deployment) -> None:
    """Put back again and again, each would come for as long as the session lives."""
    (host,) = await site.records(HostRecord)
    deadline = subjects.deadline(host.session)
    for said in (b"host 1", b"host", b"host x"):
        site.wire._schedules.pop(deadline, None)
        site.wire.inject(subjects.due(deadline), said)
        await site.quiet()
        assert site.wire.stored(layout.WORK.name) == []
        assert site.wire._schedules[deadline].at == host.next_timer


@threat(rows.CLOCK_SET)
async def test_a_step_is_told_and_everybody_is_asked_anew(site: Deployment) -> None:
    since = len(site.events)
    set_by(site, "manager", 4)
    told = await site.until("manager", "manager-0", "clock-stepped", since=since)
    assert ClockStepped.model_validate(told.data).by_s == 4
    for kind, id in (("host", "h1"), ("app", "a1")):
        await site.until(kind, id, "rechecked", since=since)
    assert begun(site, since) == [0, 0]


@threat(rows.NAMES_MADE_UP)
async def test_keys_that_no_manager_made_end_no_worker_that_looks_after_its_sessions(site: Deployment) -> None:
    """The bus can name anything, also what is no valid key, and so cannot be asked for."""
    bucket = site.bus.bucket("sessions")
    assert isinstance(bucket, MemoryBucket)
    for key in ("host.a:b", "host.ü", "app.a*", "host.ab", f"host.{'0' * 32}"):
        bucket._entries[key] = Entry(key, b"junk", 1)
    since = len(site.events)
    set_by(site, "manager", 4)
    for kind, id in (("host", "h1"), ("app", "a1")):
        await site.until(kind, id, "rechecked", since=since)
    assert not site.worker_died()


async def test_time_that_passes_is_no_step(site: Deployment) -> None:
    since = len(site.events)
    await live(site, 3 * site.timing.recheck_s)
    assert [event.what for event in site.events[since:] if event.kind == "manager"] == []


@threat(rows.WAKING_WITHHELD)
@pytest.mark.parametrize("first", [0, HOUR_S])
async def test_a_bus_whose_clock_was_set_back_wakes_nobody_and_the_worker_does(site: Deployment, first: int) -> None:
    """Its timers come later by as much, and so do messages that were put back while it was ahead."""
    set_by(site, "bus", first)
    await live(site, site.timing.recheck_s)
    since = len(site.events)
    set_by(site, "bus", -HOUR_S)
    rechecked = partial(site.what, "host", "h1", since=since)
    assert await live(site, 10 * site.timing.lease_s, lambda: rechecked().count("rechecked") == 4)
    assert begun(site, since)[0] == 0


@threat(rows.WAKING_WITHHELD)
async def test_a_worker_finds_a_session_that_another_left_overdue(site: Deployment) -> None:
    await site.kill_workers()
    set_by(site, "bus", -HOUR_S)
    site.clock.at += site.timing.recheck_s + site.timing.skew_s + 1
    since = len(site.events)
    site.timing = site.timing.model_copy(update={"recheck_s": 1})
    site.add_worker()
    await site.until("host", "h1", "rechecked", since=since)


async def test_a_step_while_the_bus_is_away_is_told_and_acted_upon_later(
    site: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    since = len(site.events)

    async def away(*_: object) -> list[str]:
        raise BusError("not connected")

    with monkeypatch.context() as bus:
        bus.setattr(MemoryBucket, "keys", away)
        set_by(site, "manager", 3)
        await site.until("manager", "manager-0", "clock-stepped", since=since)
        await asyncio.sleep(0.1)
        assert site.what("host", "h1", since=since) == []
    await site.until("host", "h1", "rechecked", since=since)
    assert site.what("manager", "manager-0", since=since) == ["clock-stepped"]


async def test_a_worker_that_begins_with_the_right_clock_ends_what_the_wrong_one_began(site: Deployment) -> None:
    await begin_ahead(site)
    await site.kill_workers()
    for agent in site.agents:
        await agent.stop()
    set_by(site, "all", -HOUR_S)
    since = len(site.events)
    site.timing = site.timing.model_copy(update={"recheck_s": 1})
    site.add_worker()
    for kind, id in (("host", "h1"), ("app", "a1")):
        assert event_code(await site.until(kind, id, "expired", since=since)) == "session.future"
    states = [record.state for record in await site.records(AppRecord)]
    assert State.ADMITTED not in states
