"""A worker killed between any two operations while a newcomer takes an id over, or a certificate is renewed.

Some of the operations are taken here; all of them with ATTESTGATE_CRASH=all.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from attestgate.manager.sessions.record import AppRecord, HostRecord
from attestgate.manager.sessions.states import State
from attestgate.schemas.admission import Lease, Withdrawal
from attestgate.schemas.settings import Timing
from tests.support.manager.deaths import Doomed, doomed
from tests.support.manager.deployment import Agent, Deployment
from tests.support.manager.world import LONG, World
from tests.support.threats import rows, threat

STEP = 1 if os.environ.get("ATTESTGATE_CRASH") == "all" else 14
QUICK_S = 600
"""Agents say nothing again by themselves: what is sent once more is the workers' doing."""
RENEWED_SOON = Timing(lease_s=3600, recheck_s=1800, evidence_window_s=600, skew_s=5, certificate_s=6000)
"""Due once less than lease and period together are left: ten minutes after the certificate was made."""
Story = Callable[[Deployment, Agent, Agent], Coroutine[Any, Any, None]]
Check = Callable[[Deployment, Doomed], None]


async def enrolled(site: Deployment) -> tuple[Agent, Agent]:
    await site.enrol_host()
    await site.enrol_app()
    host = await site.host(retry_s=QUICK_S)
    await site.until("host", "h1", "trusted")
    app = await site.app(retry_s=QUICK_S)
    await site.until("app", "a1", "admitted")
    return host, app


async def host_is_taken_over(site: Deployment, host: Agent, app: Agent) -> None:
    """The host's agent starts anew; its application has to prove again."""
    await host.stop()
    site.clock.at += 2
    since = len(site.events)
    await site.host(retry_s=QUICK_S)
    await site.until("host", "h1", "superseded", since=since)
    await site.until("host", "h1", "trusted", since=since)
    await site.until("app", "a1", "untrusted", since=since)
    await app_is_taken_over(site, host, app)


async def app_is_taken_over(site: Deployment, host: Agent, app: Agent) -> None:
    """The application's agent starts anew."""
    await app.stop()
    site.clock.at += 2
    since = len(site.events)
    await site.app(retry_s=QUICK_S)
    await site.until("app", "a1", "admitted", since=since)


async def certificate_is_renewed(site: Deployment, host: Agent, app: Agent) -> None:
    """A recheck brings the next certificate; the one after it lets the first go."""
    site.clock.at += QUICK_S + 60
    for _ in range(2):
        await site.recheck("app", "a1")
        await site.until("app", "a1", "renewed")


def lived(world: World, folder: Path, story: Story, timing: Timing, deaths: tuple[int, ...], check: Check) -> int:
    """One run: how many operations the story took, and what must be true after it."""
    with doomed(world, folder, timing) as one:
        site = one.site
        agents = one.live(enrolled(site))
        before = one.counter.done
        one.live(story(site, *agents), deaths)
        one.live(site.settled())
        assert bool(one.deaths) == bool(deaths)
        assert site.dropped_codes() == [], deaths
        assert site.gateway.passes("a1"), deaths
        events = {event.id: event for event in site.events}.values()
        times = Counter((event.session, event.what) for event in events)
        for what in ("granted", "trusted", "proven", "certified", "admitted", "renewing", "renewed", "superseded"):
            assert all(count == 1 for (_, told), count in times.items() if told == what), (deaths, what)
        check(site, one)
        return one.counter.done - before


def taken_over(site: Deployment, one: Doomed) -> None:
    """One live session an id, the older ones at their end, one certificate leased."""
    for kind, live in ((HostRecord, State.TRUSTED), (AppRecord, State.ADMITTED)):
        *older, newest = one.live(site.records(kind))  # type: ignore[type-var]
        assert newest.state is live
        assert all(record.state in (State.SUPERSEDED, State.UNTRUSTED) for record in older)
    assert len({lease.serial for lease in site.gateway.leases}) == 2
    assert len([s for s in site.gateway.lease_table.values() if isinstance(s, Lease)]) == 1


def renewed(site: Deployment, one: Doomed) -> None:
    """Two certificates in all, the first one withdrawn, the second one in use."""
    (record,) = one.live(site.records(AppRecord))
    first, second = dict.fromkeys(lease.serial for lease in site.gateway.leases)
    assert (record.ready, record.serial, record.retiring) == (second, second, None)
    assert isinstance(site.gateway.lease_table[f"cert.{first}"], Withdrawal)


def killed_at_each(world: World, folder: Path, story: Story, timing: Timing, check: Check) -> None:
    operations = lived(world, folder / "alive", story, timing, (), check)
    assert operations > 20
    for number in range(0, operations, STEP):
        lived(world, folder / str(number), story, timing, (number, 9), check)


@threat(rows.WORKER_KILLED)
def test_killed_while_a_host_is_taken_over(world: World, tmp_path: Path) -> None:
    killed_at_each(world, tmp_path, host_is_taken_over, LONG, taken_over)


@threat(rows.WORKER_KILLED)
def test_killed_while_an_application_is_taken_over(world: World, tmp_path: Path) -> None:
    killed_at_each(world, tmp_path, app_is_taken_over, LONG, taken_over)


@threat(rows.WORKER_KILLED)
def test_killed_while_a_certificate_is_renewed(world: World, tmp_path: Path) -> None:
    killed_at_each(world, tmp_path, certificate_is_renewed, RENEWED_SOON, renewed)
