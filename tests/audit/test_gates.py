"""What grants waits for its entry in the decision log; what takes away waits for nothing, and is entered later."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from attestgate.bus import subjects
from attestgate.bus.api import BusError
from attestgate.bus.layout import ADMISSIONS, ENROLMENT, LOG, POLICIES, TREE
from attestgate.manager.audit.head import HEAD
from attestgate.manager.policy.policies import MANIFEST
from attestgate.manager.sessions.record import AppRecord, HostRecord
from attestgate.manager.sessions.states import State
from attestgate.schemas.admission import HostLease, Lease, open_posted
from attestgate.schemas.audit import (
    AcceptedFact,
    Decision,
    FailedFact,
    IssuedFact,
    Ordered,
    WithdrawnFact,
    open_decision,
)
from attestgate.schemas.enrolment import Action, Revoke
from tests.support.audit.decisions import decided, said
from tests.support.manager.deployment import Deployment, deployed
from tests.support.manager.mortal import Counter, Killed, MortalBus
from tests.support.manager.world import LONG, TIMING, World
from tests.support.reasons import event_code
from tests.support.threats import rows, threat

LATE_S = 61
"""Seconds after which an entry that is not in the tree is overdue."""


class LogStream:
    """The log's stream in the hands of a test: while it is `out` it takes nothing, and it may lose what it takes."""

    def __init__(self, site: Deployment) -> None:
        self._site = site
        self._stream = site.wire.streams[LOG.name]
        self._store = self._stream.store
        self._stream.store = self._asked  # type: ignore[method-assign, assignment]
        self.out = False
        self.loses = False
        self._refused = 0

    def _asked(self, *arguments: Any) -> bool:
        if self.out:
            self._refused += 1
            raise BusError("the log's stream takes nothing")
        return self.loses or self._store(*arguments)

    async def refused(self, times: int = 3) -> None:
        """Return once it has been asked in vain so often more: whoever waits for it comes again and again."""
        wanted = self._refused + times
        await self._site.pass_until(lambda: self._refused >= wanted)

    def entries(self) -> list[Decision]:
        """What it holds."""
        managers = self._site.world.managers
        return [open_decision(stored.subject, stored.data, managers) for stored in self._stream.items()]

    def facts(self, kind: type[Any]) -> list[Any]:
        """What it says of a kind."""
        return [decision.fact for decision in self.entries() if isinstance(decision.fact, kind)]

    async def has(self, kind: type[Any], times: int = 1) -> None:
        """Return once it holds so many entries of a kind."""
        await self._site.pass_until(lambda: len(self.facts(kind)) >= times)


@pytest.fixture
def stream(site: Deployment) -> LogStream:
    return LogStream(site)


async def leases(site: Deployment) -> list[type[Any]]:
    """The kinds of the leases that were ever given, as they stand."""
    bucket = site.bus.bucket(ADMISSIONS.name)
    found = []
    for key in await bucket.keys():
        entry = await bucket.get(key)
        if entry is not None and entry.value is not None and key.split(".")[0] in ("cert", "host"):
            found.append(type(open_posted(key, entry.value, site.world.managers)))
    return found


@threat(rows.LOG_STANDS_STILL)
async def test_a_host_is_trusted_once_its_entry_is_stored(site: Deployment, stream: LogStream) -> None:
    await site.enrol_host()
    stream.out = True
    await site.host()
    await stream.refused()
    assert await leases(site) == []
    assert "trusted" not in site.what("host", "h1")
    assert not site.wire.said("attest.v1.out.host.h1.accepted")
    stream.out = False
    async with site.passing():
        await site.until("host", "h1", "trusted")
    assert await leases(site) == [HostLease]


@threat(rows.LOG_STANDS_STILL)
async def test_a_certificate_waits_for_its_entry(site: Deployment, stream: LogStream) -> None:
    await site.trusted()
    held = site.wire.hold("attest.v1.in.app.h1.a1.colocation_proof")
    await site.app()
    proof = await held
    stream.out = True
    site.wire.inject(*proof)
    await stream.refused()
    assert await leases(site) == [HostLease]
    assert not site.wire.said("attest.v1.out.app.h1.a1.certificate")
    stream.out = False
    async with site.passing():
        await site.until("app", "a1", "admitted")
    assert len(stream.facts(IssuedFact)) == 1


