"""What was taken away stays away, as far as managers go: sessions that have ended or were superseded, revocations,
enrolments and policies that were replaced. The bus parts the workers, and restores what is good to restore.

Each worker has a memory of its own; the gateway's is in what it sends back (`refused`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from attestgate.bus import subjects
from attestgate.bus.layout import ADMISSIONS
from attestgate.bus.memory.bucket import BucketState
from attestgate.compose.local.policies import LearnedPolicies
from attestgate.manager.attestation.verifier import Verifier
from attestgate.manager.policy.enrolments import Enrolments
from attestgate.manager.records import storage_keys
from attestgate.manager.records.current import Hold
from attestgate.manager.sessions.record import AppRecord, HostRecord
from attestgate.manager.sessions.states import State
from attestgate.schemas.admission import (
    CRL,
    REVOKE,
    HostLease,
    Lease,
    Statement,
    Tenure,
    Withdrawal,
    open_posted,
)
from attestgate.schemas.base import pack, unpack
from attestgate.schemas.enrolment import COMMAND, Command, RecheckNow, Revoke, commands_of
from attestgate.schemas.signing import Signed
from tests.support.manager.deployment import Deployment, deployed
from tests.support.manager.reports import enclosed, report
from tests.support.manager.rollback import watched
from tests.support.manager.world import GATEWAY, LISTS, OPERATOR, World
from tests.support.reasons import event_code
from tests.support.threats import rows, threat


def posted(site: Deployment, since: int = 0) -> list[Statement]:
    """Every statement for gateways that any worker has published."""
    prefix = ADMISSIONS.subject("")
    found = [(where.removeprefix(prefix), data) for where, data in site.wire.seen[since:] if where.startswith(prefix)]
    return [open_posted(key, data, site.world.managers) for key, data in found if not key.startswith((CRL, REVOKE))]


def ranks(site: Deployment, session: str) -> set[int]:
    """Every rank that was ever signed for a session."""
    found = set()
    for statement in posted(site):
        tenure = statement.ends if isinstance(statement, Withdrawal) else statement.tenure
        if tenure is not None and tenure.session == session:
            found.add(tenure.rank)
    return found


async def parted(site: Deployment, name: str = "") -> None:
    """Another worker takes over: one that remembers nothing, or the one of this name, started again."""
    await site.kill_workers()
    site.run(site.wire.connect(), name)


async def replaced(site: Deployment) -> tuple[str, str, BucketState, list[tuple[str, bytes]]]:
    """h1's session superseded by another: both; the bucket, and all that was said, before the second."""
    first = await site.trusted()
    await site.recheck("host", "h1")
    await site.quiet()
    state, said = site.wire.snapshot("sessions"), list(site.wire.seen)
    (old,) = await site.records(HostRecord)
    await site.started_again(first)
    (new,) = [record for record in await site.records(HostRecord) if record.session != old.session]
    return old.session, new.session, state, said


# What leases say


async def test_leases_say_what_they_rest_on_and_withdrawals_what_they_end(site: Deployment) -> None:
    await site.admitted()
    await site.recheck_both()
    (host,), (app,) = await site.records(HostRecord), await site.records(AppRecord)
    await site.order(Revoke(kind="host", id="h1", reason="test"))
    await site.until("app", "a1", "untrusted")
    await site.quiet()
    at = int(site.clock() * 1_000_000) + 1000
    of_host = [statement for statement in posted(site) if isinstance(statement, HostLease)]
    of_app = [statement for statement in posted(site) if isinstance(statement, Lease)]
    assert len(of_host) == len(of_app) == 2
    for leases, record, place in ((of_host, host, "host.h1"), (of_app, app, "app.a1.h1")):
        assert {lease.tenure for lease in leases} == {Tenure(place=place, session=record.session, rank=record.rank)}
        assert record.basis is not None
        assert {(lease.enrolled, lease.policy) for lease in leases} == {(record.basis.enrolled, 1)}
        assert at - 60_000_000 < record.rank <= at
        assert at - 60_000_000 < record.basis.enrolled <= at
    assert of_host[0].enrolled != of_app[0].enrolled
    ends = [statement.ends for statement in posted(site) if isinstance(statement, Withdrawal)]
    assert ends == [of_host[0].tenure, of_app[0].tenure]


