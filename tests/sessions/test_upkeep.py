"""What an operator does on the side: messages put aside, storage keys rotated, and a sender that is too fast."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from attestgate.bus import layout, subjects
from attestgate.bus.api import BusError
from attestgate.manager.attestation.verifier import Verifier
from attestgate.manager.handlers.rate_limit import Limiter
from attestgate.manager.handlers.worker import ATTEMPTS
from attestgate.manager.records.outbox import Outbox
from attestgate.manager.records.record_cipher import RecordCipher, epoch_of
from attestgate.manager.records.storage_keys import StorageKeyFile, add_epoch, destroy_old_epochs, seal_again
from attestgate.manager.sessions.draft import KEPT_S
from attestgate.manager.sessions.record import AppRecord, HostRecord
from attestgate.schemas.base import Refusal, unpack
from attestgate.schemas.enrolment import Drop, Enrol, HostEnrolment, Retry, Revoke
from attestgate.schemas.quarantine import LIMIT, Quarantined
from tests.support.manager.deployment import Deployment, deployed, order_subject
from tests.support.manager.witness import PATIENCE_S
from tests.support.manager.world import OPERATOR, World
from tests.support.reasons import event_code

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


async def test_a_message_that_makes_workers_fail_is_put_aside(
    site: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await _poisoned(site, monkeypatch)
    entry = await site.bus.bucket("quarantine").get(name)
    assert entry is not None
    assert entry.value is not None
    kept = unpack(Quarantined, entry.value, limit=LIMIT)
    assert (kept.subject, kept.attempts) == (subjects.inbound("host", "h1", "evidence"), ATTEMPTS)
    assert hashlib.sha256(kept.subject.encode() + b"\0" + kept.data).hexdigest() == name


async def test_a_message_put_aside_can_be_tried_again(site: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    name = await _poisoned(site, monkeypatch)
    answer = await site.order(Retry(message=name))
    assert answer.what == "applied"
    await site.until("host", "h1", "trusted")
    assert await site.bus.bucket("quarantine").get(name) is None


async def test_a_message_that_fails_again_stays(site: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    name = await _poisoned(site, monkeypatch)

    async def fail(*_: object) -> None:
        raise RuntimeError("still a fault of ours")

    monkeypatch.setattr(Verifier, "host", fail)
    answer = await site.order(Retry(message=name))
    assert (answer.what, event_code(answer)) == ("refused", "quarantine.again")
    assert await site.bus.bucket("quarantine").get(name) is not None


async def test_a_message_put_aside_can_be_dropped(site: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    name = await _poisoned(site, monkeypatch)
    assert (await site.order(Drop(message=name))).what == "applied"
    assert await site.bus.bucket("quarantine").get(name) is None
    answer = await site.order(Retry(message=name))
    assert (answer.what, event_code(answer)) == ("refused", "quarantine.unknown")


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


async def test_a_host_that_is_too_fast_is_dropped_and_told_of_once(site: Deployment) -> None:
    (worker,) = site.workers
    await site.admitted()
    worker._limiter = Limiter(rate=0.0, burst=3)
    for _ in range(12):
        site.wire.inject(subjects.inbound("host", "h1", "recheck_evidence"), b"garbage")
        await site.quiet()
    assert site.dropped_codes() == ["message.encoding"] * 3 + ["message.rate"]
    assert worker.counts["dropped message.rate"] == 9
    assert site.gateway.passes("a1")


def _host(id: str) -> HostEnrolment:
    return HostEnrolment(id=id, mrenclaves=["ab" * 32], platform="cd" * 32)