@threat(rows.LOG_STANDS_STILL)
@pytest.mark.parametrize("what", ["an enrolment", "a policy"])
async def test_an_order_that_grants_is_in_force_once_its_entry_is_stored(
    site: Deployment, stream: LogStream, what: str
) -> None:
    action: Action = site.world.policies.command(site.world.author, version=2)
    bucket, key = site.bus.bucket(POLICIES.name), MANIFEST
    if what == "an enrolment":
        action, bucket, key = site.host_enrolment("h1", "machine-a"), site.bus.bucket(ENROLMENT.name), "host.h1"
    before = await bucket.get(key)
    stream.out = True
    since = len(site.events)
    ordered = asyncio.create_task(site.order(action))
    await stream.refused()
    assert await bucket.get(key) == before
    assert site.what("op", "operator", since=since) == []
    stream.out = False
    async with site.passing():
        assert (await ordered).what == "applied"
    assert await bucket.get(key) != before


@threat(rows.LOG_STANDS_STILL)
@pytest.mark.parametrize("trusted", [False, True])
async def test_a_revocation_waits_for_no_entry(site: Deployment, stream: LogStream, trusted: bool) -> None:
    """Also of a session whose trust was never sent, since that waits for its own."""
    await site.enrol_host()
    stream.out = not trusted
    await site.host()
    if trusted:
        await site.until("host", "h1", "trusted")
        stream.out = True
    else:
        await stream.refused()
    assert (await site.order(Revoke(kind="host", id="h1", reason="test"))).what == "applied"
    await site.until("host", "h1", "revoked")
    assert HostLease not in await leases(site)
    stream.out = False
    await stream.has(Ordered, 4)
    log = await decided(site.bus, site.world, int(site.clock()))
    (record,) = [record for record in await site.records(HostRecord) if record.state is State.REVOKED]
    assert said(log, record.session) == ["accepted", "ended"]


