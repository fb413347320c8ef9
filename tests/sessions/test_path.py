"""The whole path on a bus in memory: attest, prove, admit, renew, and every way in which it ends."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from attestgate.bus import subjects
from attestgate.compose.local.policies import LearnedPolicies
from attestgate.manager.sessions.draft import KEPT_S
from attestgate.manager.sessions.record import AppRecord, HostRecord
from attestgate.manager.sessions.states import State
from attestgate.schemas.base import unpack
from attestgate.schemas.enrolment import AppEnrolment, Enrol, Placement, RecheckNow, Revoke
from attestgate.schemas.messages import Challenge
from attestgate.schemas.settings import Timing
from attestgate.schemas.sgx import policy_name
from attestgate.schemas.signing import Signed
from tests.support.manager.deployment import Deployment, deployed
from tests.support.manager.world import APP_ENCLAVE, LISTS, OTHER_ENCLAVE, World
from tests.support.reasons import event_code
from tests.support.threats import rows, threat


async def test_host_and_application_are_admitted(site: Deployment) -> None:
    await site.admitted()
    assert site.what("host", "h1") == ["challenged", "granted", "trusted", "delivering-key", "key-delivered"]
    assert site.what("app", "a1") == [
        "challenged",
        "waiting-for-key",
        "granted",
        "proven",
        "certified",
        "admitted",
    ]
    assert site.gateway.passes("a1")
    assert site.dropped_codes() == []


@threat(rows.VOLUME_COPIED)
async def test_the_key_file_is_gone_once_it_was_used(site: Deployment) -> None:
    await site.admitted()
    assert list(site.volume.iterdir()) == []


async def test_a_recheck_renews_both_leases_and_counts_from_its_question(site: Deployment) -> None:
    await site.admitted()
    (host,), (app,) = await site.records(HostRecord), await site.records(AppRecord)
    for _ in range(6):
        await site.next_rechecks()
        assert site.gateway.passes("a1")
    renewed_host, renewed_app = await site.record(HostRecord, host.session), await site.record(AppRecord, app.session)
    assert renewed_host.state is State.TRUSTED
    assert renewed_app.state is State.ADMITTED
    assert renewed_host.lease_end == renewed_host.issued_at + site.timing.lease_s
    assert renewed_host.issued_at >= host.issued_at + 50
    assert renewed_app.lease_end is not None
    assert renewed_host.lease_end is not None
    assert renewed_app.lease_end <= renewed_host.lease_end
    assert site.dropped_codes() == []


@threat(rows.KEY_GIVEN_AWAY)
async def test_a_revoked_application_is_cut_off_and_its_host_stays(site: Deployment) -> None:
    await site.admitted()
    await site.order(Revoke(kind="app", id="a1", reason="left the company"))
    ended = await site.until("app", "a1", "revoked")
    await site.quiet()
    assert event_code(ended) == "operator.revoked"
    assert not site.gateway.passes("a1")
    assert (await site.records(HostRecord))[0].state is State.TRUSTED


async def test_a_revoked_host_takes_its_applications_with_it(site: Deployment) -> None:
    await site.admitted()
    await site.order(Revoke(kind="host", id="h1", reason="stolen"))
    await site.until("host", "h1", "revoked")
    await site.until("app", "a1", "untrusted")
    await site.quiet()
    assert not site.gateway.passes("a1")


@threat(rows.LIST_DRIFTED)
async def test_a_host_whose_list_grows_by_an_unknown_program_is_untrusted(site: Deployment) -> None:
    await site.admitted()
    site.measurement_list.write_bytes((LISTS / "drift.bin").read_bytes())
    await site.order(RecheckNow(kind="host", id="h1"))
    ended = await site.until("host", "h1", "untrusted")
    await site.until("app", "a1", "untrusted")
    await site.quiet()
    assert event_code(ended).startswith("ima.")
    assert not site.gateway.passes("a1")


@threat(rows.LIST_DRIFTED)
async def test_a_host_with_an_unknown_program_is_refused_from_the_start(site: Deployment) -> None:
    site.measurement_list.write_bytes((LISTS / "drift.bin").read_bytes())
    await site.enrol_host()
    await site.host()
    refused = await site.until("host", "h1", "refused")
    assert event_code(refused).startswith("ima.")


@threat(rows.LIST_EDITED, rows.KERNEL_LIES)
async def test_a_list_that_was_rewritten_is_no_list(site: Deployment) -> None:
    """The same length, one entry of the past exchanged: the prefix differs."""
    await site.admitted()
    clean = bytearray((LISTS / "clean.bin").read_bytes())
    clean[100] ^= 1
    site.measurement_list.write_bytes(clean)
    await site.order(RecheckNow(kind="host", id="h1"))
    ended = await site.until("host", "h1", "untrusted")
    assert event_code(ended) == "ima.rewritten"


@threat(rows.LIST_EDITED)
async def test_a_list_that_shrank_is_no_list(site: Deployment) -> None:
    await site.admitted()
    site.measurement_list.write_bytes((LISTS / "clean.bin").read_bytes()[:-200])
    await site.order(RecheckNow(kind="host", id="h1"))
    ended = await site.until("host", "h1", "untrusted")
    assert event_code(ended) == "ima.rewritten"


@threat(rows.HOST_RESTARTED)
async def test_a_restarted_host_supersedes_its_old_session_and_its_applications_prove_again(site: Deployment) -> None:
    host, _ = await site.admitted()
    (old,) = await site.records(HostRecord)
    await host.stop()
    await site.advance(2)
    await site.host()
    await site.until("host", "h1", "superseded", session=old.session)
    await site.until("app", "a1", "untrusted")
    await site.quiet()
    sessions = {record.session: record.state for record in await site.records(HostRecord)}
    assert sessions.pop(old.session) is State.SUPERSEDED
    assert list(sessions.values()) == [State.TRUSTED]


@threat(rows.HOST_SILENT)
async def test_a_silent_host_expires_and_its_application_with_it(site: Deployment) -> None:
    host, app = await site.admitted()
    await host.stop()
    for _ in range(2):
        since = len(site.events)
        await site.advance(10)
        await site.until("app", "a1", "rechecked", since=since)
    await site.advance(10)
    await site.until("host", "h1", "expired")
    await site.seen(lambda e: e.subject == "a1" and e.what in ("untrusted", "expired"))
    await site.quiet()
    assert not site.gateway.passes("a1")
    await app.stop()


@threat(rows.HOST_SILENT)
async def test_a_silent_application_expires_and_its_host_stays(site: Deployment) -> None:
    _, app = await site.admitted()
    await app.stop()
    for _ in range(4):
        since = len(site.events)
        await site.advance(10)
        await site.until("host", "h1", "rechecked", since=since)
    await site.until("app", "a1", "expired")
    assert not site.gateway.passes("a1")
    assert (await site.records(HostRecord))[0].state is State.TRUSTED


@threat(rows.WITHDRAWAL_WITHHELD)
async def test_access_ends_by_itself_when_the_manager_is_gone(world: World, tmp_path: Path) -> None:
    async with deployed(world, tmp_path) as site:
        await site.admitted()
        await site.kill_workers()
        site.clock.at += site.timing.lease_s - 1
        assert site.gateway.passes("a1")
        site.clock.at += 2
        assert not site.gateway.passes("a1")


async def test_after_a_change_of_policy_the_whole_list_is_asked_for(site: Deployment) -> None:
    await site.admitted()
    since = len(site.events)
    other = LearnedPolicies(
        sgx=site.world.policies.sgx.replace(b'"min_isv_svn": 1', b'"min_isv_svn": 0'),
        host=site.world.policies.host,
        runtime=site.world.policies.runtime,
    )
    assert other.sgx != site.world.policies.sgx
    await site.order(other.command(site.world.author, version=2))
    await site.order(RecheckNow(kind="host", id="h1"))
    rechecked = await site.until("host", "h1", "rechecked", since=since)
    assert rechecked.data["entries"] == 448
    (record,) = await site.records(HostRecord)
    assert record.list_size == len((LISTS / "clean.bin").read_bytes())
    assert record.outcome is not None
    assert record.outcome.policy["sgx"] != ""


async def test_a_policy_that_no_longer_knows_the_list_ends_trust_at_the_next_recheck(site: Deployment) -> None:
    await site.admitted()
    await site.order(_poorer(site.world.policies).command(site.world.author, version=2))
    await site.order(RecheckNow(kind="host", id="h1"))
    ended = await site.until("host", "h1", "untrusted")
    assert event_code(ended).startswith("ima.")


@threat(rows.OTHER_CODE, rows.KERNEL_LIES)
async def test_an_application_of_other_code_is_not_admitted_and_the_session_stands(site: Deployment) -> None:
    await site.trusted()
    await site.app(identity=OTHER_ENCLAVE)
    rejected = await site.until("app", "a1", "evidence-rejected")
    assert event_code(rejected) == "sgx.mrenclave"
    assert (await site.records(AppRecord))[0].state is State.CHALLENGED


@threat(rows.TWO_MACHINES)
async def test_an_application_on_another_machine_is_not_co_located(site: Deployment) -> None:
    await site.trusted()
    await site.app(machine="machine-b")
    rejected = await site.until("app", "a1", "evidence-rejected")
    assert event_code(rejected).startswith("colocation.")


async def test_an_application_without_a_trusted_host_is_told_so(site: Deployment) -> None:
    await site.enrol_host()
    await site.enrol_app()
    await site.app()
    rejected = await site.until("app", "a1", "evidence-rejected")
    assert event_code(rejected) == "host.not-trusted"


@threat(rows.ID_CLAIMED)
async def test_a_host_on_another_machine_than_enrolled_is_not_trusted(site: Deployment) -> None:
    await site.enrol_host(machine="machine-b")
    await site.host(machine="machine-a")
    rejected = await site.until("host", "h1", "evidence-rejected")
    assert event_code(rejected) == "host.platform"


@threat(rows.APP_CLAIMED)
@pytest.mark.parametrize("role", ["host", "app"])
async def test_an_unknown_id_is_refused_with_its_reason(site: Deployment, role: str) -> None:
    await (site.host() if role == "host" else site.app())
    dropped = await site.until(role, "h1" if role == "host" else "a1", "dropped")
    assert event_code(dropped) == "enrolment.unknown"
    assert [*await site.records(HostRecord), *await site.records(AppRecord)] == []


@threat(rows.APP_CLAIMED)
async def test_an_application_may_not_run_on_a_host_it_was_not_enrolled_for(site: Deployment) -> None:
    await site.enrol_app(host="h2")
    await site.app(host="h1")
    assert event_code(await site.until("app", "a1", "dropped")) == "enrolment.placement"


async def test_a_plain_x25519_suite_can_be_selected_and_is_in_the_challenge(world: World, tmp_path: Path) -> None:
    async with deployed(world, tmp_path, suite="x25519") as site:
        await site.admitted()
        (challenge,) = site.wire.said(subjects.outbound("host", "h1", "challenge"))
        assert unpack(Challenge, unpack(Signed, challenge).payload).suite == "x25519"


async def test_an_update_rolls_out_with_two_measurements_at_once(site: Deployment) -> None:
    await site.enrol_host()
    subject = AppEnrolment(
        id="a1",
        mrenclaves=[APP_ENCLAVE.mrenclave.hex(), OTHER_ENCLAVE.mrenclave.hex()],
        placements=[Placement(host="h1", volume=0)],
    )
    await site.order(Enrol(subject=subject))
    await site.host()
    await site.until("host", "h1", "trusted")
    await site.app(identity=OTHER_ENCLAVE)
    await site.until("app", "a1", "admitted")


async def test_a_volume_that_the_host_does_not_have_is_refused(site: Deployment) -> None:
    await site.enrol_host()
    subject = AppEnrolment(
        id="a1", mrenclaves=[APP_ENCLAVE.mrenclave.hex()], placements=[Placement(host="h1", volume=7)]
    )
    await site.order(Enrol(subject=subject))
    await site.host()
    await site.until("host", "h1", "trusted")
    await site.app()
    assert event_code(await site.until("app", "a1", "refused")) == "host.volume"


async def test_a_certificate_is_renewed_before_it_ends_and_never_leased_past_its_end(
    world: World, tmp_path: Path
) -> None:
    timing = Timing(lease_s=30, recheck_s=10, evidence_window_s=10, skew_s=5, certificate_s=60)
    async with deployed(world, tmp_path, timing=timing) as site:
        await site.admitted()
        (first,) = {lease.serial for lease in site.gateway.leases}
        ends = int(site.clock()) + timing.certificate_s
        for _ in range(8):
            since = len(site.events)
            await site.advance(10)
            for kind, id in (("host", "h1"), ("app", "a1")):
                await site.until(kind, id, "rechecked", since=since)
            await site.quiet()
            assert site.gateway.passes("a1")
        assert "renewed" in site.what("app", "a1")
        assert len({lease.serial for lease in site.gateway.leases}) > 1
        assert max(lease.expires_at for lease in site.gateway.leases if lease.serial == first) <= ends
        await site.advance(KEPT_S)
        assert f"cert.{first}" not in await site.bus.bucket("admissions").keys(), "a tombstone a renewal, for ever"


async def test_two_hosts_and_their_applications_do_not_mix(site: Deployment) -> None:
    await site.admitted()
    await site.enrol_host("h2", "machine-b")
    await site.enrol_app("a2", "h2")
    await site.host("h2", "machine-b")
    await site.until("host", "h2", "trusted")
    await site.app("a2", "h2", "machine-b")
    await site.until("app", "a2", "admitted")
    await site.order(Revoke(kind="host", id="h1", reason="moved"))
    await site.until("app", "a1", "untrusted")
    await site.quiet()
    assert not site.gateway.passes("a1")
    assert site.gateway.passes("a2")


async def test_many_applications_start_at_once(site: Deployment) -> None:
    await site.enrol_host()
    await site.host()
    await site.until("host", "h1", "trusted")
    names = [f"a{number}" for number in range(8)]
    for name in names:
        await site.enrol_app(name)
    await asyncio.gather(*(site.app(name) for name in names))
    for name in names:
        await site.until("app", name, "admitted")
    await site.quiet()
    assert all(site.gateway.passes(name) for name in names)
    assert site.dropped_codes() == []


def _poorer(policies: LearnedPolicies) -> LearnedPolicies:
    """The same policies without the programs of /usr/bin."""
    runtime = json.loads(policies.runtime)
    runtime["digests"] = {path: known for path, known in runtime["digests"].items() if not path.startswith("/usr/bin")}
    document = json.dumps(runtime).encode()
    host = json.loads(policies.host)
    host["runtime_policy"] = policy_name(document)
    return LearnedPolicies(sgx=policies.sgx, host=json.dumps(host).encode(), runtime=document)


async def test_a_mistyped_revocation_is_refused(site: Deployment) -> None:
    answer = await site.order(Revoke(kind="app", id="nobody", reason="a slip"))
    assert answer.what == "refused"
    assert event_code(answer) == "enrolment.unknown"


async def test_a_session_that_is_over_is_cleared_away_after_a_while(site: Deployment) -> None:
    await site.admitted()
    await site.order(Revoke(kind="app", id="a1", reason="left the company"))
    ended = await site.until("app", "a1", "revoked")
    await site.advance(KEPT_S - 60)
    buckets = [site.bus.bucket(name) for name in ("sessions", "summaries", "admissions")]
    serial = (await site.record(AppRecord, str(ended.session))).serial
    wanted = [f"app.{ended.session}", f"app.a1.{ended.session}", f"cert.{serial}"]
    assert [key in await bucket.keys() for bucket, key in zip(buckets, wanted, strict=True)] == [True, True, True]
    await site.advance(120)
    assert [key in await bucket.keys() for bucket, key in zip(buckets, wanted, strict=True)] == [False, False, False]