async def test_a_retired_certificate_ends_no_session(site: Deployment) -> None:
    await site.admitted()
    while "renewed" not in site.what("app", "a1"):
        await site.next_rechecks()
    await site.next_rechecks()
    await site.next_rechecks()
    withdrawals = [statement for statement in posted(site) if isinstance(statement, Withdrawal)]
    assert withdrawals
    assert {(one.reason, one.ends) for one in withdrawals} == {("certificate.renewed", None)}


# Sessions


@threat(rows.SESSION_RETURNS)
async def test_no_record_put_back_gives_a_session_another_rank(world: World, tmp_path: Path) -> None:
    """Also one from before it became current, with the same proof once more, at a worker that has seen nothing."""
    came_back = 0
    for moment in range(17):
        async with deployed(world, tmp_path / str(moment)) as site:
            states = watched(site, "sessions")
            old, new, _, said = await replaced(site)
            await parted(site)
            site.wire.restore("sessions", states[moment])
            since = len(site.wire.seen)
            for subject, data in said:
                if subject.startswith(f"{subjects.IN}.host.h1."):
                    site.wire.inject(subject, data)
                    await site.quiet()
            came_back += any(isinstance(one, HostLease) and one.host_session == old for one in posted(site, since))
            assert len(ranks(site, old)) == 1
            assert max(ranks(site, old)) < max(ranks(site, new))
    assert came_back > 3


@threat(rows.SESSION_RETURNS)
async def test_a_session_that_would_become_current_below_another_ends(site: Deployment) -> None:
    """Opened before, proven after: the worker's clock was behind, or the other was opened meanwhile."""
    await site.enrol_host()
    proof = site.wire.hold(subjects.inbound("host", "h1", "key_proof"))
    await site.host()
    held = await proof
    (waiting,) = await site.records(HostRecord)
    newer = HostLease(
        host="h1",
        host_session="ff" * 16,
        issued_at=int(site.clock()),
        expires_at=int(site.clock()) + 30,
        sequence=1,
        rank=waiting.rank + 1,
        enrolled=1,
        policy=1,
    )
    await report(site, refused=[enclosed(site, f"host.{waiting.session}", newer)])
    site.wire.inject(*held)
    ended = await site.until("host", "h1", "superseded", session=waiting.session)
    assert event_code(ended) == "session.superseded"
    assert ranks(site, waiting.session) == set()
    async with site.passing():
        await site.until("host", "h1", "trusted", since=site.events.index(ended))
    assert min(one.rank for one in await site.records(HostRecord) if one.state is State.TRUSTED) > newer.rank


@threat(rows.WORKERS_PARTED, rows.SESSION_RETURNS)
async def test_a_worker_that_hears_of_a_newer_session_from_a_gateway_ends_the_older(site: Deployment) -> None:
    old, new, state, _ = await replaced(site)
    (lease,) = [one for one in posted(site) if one.key == f"host.{new}"]
    await parted(site)
    site.wire.restore("sessions", state)
    since = len(site.events)
    await report(site, refused=[enclosed(site, f"host.{old}", lease)])
    await site.order(RecheckNow(kind="host", id="h1"))
    await site.until("host", "h1", "superseded", since=since, session=old)


@threat(rows.WORKERS_PARTED)
async def test_what_one_worker_hears_of_a_place_another_opens_its_next_session_above(site: Deployment) -> None:
    """By a withdrawal of which the bus shows no worker anything, from a clock that was ahead."""
    await site.enrol_host()
    ahead = Tenure(place="host.h1", session="ff" * 16, rank=int(site.clock() * 1_000_000) + 60_000_000)
    gone = Withdrawal(key=f"host.{ahead.session}", issued_at=1, until=2, sequence=2, reason="ima.unknown", ends=ahead)
    await report(site, refused=[enclosed(site, f"host.{ahead.session}", gone)])
    await parted(site)
    await site.host()
    await site.until("host", "h1", "trusted")
    (lease,) = [one for one in posted(site) if isinstance(one, HostLease)]
    assert lease.rank == ahead.rank + 1
    await site.quiet()
    since = len(site.wire.seen)
    await site.recheck("host", "h1")
    assert [one.tenure for one in posted(site, since) if isinstance(one, HostLease)] == [lease.tenure]