@threat(rows.LOG_STANDS_STILL)
async def test_while_it_stands_still_nothing_new_is_granted_and_nothing_lapses(world: World, tmp_path: Path) -> None:
    timing = TIMING.model_copy(update={"certificate_s": 100})
    async with deployed(world, tmp_path, timing=timing) as site:
        await site.admitted()
        await site.enrol_host("h2", "machine-b")
        await site.enrol_app("a2", "h1")
        stream, since = LogStream(site), len(site.events)
        stream.out = True
        await site.order(Revoke(kind="app", id="a2", reason="its entry cannot be stored"))
        for _ in range(LATE_S // timing.recheck_s + 1):
            await site.next_rechecks()
        await site.seen(lambda e: e.what == "log-overdue", since=since)
        assert "renewed" in site.what("app", "a1", since=since)
        await site.next_rechecks()
        refused = await site.order(site.app_enrolment("a2", "h1"))
        assert (refused.what, event_code(refused)) == ("refused", "log.standing-still")
        await site.host("h2", "machine-b")
        refused = await site.until("host", "h2", "dropped", since=since)
        assert event_code(refused) == "log.standing-still"
        stream.out = False
        await stream.has(WithdrawnFact)
        async with site.passing():
            await site.until("host", "h2", "trusted")
        log = await decided(site.bus, site.world, int(site.clock()))
        (app,) = await site.records(AppRecord)
        renewal = ["issued", "admitted", "withdrawn"]
        assert said(log, app.session) == ["accepted", "issued", "admitted", *renewal]


@threat(rows.LOG_STANDS_STILL)
async def test_a_head_that_does_not_fit_stops_what_is_new_only(site: Deployment) -> None:
    await site.admitted()
    head = await site.bus.bucket(TREE.name).get(HEAD)
    assert head is not None
    await site.bus.bucket(TREE.name).put(HEAD, b"no head")
    await site.seen(lambda e: e.what == "log-inconsistent")
    refused = await site.order(site.app_enrolment("a2", "h1"))
    assert (refused.what, event_code(refused)) == ("refused", "log.standing-still")
    await site.recheck_both()
    assert (await site.order(Revoke(kind="app", id="a1", reason="test"))).what == "applied"
    await site.until("app", "a1", "revoked")


@threat(rows.LOG_LOST)
async def test_an_entry_that_the_bus_has_lost_is_handed_in_again(site: Deployment, stream: LogStream) -> None:
    before = len(stream.facts(Ordered))
    stream.loses = True
    await site.enrol_host()
    stream.loses = False
    assert len(stream.facts(Ordered)) == before
    await site.advance(LATE_S)
    await site.seen(lambda e: e.what == "log-overdue")
    await stream.has(Ordered, before + 1)
    assert [fact.about for fact in stream.facts(Ordered)][-1] == "host/h1"
    async with site.passing():
        while (await site.order(site.app_enrolment("a1", "h1"))).what != "applied":
            pass  # until it is in the tree


@threat(rows.LOG_STANDS_STILL)
async def test_what_was_granted_was_entered_wherever_a_worker_is_killed(world: World, tmp_path: Path) -> None:
    """Whoever looks at any moment finds no enrolment, no lease and no certificate that the log does not have."""
    number = 0
    while await _killed_before(world, tmp_path / str(number), number):
        number += 3
    assert number > 20


async def _killed_before(world: World, folder: Path, number: int) -> bool:
    """Whether a worker still died before its operation of this number, on the way to an admission."""
    async with deployed(world, folder, timing=LONG, workers=0) as site:
        stream = LogStream(site)
        site.run(MortalBus(site.wire.connect(), Counter(number, Killed)))
        path = asyncio.create_task(_all_granted(site))
        while not path.done() and not site.worker_died():
            await asyncio.wait([path], timeout=0.02)
        died = not path.done()
        path.cancel()
        given, enrolled = await leases(site), await site.bus.bucket(ENROLMENT.name).keys()
        assert given.count(HostLease) <= len(stream.facts(AcceptedFact))
        assert given.count(Lease) <= len(stream.facts(IssuedFact))
        assert len(enrolled) <= len([fact for fact in stream.facts(Ordered) if fact.command == "enrol"])
        return died


async def _all_granted(site: Deployment) -> None:
    await site.begin()
    await site.admitted()


class TestFailed:
    """An order that was entered, and never took effect."""

    async def killed_after_its_entry(self, site: Deployment, stream: LogStream) -> bytes:
        """The one worker dies between the entry of an enrolment and its effect; the command."""
        await site.kill_workers()
        counter = Counter(None)
        site.run(MortalBus(site.wire.connect(), counter), "manager-0")
        command = site.command(site.host_enrolment("h1", "machine-a"))
        kept, stream._stream.store = stream._stream.store, self._dies_after(stream, counter)  # type: ignore[method-assign]
        await site.bus.publish("attest.v1.op.operator.enrol", command)
        async with asyncio.timeout(20):
            while not site.worker_died():
                await asyncio.sleep(0)
        stream._stream.store = kept  # type: ignore[method-assign]
        assert [fact.about for fact in stream.facts(Ordered)][-1] == "host/h1"
        assert "host.h1" not in await site.bus.bucket(ENROLMENT.name).keys()
        return command

    @staticmethod
    def _dies_after(stream: LogStream, counter: Counter) -> Any:
        def store(subject: str, *arguments: Any) -> bool:
            if subject.startswith(f"{subjects.LOG}.op."):
                counter.die_in(0)
            return stream._store(subject, *arguments)

        return store

    async def test_the_next_worker_completes_it(self, site: Deployment, stream: LogStream) -> None:
        await self.killed_after_its_entry(site, stream)
        since = len(site.events)
        site.add_worker()
        await site.advance(31)
        await site.until("op", "operator", "applied", since=since)
        assert stream.facts(FailedFact) == []

    async def test_or_says_that_it_failed(self, site: Deployment, stream: LogStream) -> None:
        command = await self.killed_after_its_entry(site, stream)
        since = len(site.events)
        site.add_worker()
        await site.advance(LATE_S)
        refused = await site.until("op", "operator", "refused", since=since)
        assert event_code(refused) == "command.expired"
        assert [fact.message for fact in stream.facts(FailedFact)] == [refused.data["message"]]
        # Once, however often it comes.
        await site.send_command(command)
        assert len(stream.facts(FailedFact)) == 1

    async def test_a_repeat_of_what_took_effect_has_not_failed(self, site: Deployment, stream: LogStream) -> None:
        old = site.command(site.host_enrolment("h1", "machine-a"))
        assert (await site.send_command(old)).what == "applied"
        await site.enrol_app()
        await site.advance(LATE_S)
        assert event_code(await site.send_command(old)) == "command.expired"
        await site.enrol_host()
        assert event_code(await site.send_command(old)) == "command.expired"
        assert stream.facts(FailedFact) == []
