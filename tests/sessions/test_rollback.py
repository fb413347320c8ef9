"""The bus goes back in time: records, pointers, enrolment, policy, admissions. Nothing is granted past one lease."""

from __future__ import annotations

from pathlib import Path

import pytest

from attestgate.bus import layout, subjects
from attestgate.bus.crypto.channel import Frame
from attestgate.manager.sessions.record import AppRecord, HostRecord
from attestgate.manager.sessions.states import State
from attestgate.schemas.base import Refusal, pack, unpack
from attestgate.schemas.enrolment import PolicyManifest, RecheckNow, Revoke
from attestgate.schemas.in_force import Standings
from attestgate.schemas.messages import KeyDelivered
from tests.support.manager.agents_end import agents_end
from tests.support.manager.deployment import Deployment, deployed
from tests.support.manager.rollback import watched
from tests.support.manager.world import LISTS, World
from tests.support.reasons import event_code
from tests.support.threats import rows, threat


async def forget(site: Deployment) -> None:
    """Have a worker that has seen nothing take the place of whoever there was: what it refuses it refuses of itself."""
    await site.kill_workers()
    site.add_worker()


async def replay_everything(site: Deployment, said: list[tuple[str, bytes]]) -> None:
    """Every message that was ever sent to a manager, once more."""
    for subject, data in said:
        if any(site.wire.streams[stream.name].takes(subject) for stream in (*layout.INBOUND, layout.WORK)):
            site.wire.inject(subject, data)
            await site.quiet()


@threat(rows.RECORD_ROLLED_BACK)
async def test_a_drifted_host_gains_nothing_from_any_older_record(world: World, tmp_path: Path) -> None:
    """Each state of the bucket restored in turn, everything said again, each period, for three leases."""
    async with deployed(world, tmp_path / "count") as site:
        states = watched(site, "sessions")
        await site.admitted()
        await site.recheck_both()
        await site.quiet()
    moments = len(states)
    assert moments > 12
    for moment in range(0, moments, 4):
        async with deployed(world, tmp_path / str(moment)) as site:
            states = watched(site, "sessions")
            await site.admitted()
            await site.recheck_both()
            await site.quiet()
            good_until = int(site.clock()) + site.timing.lease_s
            site.measurement_list.write_bytes((LISTS / "drift.bin").read_bytes())
            said = list(site.wire.seen)
            state = states[moment]
            for _ in range(9):
                await forget(site)
                site.wire.restore("sessions", state)
                await replay_everything(site, said)
                await site.advance(10)
                assert site.clock() < good_until or not site.gateway.passes("a1"), moment
            assert max(lease.expires_at for lease in site.gateway.leases) <= good_until
            no_key_twice(site)


@threat(rows.RECORD_ROLLED_BACK)
async def test_a_revoked_application_gains_nothing_from_any_older_record(world: World, tmp_path: Path) -> None:
    async with deployed(world, tmp_path) as site:
        states = watched(site, "sessions")
        await site.admitted()
        good_until = int(site.clock()) + site.timing.lease_s
        said = list(site.wire.seen)
        await site.order(Revoke(kind="app", id="a1", reason="test"))
        await site.until("app", "a1", "revoked")
        for state in list(states):
            await forget(site)
            site.wire.restore("sessions", state)
            await replay_everything(site, said)
            assert not site.gateway.passes("a1")
        assert max(lease.expires_at for lease in site.gateway.leases) <= good_until
        no_key_twice(site)


def no_key_twice(site: Deployment) -> None:
    """No two different messages under one key: the salt is in the key, and each message has its own."""
    frames = {data for data in site.wire.said(f"{subjects.OUT}.>") if _is_frame(data)}
    assert len(frames) > 3
    assert len({unpack(Frame, data).salt for data in frames}) == len(frames)
    grants = set(site.wire.said(f"{subjects.OUT}.*.*.grant"))
    assert len(grants) == len({grant[-300:] for grant in grants})