@threat(rows.SESSION_RETURNS)
@pytest.mark.parametrize("how", ["superseded", "drift"])
async def test_a_session_that_has_ended_is_refused_as_live_by_a_worker_that_is_started_again(
    site: Deployment, how: str
) -> None:
    if how == "superseded":
        old, _, state, _ = await replaced(site)
    else:
        await site.trusted()
        await site.quiet()
        state = site.wire.snapshot("sessions")
        old = (await site.records(HostRecord))[0].session
        site.measurement_list.write_bytes((LISTS / "drift.bin").read_bytes())
        await site.order(RecheckNow(kind="host", id="h1"))
        await site.until("host", "h1", "untrusted")
        await site.quiet()
    await parted(site, "manager-0")
    site.wire.restore("sessions", state)
    since, said = len(site.events), len(site.wire.seen)
    await site.order(RecheckNow(kind="host", id="h1"))
    await site.quiet()
    assert "record-rolled-back" not in [event.what for event in site.events[since:]], "a cluster may show it once"
    for _ in range(8):
        await site.advance(1)
    told = [event for event in site.events[since:] if event.what == "record-rolled-back"]
    assert [event_code(event) for event in told] == ["record.rollback"]
    assert "rechecking" not in site.what("host", "h1", since=since)
    assert not [one for one in posted(site, said) if one.key == f"host.{old}"]


@threat(rows.RECORD_ROLLED_BACK)
async def test_a_record_that_goes_back_is_refused_once_that_is_certain(site: Deployment) -> None:
    await site.trusted()
    await site.quiet()
    state = site.wire.snapshot("sessions")
    await site.recheck("host", "h1")
    await site.quiet()
    newest = site.wire.snapshot("sessions")
    site.wire.restore("sessions", state)
    since = len(site.events)
    await site.order(RecheckNow(kind="host", id="h1"))
    await site.quiet()
    site.wire.restore("sessions", newest)  # as when a leader that was replaced has answered
    await site.advance(1)
    await site.until("host", "h1", "rechecked", since=since)
    site.wire.restore("sessions", state)
    await site.order(RecheckNow(kind="host", id="h1"))
    for _ in range(8):
        await site.advance(1)
    told = [event for event in site.events[since:] if event.what == "record-rolled-back"]
    assert [event_code(event) for event in told] == ["record.rollback"]
    assert site.what("host", "h1", since=since).count("rechecked") == 1


async def test_workers_that_write_the_same_records_see_no_rollback(site: Deployment) -> None:
    for _ in range(3):
        site.add_worker()
    await site.admitted()
    for _ in range(5):
        await site.next_rechecks()
    assert "record-rolled-back" not in [event.what for event in site.events]


# Revocations


def on_bus(site: Deployment) -> list[str]:
    """The revocations that the bus has for gateways."""
    return [
        key
        for key, entry in site.wire.buckets["admissions"].snapshot().entries.items()
        if key.startswith(REVOKE) and entry.value is not None
    ]


