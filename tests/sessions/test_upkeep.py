"""What an operator does on the side: messages put aside, storage keys rotated, and a sender that is too fast."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import AsyncMock

import pytest

from attestgate.bus import layout, subjects
from attestgate.bus.api import BusError
from attestgate.manager.attestation.verifier import Verifier
from attestgate.manager.handlers.rate_limit import Limiter
from attestgate.manager.handlers.worker import ATTEMPTS, TOO_OFTEN
from attestgate.manager.records.outbox import Outbox
from attestgate.manager.records.record_cipher import RecordCipher, epoch_of
from attestgate.manager.records.storage_keys import StorageKeyFile, add_epoch, destroy_old_epochs, seal_again
from attestgate.manager.sessions.draft import KEPT_S
from attestgate.manager.sessions.record import AppRecord, HostRecord
from attestgate.schemas.base import Reason, Refusal, unpack
from attestgate.schemas.enrolment import Drop, Enrol, HostEnrolment, Retry, Revoke
from attestgate.schemas.quarantine import LIMIT, Quarantined
from tests.support.manager.deployment import Deployment, deployed, order_subject
from tests.support.manager.witness import PATIENCE_S
from tests.support.manager.world import LONG, OPERATOR, World
from tests.support.reasons import event_code
from tests.support.threats import rows, threat

BEGUN = 2
"""Commands that set a deployment up: its policy, its gateway."""


async def _poisoned(site: Deployment, monkeypatch: pytest.MonkeyPatch) -> str:
    """A host's evidence that makes every worker fail; its name in quarantine."""

    async def fail(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    await site.enrol_host()
    with monkeypatch.context() as broken:
        broken.setattr(Verifier, "host", fail)
        await site.host()
        async with asyncio.timeout(PATIENCE_S):
            while not site.wire.said(subjects.inbound("host", "h1", "evidence")):
                await site.wire.changed()
        await site.quiet()
        for _ in range(ATTEMPTS):
            await site.advance(1)
        put = await site.until("host", "h1", "quarantined")
    assert event_code(put) == "worker.fault"
    return str(put.data["message"])


async def _kept(site: Deployment, name: str) -> Quarantined | None:
    entry = await site.bus.bucket("quarantine").get(f"attest.v1.in.host.h1.{name}")
    return None if entry is None or entry.value is None else unpack(Quarantined, entry.value, limit=LIMIT)


@threat(rows.MESSAGE_POISONED)
async def test_a_message_that_makes_workers_fail_is_put_aside(
    site: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await _poisoned(site, monkeypatch)
    kept = await _kept(site, name)
    assert kept is not None
    assert (kept.subject, kept.attempts) == (subjects.inbound("host", "h1", "evidence"), ATTEMPTS)
    assert hashlib.sha256(kept.subject.encode() + b"\0" + kept.data).hexdigest() == name


@threat(rows.MESSAGE_POISONED)
async def test_a_message_put_aside_can_be_tried_again(site: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    name = await _poisoned(site, monkeypatch)
    answer = await site.order(Retry(message=name))
    assert answer.what == "applied"
    await site.until("host", "h1", "trusted")
    assert await _kept(site, name) is None


async def test_a_message_that_fails_again_stays(site: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    name = await _poisoned(site, monkeypatch)

    async def fail(*_: object) -> None:
        raise RuntimeError("still a fault of ours")

    monkeypatch.setattr(Verifier, "host", fail)
    answer = await site.order(Retry(message=name))
    assert (answer.what, event_code(answer)) == ("refused", "quarantine.again")
    assert await _kept(site, name) is not None


@threat(rows.MESSAGE_POISONED)
async def test_a_message_put_aside_can_be_dropped(site: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    name = await _poisoned(site, monkeypatch)
    assert (await site.order(Drop(message=name))).what == "applied"
    assert await _kept(site, name) is None
    answer = await site.order(Retry(message=name))
    assert (answer.what, event_code(answer)) == ("refused", "quarantine.unknown")


@threat(rows.KEY_STORAGE)
async def test_rotated_storage_keys_keep_live_sessions_and_close_the_old_ones(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    keys = world.keys / "manager" / "storage-keys.json"
    async with deployed(world, tmp_path / "site") as site:
        await site.admitted()
        bucket = site.bus.bucket("sessions")
        before = {key: await bucket.get(key) for key in await bucket.keys()}
        old = keys.read_text()
        assert add_epoch(keys) == 2
        cipher = RecordCipher(StorageKeyFile(keys))
        assert await seal_again(site.bus, cipher) == len(before)
        assert await seal_again(site.bus, cipher) == 0
        for key in await bucket.keys():
            entry = await bucket.get(key)
            assert entry is not None
            assert entry.value is not None
            assert epoch_of(entry.value) == 2
        assert destroy_old_epochs(keys) == [1]
        await site.recheck("host", "h1")
        assert site.gateway.passes("a1")
        now = RecordCipher(StorageKeyFile(keys))
        for key, entry in before.items():
            assert entry is not None
            assert entry.value is not None
            with pytest.raises(Refusal, match=r"record\.open"):
                now.open(HostRecord, "sessions", key, entry.value)
        assert old != keys.read_text()


async def test_rotating_storage_keys_takes_no_last_word_from_a_session_that_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path / "world")
    keys = world.keys / "manager" / "storage-keys.json"
    async with deployed(world, tmp_path / "site") as site:
        agents = await site.admitted()

        async def cut_off(*_: object) -> None:
            raise BusError("between the record and its outbox")

        with monkeypatch.context() as bus:
            bus.setattr(Outbox, "publish", cut_off)
            await site.order(Revoke(kind="app", id="a1", reason="test"))
            await site.quiet()
            add_epoch(keys)
            await seal_again(site.bus, RecordCipher(StorageKeyFile(keys)))
            assert site.gateway.passes("a1")
        for agent in agents:
            await agent.stop()
        await site.settled()
        await site.until("app", "a1", "revoked")
        assert not site.gateway.passes("a1")
        for seconds in (site.timing.lease_s, KEPT_S + 60):
            await site.advance(seconds)
        assert await site.bus.bucket("summaries").keys() == []
        assert site.dropped_codes() == []


async def test_a_host_that_ends_names_applications_long_gone_and_nobody_is_told(site: Deployment) -> None:
    for agent in await site.admitted():
        await agent.stop()
    held = site.wire.hold("attest.v1.work.app.*.host-lost")
    await site.order(Revoke(kind="host", id="h1", reason="test"))
    lost = await held
    for seconds in (site.timing.lease_s, KEPT_S + 60):
        await site.advance(seconds)
    assert await site.records(AppRecord) == []
    site.wire.inject(*lost)
    await site.quiet()
    assert site.dropped_codes() == []


def test_a_sender_has_so_many_at_once_and_so_many_a_second() -> None:
    limiter = Limiter(rate=2.0, burst=3)
    assert [limiter.take("a", 10.0) for _ in range(5)] == [True, True, True, False, False]
    assert limiter.take("b", 10.0), "another sender has its own"
    assert limiter.take("a", 10.5)
    assert not limiter.take("a", 10.5)
    assert [limiter.take("a", 1000.0) for _ in range(4)] == [True, True, True, False], "no more than a burst is saved"
    assert not limiter.take("a", 5.0), "a clock that goes back gives nothing"


async def test_an_operator_that_is_too_fast_is_slowed_down_and_loses_nothing(site: Deployment) -> None:
    """One enrols a fleet: what is above the rate is put back, and is applied later, in its order."""
    (worker,) = site.workers
    worker._limiter = Limiter(rate=0.0, burst=2)
    commands = [site.command(Enrol(subject=_host(f"h{number}"))) for number in range(4)]
    for command in commands:
        await site.bus.publish(order_subject(OPERATOR, command), command)
    await site.told("op", OPERATOR, "applied", 2 + BEGUN)
    await site.quiet()
    assert site.what("op", OPERATOR).count("applied") == 2 + BEGUN
    assert len(site.wire.stored(layout.OPERATOR.name)) == 2, "the others wait where they are"
    worker._limiter = Limiter(rate=0.0, burst=1000)
    await site.settled()
    await site.told("op", OPERATOR, "applied", 4 + BEGUN)
    assert site.dropped_codes() == []
    assert "refused" not in site.what("op", OPERATOR)


@threat(rows.FLOOD)
async def test_a_host_that_is_too_fast_fills_its_own_subject_only_and_is_told_of_once(
    world: World, tmp_path: Path
) -> None:
    """What is over its rate stays on its subject for a moment: the bus refuses its sender, and nobody else waits."""
    # No recheck of the host falls due meanwhile: its evidence would be too fast as well.
    async with deployed(world, tmp_path, timing=LONG) as site:
        (worker,) = site.workers
        await site.admitted()
        worker._limiter = Limiter(rate=0.0, burst=3)
        subject = subjects.inbound("host", "h1", "recheck_evidence")
        for _ in range(3 + layout.HOSTS.max_msgs_per_subject):
            site.wire.inject(subject, b"garbage")
            await site.quiet()
        with pytest.raises(BusError, match="maximum messages per subject"):
            site.wire.inject(subject, b"garbage")
        assert site.dropped_codes() == ["message.encoding"] * 3, "the others are not looked at"
        await site.recheck("app", "a1")
        for _ in range(8):
            await site.advance(1)
        assert site.dropped_codes() == ["message.encoding"] * 3 + ["message.rate"]
        assert worker.counts["dropped message.rate"] == layout.HOSTS.max_msgs_per_subject
        assert site.wire.stored(layout.HOSTS.name) == []
        assert site.gateway.passes("a1")


@threat(rows.MESSAGE_POISONED)
async def test_a_message_that_no_worker_settled_is_put_aside_before_it_is_parsed(site: Deployment) -> None:
    """As after workers that ended over it, one after another."""
    (worker,) = site.workers
    subject, taken = subjects.inbound("host", "h1", "hello"), AsyncMock()
    worker._take = taken
    delivery = SimpleNamespace(subject=subject, data=b"poison", attempt=TOO_OFTEN + 1, done=AsyncMock())
    await worker._one(delivery, worker._from_outside)
    put = await site.until("host", "h1", "quarantined")
    assert event_code(put) == "message.often"
    assert await _kept(site, str(put.data["message"])) is not None
    taken.assert_not_awaited()
    delivery.done.assert_awaited_once()


@threat(rows.ROOM_FILLED)
async def test_each_sender_has_its_own_room_in_quarantine(site: Deployment) -> None:
    (worker,) = site.workers
    fault = Reason(code="worker.fault", field="-", expected="-", found="-", action="-")
    names = [
        await worker._quarantine.put(subjects.inbound("host", host, step), b"%d" % number, 5, fault, int(site.clock()))
        for host in ("h1", "h2")
        for number, step in enumerate(("evidence", "hello", "resume", "hello"))
    ]
    assert [name is not None for name in names] == [True, True, False, False] * 2
    again = await worker._quarantine.put(subjects.inbound("host", "h1", "evidence"), b"0", 5, fault, int(site.clock()))
    assert again == names[0], "what is there already has its place"


def _host(id: str) -> HostEnrolment:
    return HostEnrolment(id=id, mrenclaves=["ab" * 32], platform="cd" * 32)