def _is_frame(data: bytes) -> bool:
    try:
        unpack(Frame, data)
    except Refusal:
        return False
    return True


@threat(rows.RECORD_ROLLED_BACK)
async def test_an_honest_session_survives_its_record_going_back_one_step(site: Deployment) -> None:
    """Delay, not harm: after a rollback in the middle of a recheck the agent's next session is trusted again."""
    host, _ = await site.admitted()
    state = site.wire.snapshot("sessions")
    await site.recheck_both()
    await site.quiet()
    site.wire.restore("sessions", state)
    for _ in range(4):
        await site.advance(10)
    await host.stop()
    since = len(site.events)
    await site.advance(2)
    await site.host()
    await site.until("host", "h1", "trusted", since=since)


@threat(rows.RECORD_ROLLED_BACK)
async def test_a_pointer_that_goes_back_names_a_session_that_is_over(site: Deployment) -> None:
    first = await site.trusted()
    await site.quiet()
    old = await site.bus.bucket("sessions").get("current.host.h1")
    assert old is not None
    assert old.value is not None
    await site.started_again(first)
    await site.bus.bucket("sessions").put("current.host.h1", old.value)
    await site.app()
    assert event_code(await site.until("app", "a1", "evidence-rejected")) == "host.not-trusted"


@threat(rows.RECORD_FORGED)
async def test_a_record_moved_to_another_session_does_not_open(site: Deployment) -> None:
    await site.admitted()
    (host,) = await site.records(HostRecord)
    bucket = site.bus.bucket("sessions")
    entry = await bucket.get(f"host.{host.session}")
    assert entry is not None
    assert entry.value is not None
    await bucket.put(f"host.{'ab' * 16}", entry.value)
    site.wire.inject(subjects.due(subjects.deadline("ab" * 16)), b"host")
    await site.dropped(1)
    assert site.dropped_codes() == ["record.open"]


@threat(rows.WORK_FORGED)
@pytest.mark.parametrize("mounted", [True, False], ids=["delivered", "not delivered"])
async def test_what_an_earlier_host_session_said_of_a_key_moves_no_session_that_waits_for_a_later(
    site: Deployment, mounted: bool
) -> None:
    """The bus keeps the word, puts the application's record back, and gives the word in the host's next session."""
    first, bucket = await site.trusted(), site.bus.bucket("sessions")
    sent = site.wire.hold(subjects.inbound("app", "h1.a1", "evidence"))
    said = site.wire.hold(f"{subjects.WORK}.app.*.delivered")
    agent = await site.app()
    evidence = await sent
    (app,) = await site.records(AppRecord)
    challenged = await bucket.get(f"app.{app.session}")
    if not mounted:
        site.volume.rename(site.folder / "unmounted")
    site.wire.inject(*evidence)
    earlier = await said
    if not mounted:
        (site.folder / "unmounted").rename(site.volume)
    await agent.stop()
    await site.started_again(first)
    assert challenged is not None and challenged.value is not None
    await forget(site)
    await bucket.put(f"app.{app.session}", challenged.value)
    said = site.wire.hold(f"{subjects.WORK}.app.*.delivered")
    site.wire.inject(*evidence)
    later = await said
    for word, state in ((earlier, State.WAITING_FOR_KEY), (later, State.GRANTED)):
        site.wire.inject(*word)
        await site.quiet()
        assert (await site.record(AppRecord, app.session)).state is state