@threat(rows.REVOCATION_HIDDEN, rows.REVOKING_KILLED)
async def test_a_revocation_is_at_the_gateways_before_it_has_any_other_effect(
    site: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.admitted()
    seen: list[list[str]] = []
    put = Enrolments.put

    async def noted(enrolments: Enrolments, *given: Any) -> None:
        seen.append(on_bus(site))
        await put(enrolments, *given)

    monkeypatch.setattr(Enrolments, "put", noted)
    command = site.command(Revoke(kind="host", id="h1", reason="test"))
    await site.send_command(command)
    key = f"revoke.host.h1.{site.world.operator.public.hex()[:16]}"
    assert seen == [[key]]
    entry = await site.bus.bucket("admissions").get(key)
    assert entry is not None and entry.value == command, "as it was signed"


@threat(rows.REVOCATION_HIDDEN)
async def test_a_revocation_of_who_has_no_session_is_there_until_the_next_enrolment(site: Deployment) -> None:
    await site.enrol_host()
    await site.enrol_app()
    await site.order(Revoke(kind="app", id="a1", reason="test"))
    await site.order(Revoke(kind="host", id="h1", reason="test"))
    assert len(on_bus(site)) == 2
    await site.enrol_host()
    assert [key.split(".")[1] for key in on_bus(site)] == ["app"]
    await site.enrol_app()
    assert on_bus(site) == []


@threat(rows.REVOCATION_HIDDEN)
async def test_an_older_revocation_takes_the_place_of_no_later_one(site: Deployment) -> None:
    await site.enrol_host()
    older = site.command(Revoke(kind="host", id="h1", reason="older"))
    newer = site.command(Revoke(kind="host", id="h1", reason="newer"))
    await site.send_command(newer)
    key = on_bus(site)[0]
    signed = unpack(Signed, older)
    await report(site, refused=[enclosed(site, "host." + "aa" * 16, signed, key)])
    entry = await site.bus.bucket("admissions").get(key)
    assert entry is not None and entry.value == newer


async def hidden(site: Deployment) -> tuple[str, bytes]:
    """A revocation of h1 that the bus has hidden from this worker, and its key: it expired long ago."""
    sequence = int(site.clock() * 1_000_000) + 500_000
    command = Command(sequence=sequence, expires_at=1, action=Revoke(kind="host", id="h1", reason="stolen"))
    signed = site.world.operator.sign(COMMAND, commands_of(OPERATOR), command)
    return f"revoke.host.h1.{signed.signer.hex()[:16]}", pack(signed)


@threat(rows.WORKERS_PARTED)
async def test_a_revocation_that_the_bus_hides_comes_from_a_gateway(site: Deployment) -> None:
    await site.admitted()
    (host,) = await site.records(HostRecord)
    key, value = await hidden(site)
    await report(site, refused=[enclosed(site, f"host.{host.session}", unpack(Signed, value), key)])
    await site.until("host", "h1", "revoked")
    await site.until("app", "a1", "untrusted")
    assert on_bus(site) == [key], "for other gateways"
    since = len(site.events)
    await site.advance(2)
    await site.host()
    assert event_code(await site.until("host", "h1", "dropped", since=since)) == "enrolment.revoked"


@threat(rows.KEY_GATEWAY_CUTS)
async def test_a_revocation_from_a_gateway_does_nothing_after_a_later_enrolment(site: Deployment) -> None:
    await site.enrol_host()
    key, value = await hidden(site)
    await site.advance(2)
    await site.enrol_host()
    await report(site, refused=[enclosed(site, "host." + "aa" * 16, unpack(Signed, value), key)])
    assert on_bus(site) == []
    await site.host()
    await site.until("host", "h1", "trusted")


@threat(rows.KEY_GATEWAY_CUTS)
@pytest.mark.parametrize("what", ["signer", "subject", "enrol", "manager"])
async def test_what_nobody_signed_is_learned_from_no_gateway(site: Deployment, what: str) -> None:
    await site.admitted()
    (host,) = await site.records(HostRecord)
    key, value = await hidden(site)
    signed = unpack(Signed, value)
    match what:
        case "signer":
            signed = site.world.author.sign(COMMAND, commands_of(OPERATOR), unpack(Command, signed.payload))
            key = f"revoke.host.h1.{signed.signer.hex()[:16]}"
        case "subject":
            key = key.replace("h1", "h2")
        case "enrol":
            signed = unpack(Signed, site.command(site.host_enrolment("h1", "machine-a")))
        case "manager":
            key = f"host.{host.session}"
    code = {"signer": "signature.signer", "manager": "message.fields"}.get(what, "revoke.key")
    since = len(site.events)
    await report(site, refused=[enclosed(site, f"host.{host.session}", signed, key)])
    dropped = await site.until("gateway", GATEWAY, "dropped", since=since)
    assert event_code(dropped) == code
    assert on_bus(site) == []
    await site.recheck_both()


# Enrolments and policies


@threat(rows.WORKERS_PARTED, rows.STATEMENT_ROLLED_BACK)
async def test_a_worker_leases_nothing_by_an_enrolment_before_one_that_a_gateway_has_seen(site: Deployment) -> None:
    await site.admitted()
    (host,) = await site.records(HostRecord)
    (lease, *_) = [one for one in posted(site) if isinstance(one, HostLease)]
    later = lease.model_copy(update={"enrolled": lease.enrolled + 1_000_000})
    await report(site, refused=[enclosed(site, f"host.{host.session}", later)])
    since, said = len(site.events), len(site.wire.seen)
    await site.order(RecheckNow(kind="host", id="h1"))
    assert event_code(await site.until("host", "h1", "evidence-rejected", since=since)) == "enrolment.rollback"
    assert not [one for one in posted(site, said) if isinstance(one, HostLease)]
    await site.advance(2)
    await site.enrol_host()
    for _ in range(2):
        await site.advance(10)
    await site.until("host", "h1", "rechecked", since=since)


@threat(rows.WORKERS_PARTED, rows.STATEMENT_ROLLED_BACK)
async def test_a_worker_leases_nothing_by_a_policy_before_one_that_a_gateway_has_seen(site: Deployment) -> None:
    await site.admitted()
    (host,) = await site.records(HostRecord)
    (lease, *_) = [one for one in posted(site) if isinstance(one, HostLease)]
    await report(site, refused=[enclosed(site, f"host.{host.session}", lease.model_copy(update={"policy": 7}))])
    since, said = len(site.events), len(site.wire.seen)
    await site.order(RecheckNow(kind="host", id="h1"))
    assert event_code(await site.until("host", "h1", "evidence-rejected", since=since)) == "policy.rollback"
    assert not [one for one in posted(site, said) if isinstance(one, HostLease)]
    await site.order(site.world.policies.command(site.world.author, version=8))
    for _ in range(2):
        await site.advance(10)
    await site.until("host", "h1", "rechecked", since=since)


@threat(rows.KEY_AUTHOR_LAST)
async def test_there_is_always_a_version_above_the_highest(site: Deployment) -> None:
    """Else a stolen author's key could take the last one, and gateways would take no lease by another's policy."""

    async def put(version: int) -> str:
        return (await site.order(site.world.policies.command(site.world.author, version=version))).what

    now = int(site.clock() * 1_000_000)
    assert await put(now + 3600 * 1_000_000) == "refused"
    assert await put(now) == "applied"
    assert await put(now + 10**10 + 1) == "refused"
    assert await put(now + 10**10) == "applied"
    assert await put(2**63 - 1) == "refused"


@threat(rows.ENROLMENT_CHANGED)
async def test_an_enrolment_that_changes_while_evidence_is_judged_gets_no_lease(
    site: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.admitted()
    recheck = Verifier.host_recheck

    async def meanwhile(verifier: Verifier, *given: Any) -> Any:
        result = await recheck(verifier, *given)
        monkeypatch.setattr(Verifier, "host_recheck", recheck)
        await site.enrol_host()
        return result

    monkeypatch.setattr(Verifier, "host_recheck", meanwhile)
    since, said = len(site.events), len(site.wire.seen)
    await site.order(RecheckNow(kind="host", id="h1"))
    assert event_code(await site.until("host", "h1", "evidence-rejected", since=since)) == "enrolment.changed"
    assert not [one for one in posted(site, said) if isinstance(one, HostLease)]
    await site.advance(site.timing.evidence_window_s + 1)
    await site.until("host", "h1", "rechecked", since=since)


@threat(rows.ENROLMENT_CHANGED)
@pytest.mark.parametrize("role", ["host", "app"])
async def test_an_enrolment_that_changes_before_the_proof_gets_no_lease(site: Deployment, role: str) -> None:
    await (site.trusted() if role == "app" else site.enrol_host())
    name, step = ("h1.a1", "colocation_proof") if role == "app" else ("h1", "key_proof")
    proof = site.wire.hold(subjects.inbound(role, name, step))
    await (site.app() if role == "app" else site.host())
    held = await proof
    since, said = len(site.events), len(site.wire.seen)
    await (site.enrol_app() if role == "app" else site.enrol_host())
    site.wire.inject(*held)
    event = await site.seen(lambda event: event.what == "dropped", since=since)
    assert event_code(event) == "enrolment.changed"
    assert posted(site, said) == []


# Hosts that are held


async def hold(site: Deployment, after_drift: str = "hold") -> None:
    """A policy that holds who has drifted, or does not."""
    policies = site.world.policies
    host = json.dumps(json.loads(policies.host) | {"after_drift": after_drift}).encode()
    holding = LearnedPolicies(sgx=policies.sgx, host=host, runtime=policies.runtime)
    await site.order(holding.command(site.world.author, version=2))


async def drifted(site: Deployment) -> None:
    """h1, unanchored, drifts, is stopped, and rewrites its list."""
    agent = await site.trusted()
    await site.quiet()
    site.measurement_list.write_bytes((LISTS / "drift.bin").read_bytes())
    await site.order(RecheckNow(kind="host", id="h1"))
    await site.until("host", "h1", "untrusted")
    await site.quiet()
    await agent.stop()
    site.measurement_list.write_bytes((LISTS / "clean.bin").read_bytes())
    await site.advance(2)


async def begins(site: Deployment) -> str:
    """What comes of h1's next hello: its event, and why."""
    since = len(site.events)
    agent = await site.host()
    event = await site.seen(lambda event: event.kind == "host" and event.what in ("trusted", "dropped"), since=since)
    await site.quiet()
    await agent.stop()
    await site.advance(2)
    return event.what if event.what == "trusted" else event_code(event)


@threat(rows.LIST_REWRITTEN)
@pytest.mark.parametrize("where", ["same worker", "another worker", "the bus forgot"])
async def test_a_host_that_drifted_is_held_until_it_is_enrolled_again(site: Deployment, where: str) -> None:
    before = site.wire.snapshot("sessions")
    await hold(site)
    await drifted(site)
    match where:
        case "another worker":
            await parted(site)
        case "the bus forgot":
            await parted(site, "manager-0")
            site.wire.restore("sessions", before)
    assert await begins(site) == "host.held"
    await site.enrol_host()
    assert await begins(site) == "trusted"


@threat(rows.LIST_REWRITTEN)
async def test_without_that_policy_it_is_trusted_again_by_itself(site: Deployment) -> None:
    await hold(site, "attest-again")
    await drifted(site)
    assert await begins(site) == "trusted"


@threat(rows.LIST_REWRITTEN)
async def test_a_session_under_way_when_its_host_is_held_is_refused(site: Deployment) -> None:
    """Two sessions of a host: one waits with its proof, while the other ends."""
    await hold(site)
    first = await site.trusted()
    await site.advance(2)
    proof = site.wire.hold(subjects.inbound("host", "h1", "key_proof"))
    await site.host()
    held_back = await proof
    site.measurement_list.write_bytes((LISTS / "drift.bin").read_bytes())
    since = len(site.events)
    await site.order(RecheckNow(kind="host", id="h1"))
    await site.until("host", "h1", "untrusted", since=since)
    await site.quiet()
    await first.stop()
    await parted(site)  # by what is on the bus
    site.wire.inject(*held_back)
    event = await site.seen(lambda event: event.what == "dropped", since=since)
    assert event_code(event) == "host.held"


async def test_a_hold_is_sealed_again_with_the_records(site: Deployment) -> None:
    await hold(site)
    await drifted(site)
    entry = await site.bus.bucket("sessions").get("held.h1")
    assert entry is not None and entry.value is not None
    assert storage_keys._open(site.world.cipher, "held.h1", entry.value) == Hold(
        enrolled=(await site.records(HostRecord))[0].basis.enrolled,  # type: ignore[union-attr]
        counter=1,
    )


# A gateway that has lost its floors


def alarms(site: Deployment, since: int = 0) -> list[str]:
    """The gateways that are said to have lost their floors."""
    return [str(event.data["gateway"]) for event in site.events[since:] if event.what == "floors-lost"]


@threat(rows.FLOORS_LOST)
async def test_a_gateway_that_has_lost_its_floors_is_told_once(site: Deployment) -> None:
    at = int(site.clock()) + 10
    for floors, later in ((5, 0), (5, 1), (7, 2)):
        await report(site, floors=floors, at=at + later)
    for floors, later in ((5, 0), (5, 1), (6, 2)):  # those before, once more, or overtaken on their way
        await report(site, floors=floors, at=at + later)
    assert alarms(site) == []
    await report(site, floors=3, at=at + 3)
    assert alarms(site) == [GATEWAY]
    await report(site, floors=3, at=at + 4)
    await report(site, floors=4, at=at + 5)
    assert alarms(site) == [GATEWAY]
    await parted(site, "manager-0")
    since = len(site.events)
    await report(site, floors=3, at=at + 6)
    assert alarms(site, since) == [GATEWAY], "what it counted before is on this worker's disk"