@threat(rows.WORK_FORGED)
async def test_another_hosts_word_on_a_key_moves_nothing(site: Deployment) -> None:
    """A trusted host says that it delivered a key, which another one was asked for."""
    await site.trusted()
    await site.enrol_host("h2", "machine-b")
    await site.host("h2", "machine-b")
    await site.until("host", "h2", "trusted")
    said = site.wire.hold(f"{subjects.WORK}.app.*.delivered")
    await site.app()
    honest = await said
    (app,), hosts = await site.records(AppRecord), await site.records(HostRecord)
    (other,) = [record for record in hosts if record.subject == "h2"]
    assert other.channel is not None
    _, word = agents_end(other).seal("key_delivered", pack(KeyDelivered(app_session=app.session)))
    site.wire.inject(subjects.inbound("host", "h2", "key_delivered"), word)
    await site.quiet()
    heard = (await site.record(HostRecord, other.session)).channel
    assert heard is not None and heard.opened == other.channel.opened + 1, "it was read"
    assert (await site.record(AppRecord, app.session)).state is State.WAITING_FOR_KEY
    site.wire.inject(*honest)
    await site.until("app", "a1", "granted")


@threat(rows.RECORD_ROLLED_BACK)
async def test_a_deleted_record_ends_access_at_the_lease(site: Deployment) -> None:
    await site.admitted()
    (host,) = await site.records(HostRecord)
    await site.bus.bucket("sessions").delete(f"host.{host.session}")
    for _ in range(4):
        await site.advance(10)
    assert not site.gateway.passes("a1")


@threat(rows.STATEMENT_ROLLED_BACK)
async def test_an_enrolment_that_goes_back_is_put_back_by_who_has_seen_the_newer(site: Deployment) -> None:
    await site.enrol_host()
    old = site.wire.snapshot("enrolment")
    await site.order(Revoke(kind="host", id="h1", reason="stolen"))
    site.wire.restore("enrolment", old)
    await site.host()
    assert event_code(await site.until("host", "h1", "dropped")) == "enrolment.revoked"
    assert event_code(await site.until("manager", "manager-0", "rolled-back")) == "rollback"
    assert "granted" not in site.what("host", "h1")


@threat(rows.STATEMENT_ROLLED_BACK)
async def test_an_enrolment_that_vanishes_is_put_back(site: Deployment) -> None:
    none = site.wire.snapshot("enrolment")
    await site.enrol_host()
    site.wire.restore("enrolment", none)
    await site.host()
    await site.until("host", "h1", "trusted")
    assert event_code(await site.until("manager", "manager-0", "rolled-back")) == "rollback"


@threat(rows.STATEMENT_ROLLED_BACK)
async def test_a_policy_that_goes_back_is_put_back(site: Deployment) -> None:
    old = site.wire.snapshot("policies")
    await site.order(site.world.policies.command(site.world.author, version=2))
    await site.enrol_host()
    await site.host()
    await site.until("host", "h1", "trusted")
    site.wire.restore("policies", old)
    since = len(site.events)
    await site.order(RecheckNow(kind="host", id="h1"))
    await site.until("host", "h1", "rechecked", since=since)
    assert event_code(await site.until("manager", "manager-0", "rolled-back")) == "rollback"
    entry = await site.bus.bucket("policies").get("manifest")
    assert entry is not None and entry.value is not None
    (standing,) = unpack(Standings, entry.value).standing
    assert unpack(PolicyManifest, standing.statement.payload).version == 2


@threat(rows.STATEMENT_ROLLED_BACK)
async def test_without_any_policy_nothing_is_judged(site: Deployment) -> None:
    await site.enrol_host()
    for key in await site.bus.bucket("policies").keys():
        await site.bus.bucket("policies").delete(key)
    await site.host()
    # This worker has kept the manifest, but not the documents that it names.
    assert event_code(await site.until("host", "h1", "dropped")) == "policy.document"
    assert (await site.records(HostRecord))[0].state is State.CHALLENGED


@threat(rows.EVIDENCE_LATE)
async def test_no_lease_ends_later_than_one_lease_after_its_question(site: Deployment) -> None:
    await site.admitted()
    for _ in range(5):
        await site.next_rechecks()
    assert len(site.gateway.leases) > 5
    for lease in site.gateway.leases:
        assert lease.expires_at <= lease.issued_at + site.timing.lease_s
    (record,) = await site.records(AppRecord)
    assert site.gateway.leases[-1].issued_at == record.issued_at
