"""Operators' commands: who may, how long, in which order, once; and policies that never go back."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestgate.bus import subjects
from attestgate.bus.api import Message
from attestgate.bus.memory.bucket import BucketState, MemoryBucket
from attestgate.bus.operator import order
from attestgate.schemas.base import Refusal, pack, unpack
from attestgate.schemas.binding import PROTOCOL
from attestgate.schemas.enrolment import (
    COMMAND,
    MANIFEST,
    MANIFESTS,
    Command,
    Enrol,
    HostEnrolment,
    PolicyManifest,
    PutPolicy,
    RecheckNow,
    Revoke,
    TryPolicy,
    commands_of,
)
from attestgate.schemas.events import Event
from attestgate.schemas.in_force import ANSWER, IN_FORCE, Answer, InForce, Standing, Standings, digest_of, place_of
from attestgate.schemas.settings import ManagerSettings, OperatorSettings
from attestgate.schemas.signing import Purpose, Signed, Signer
from tests.support.manager.deployment import Deployment, deployed, order_subject
from tests.support.manager.world import AUTHOR, HOST_ENCLAVE, OPERATOR, TRUST_DOMAIN, World
from tests.support.reasons import event_code
from tests.support.threats import rows, threat


def enrol(mrenclave: str = HOST_ENCLAVE.mrenclave.hex(), id: str = "h1") -> Enrol:
    return Enrol(subject=HostEnrolment(id=id, mrenclaves=[mrenclave], platform="ab" * 32))


def command(site: Deployment, action: Any, **changes: Any) -> Command:
    fields = {
        "sequence": int(site.clock() * 1_000_000) + 1000,
        "expires_at": int(site.clock()) + 60,
        "action": action,
    }
    return Command(**fields | changes)


async def give(
    site: Deployment,
    given: Command,
    key: Signer | None = None,
    *,
    name: str = OPERATOR,
    place: str = OPERATOR,
    purpose: Purpose[Any] = COMMAND,
) -> Event:
    return await site.send_command(pack((key or site.world.operator).sign(purpose, commands_of(place), given)), name)


def stranger() -> Signer:
    return Signer(TRUST_DOMAIN, Ed25519PrivateKey.generate())


def answer(site: Deployment, event: Event, name: str = OPERATOR) -> Answer:
    """What a manager signed, about this very command."""
    signed = unpack(Signed, base64.b64decode(str(event.data["answer"])))
    return site.world.managers.read(ANSWER, signed, commands_of(name), bytes.fromhex(str(event.data["message"])))


async def test_a_command_is_applied_and_answered(site: Deployment) -> None:
    given = command(site, enrol())
    event = await give(site, given)
    assert (event.what, event.data["command"]) == ("applied", "enrol")
    said = answer(site, event)
    assert (said.applied, said.newest, said.reasons) == (True, given.sequence, [])


async def test_a_refusal_is_answered_with_the_time_and_what_it_must_be_above(site: Deployment) -> None:
    newest = command(site, enrol())
    await give(site, newest)
    event = await give(site, command(site, enrol("cd" * 32), sequence=newest.sequence - 1))
    said = answer(site, event)
    assert (said.applied, said.newest, said.at) == (False, newest.sequence, int(site.clock()))
    assert said.reasons[0].code == "command.sequence"


@threat(rows.REVOCATION_HIDDEN)
async def test_an_answer_is_of_one_command(site: Deployment) -> None:
    """Signed over its hash: the bus cannot answer a revocation with the answer to something else."""
    first, second = [await give(site, command(site, enrol(), sequence=int(site.clock() * 1e6) + n)) for n in (1, 2)]
    with pytest.raises(Refusal, match=r"signature\.invalid"):
        answer(site, first.model_copy(update={"data": {**first.data, "message": second.data["message"]}}))


AHEAD = [6_000_000, 3_600_000_000, 2**62, 2**63 - 1 - 1_900_000_000_000_000]


@threat(rows.KEY_OPERATOR)
@pytest.mark.parametrize("ahead", AHEAD)
async def test_a_sequence_from_the_future_is_refused(site: Deployment, ahead: int) -> None:
    given = command(site, enrol(), sequence=int(site.clock() * 1e6) + ahead)
    assert event_code(await give(site, given)) == "command.ahead"
    assert (await give(site, command(site, enrol("cd" * 32)))).what == "applied"


@threat(rows.KEY_OPERATOR)
async def test_above_what_is_in_force_there_is_always_room(site: Deployment) -> None:
    """A clock of five seconds ahead is in order; who comes next, and is right, signs above it."""
    first = command(site, enrol(), sequence=int((site.clock() + 5) * 1e6))
    assert (await give(site, first)).what == "applied"
    assert event_code(await give(site, command(site, enrol("cd" * 32)))) == "command.sequence"
    assert event_code(await give(site, command(site, enrol(), sequence=first.sequence + 1_000_001))) == "command.ahead"
    assert (await give(site, command(site, enrol("cd" * 32), sequence=first.sequence + 1))).what == "applied"


@pytest.mark.parametrize("wrong_s", [-3600, -30, 30, 3600, 10 * 365 * 86400])
async def test_an_operator_whose_clock_is_wrong_can_still_act(
    site: Deployment, wrong_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line signs again by the clock of the managers, once, and believes what they signed only."""
    monkeypatch.setattr("attestgate.bus.operator.time.time", lambda: site.clock() + wrong_s)
    said = (await order(site.bus, site.world.operator_key, enrol(), 10.0)).answer
    assert said.applied
    told = [event.what for event in site.events if event.kind == "op" and event.what != "dropped"]
    assert told[-2:] == ["refused", "applied"]
    revoke = Revoke(kind="host", id="h1", reason="test")
    newest = (await order(site.bus, site.world.operator_key, revoke, 10.0)).answer
    assert newest.newest > said.newest


@threat(rows.COMMAND_HELD_BACK)
@pytest.mark.parametrize("delay_s", [0, 8])
async def test_a_command_that_the_bus_held_back_is_not_signed_again_over_what_came_after_it(
    site: Deployment, monkeypatch: pytest.MonkeyPatch, delay_s: int
) -> None:
    """Enrolled by one, revoked by another who knew more: the command line of the first must not undo that unasked."""
    monkeypatch.setattr("attestgate.bus.operator.time.time", lambda: site.clock())
    held = site.wire.hold(subjects.operator(OPERATOR, "enrol"))
    asking = asyncio.create_task(order(site.bus, site.world.operator_key, enrol(), 20.0))
    subject, data = await held
    assert (await give(site, command(site, enrol()))).what == "applied"
    await site.advance(delay_s)
    revoked = command(site, Revoke(kind="host", id="h1", reason="stolen"), sequence=int(site.clock() * 1e6) + 2000)
    assert (await give(site, revoked)).what == "applied"
    site.wire.inject(subject, data)
    with pytest.raises(Refusal, match=r"command\.sequence: host h1"):
        await asking


@threat(rows.REVOCATION_HIDDEN)
async def test_the_command_line_believes_no_answer_of_the_bus(site: Deployment) -> None:
    """A revocation that is dropped, and an event that says it was applied: with an answer to another, or none."""
    before = await give(site, command(site, enrol()))

    async def lie(message: Message) -> None:
        data = {
            "message": digest_of(message.data).hex(),
            "sequence": 1,
            "command": "revoke",
            "answer": before.data["answer"],
        }
        told = before.model_copy(update={"id": "ab" * 16, "data": data})
        await site.bus.publish(subjects.event("op", OPERATOR, "applied"), told.body())

    held = site.wire.hold(subjects.operator(OPERATOR, "revoke"))
    asking = asyncio.create_task(
        order(site.bus, site.world.operator_key, Revoke(kind="host", id="h1", reason="test"), 1.0)
    )
    subject, data = await held
    await lie(Message(subject, data))
    with pytest.raises(Refusal, match=r"command\.unanswered"):
        await asking


async def test_the_same_command_again_changes_nothing_and_is_answered_alike(site: Deployment) -> None:
    given = command(site, enrol())
    assert (await give(site, given)).what == "applied"
    before = site.wire.snapshot("enrolment")
    assert (await give(site, given)).what == "applied"
    assert site.wire.snapshot("enrolment") == before


async def test_another_command_under_a_used_sequence_is_refused(site: Deployment) -> None:
    """A second terminal within the same microsecond, or somebody's script: it must not be told that it was applied."""
    given = command(site, enrol())
    assert (await give(site, given)).what == "applied"
    revocation = command(site, Revoke(kind="host", id="h1", reason="stolen"), sequence=given.sequence)
    event = await give(site, revocation)
    assert (event.what, event_code(event)) == ("refused", "command.sequence")
    again = revocation.model_copy(update={"sequence": given.sequence + 1})
    assert (await give(site, again)).what == "applied"


async def test_a_repeat_is_looked_at_as_closely_as_the_first(site: Deployment) -> None:
    given = command(site, enrol())
    assert (await give(site, given)).what == "applied"
    assert event_code(await give(site, given, name="somebody")) == "command.subject"
    await site.advance(61)
    assert event_code(await give(site, given)) == "command.expired"


@threat(rows.STATEMENT_ROLLED_BACK)
@pytest.mark.parametrize("restored", ["operators", "enrolment"])
async def test_another_command_under_a_used_sequence_is_refused_though_the_bus_forgot(
    site: Deployment, restored: str
) -> None:
    forgetful, given = site.wire.snapshot(restored), command(site, enrol())
    assert (await give(site, given)).what == "applied"
    site.wire.restore(restored, forgetful)
    other = command(site, Revoke(kind="host", id="h1", reason="stolen"), sequence=given.sequence)
    assert event_code(await give(site, other)) == "command.sequence"


@threat(rows.NAMES_MADE_UP)
async def test_what_the_bus_says_was_applied_locks_nobody_out(site: Deployment) -> None:
    """The bucket with each operator's newest command, as the bus likes it: signed by the operator, or by nobody."""
    given = command(site, enrol())
    said = InForce(statement=bytes(32), command=bytes(32), operator="ann", order=2**63 - 1, applied_at=1)
    key = site.world.operator.public.hex()
    forged = site.world.operator.sign(IN_FORCE, place_of("operators", key), said)
    for value in (pack(forged), b"", b"junk"):
        await site.bus.bucket("operators").put(key, value)
        given = given.model_copy(update={"sequence": given.sequence + 1})
        assert (await give(site, given)).what == "applied"


async def test_an_older_command_is_overtaken(site: Deployment) -> None:
    older, newer = command(site, enrol()), command(site, enrol("cd" * 32), sequence=int(site.clock() * 1e6) + 2000)
    assert (await give(site, newer)).what == "applied"
    event = await give(site, older)
    assert (event.what, event_code(event)) == ("refused", "command.sequence")


@threat(rows.STATEMENT_ROLLED_BACK)
async def test_an_older_command_is_overtaken_though_the_bus_forgot_the_newer(site: Deployment) -> None:
    forgetful = site.wire.snapshot("operators")
    older = command(site, enrol())
    assert (await give(site, command(site, enrol("cd" * 32), sequence=older.sequence + 5))).what == "applied"
    site.wire.restore("operators", forgetful)
    assert event_code(await give(site, older)) == "command.sequence"


@threat(rows.STATEMENT_MOVED)
async def test_an_expired_command_is_refused(site: Deployment) -> None:
    assert event_code(await give(site, command(site, enrol(), expires_at=int(site.clock()) - 1))) == "command.expired"


@threat(rows.COMMAND_UNSIGNED)
async def test_a_command_on_another_operators_subject_is_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of one whom the settings name: the rate is hers, and so is the answer."""
    settings_of = World.manager_settings
    olga = OperatorSettings(name="olga", role="operator", identity=stranger().public.hex())

    def with_olga(self: World, *arguments: Any) -> ManagerSettings:
        settings = settings_of(self, *arguments)
        return settings.model_copy(update={"operators": [*settings.operators, olga]})

    monkeypatch.setattr(World, "manager_settings", with_olga)
    async with deployed(world, tmp_path) as site:
        for name in ("somebody", "olga"):
            assert event_code(await give(site, command(site, enrol()), name=name)) == "command.subject"
        assert (await give(site, command(site, enrol()))).what == "applied"


@threat(rows.COMMAND_UNSIGNED)
async def test_a_command_in_another_operators_name_is_refused(site: Deployment) -> None:
    assert event_code(await give(site, command(site, enrol()), place="somebody")) == "signature.invalid"


@threat(rows.STATEMENT_MOVED)
async def test_a_command_for_another_deployment_is_refused(site: Deployment) -> None:
    elsewhere = Signer("other.example", site.world.operator.key)
    assert event_code(await give(site, command(site, enrol()), elsewhere)) == "signature.invalid"


@threat(rows.KEY_AUTHOR)
@pytest.mark.parametrize("what", ["enrol", "put-policy"])
async def test_a_policy_author_may_order_nothing(site: Deployment, what: str) -> None:
    """Not even a policy of its own: that takes an operator as well."""
    action = enrol() if what == "enrol" else put(site, version=2)
    given = command(site, action)
    assert event_code(await give(site, given, site.world.author)) == "signature.signer"
    assert event_code(await give(site, given, site.world.author, name=AUTHOR, place=AUTHOR)) == "command.subject"


@threat(rows.COMMAND_UNSIGNED)
async def test_a_stranger_may_nothing(site: Deployment) -> None:
    assert event_code(await give(site, command(site, enrol()), stranger())) == "signature.signer"


async def test_a_signature_for_another_purpose_is_none_here(site: Deployment) -> None:
    event = await give(site, command(site, enrol()), purpose=Purpose("break glass", "operator", Command))
    assert event_code(event) == "signature.invalid"


@threat(rows.COMMAND_UNSIGNED)
@pytest.mark.parametrize("field", ["payload", "signature", "signer"])
async def test_a_changed_command_is_refused(site: Deployment, field: str) -> None:
    signed = site.world.operator.sign(COMMAND, commands_of(OPERATOR), command(site, enrol()))
    value = getattr(signed, field)
    changed = signed.model_copy(update={field: value[:-1] + bytes([value[-1] ^ 1])})
    event = await site.send_command(pack(changed))
    assert event.what == "refused"
    assert event_code(event).startswith("signature.")


def bin16(value: bytes) -> bytes:
    return b"\xc5" + len(value).to_bytes(2, "big") + value


ENCODINGS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "a longer form": lambda fields: b"\xde\x00\x04" + msgpack.packb(fields)[1:],
    "a longer form within": lambda fields: msgpack.packb(fields).replace(
        msgpack.packb(fields["signer"]), bin16(fields["signer"])
    ),
    "another order": lambda fields: msgpack.packb(dict(reversed(fields.items()))),
    "a key twice": lambda fields: b"\x85" + msgpack.packb(fields)[1:] + msgpack.packb({"signer": fields["signer"]})[1:],
}


@threat(rows.COMMAND_REPACKED)
@pytest.mark.parametrize("how", ENCODINGS)
async def test_a_command_that_the_bus_packs_anew_takes_nothing_out_of_force(site: Deployment, how: str) -> None:
    """The outer encoding is not signed, and what stands is named by its hash: other bytes of a newer revocation would
    stand beside a wrong one, in the place of the revocation before, and an older enrolment would be in force."""
    assert (await give(site, command(site, enrol()))).what == "applied"
    at = int(site.clock() * 1e6)
    revoke = Revoke(kind="host", id="h1", reason="stolen")
    assert (await give(site, command(site, revoke, sequence=at + 2000))).what == "applied"
    before = site.wire.snapshot("enrolment")
    again = site.world.operator.sign(COMMAND, commands_of(OPERATOR), command(site, revoke, sequence=at + 3000))
    event = await site.send_command(ENCODINGS[how](again.model_dump()))
    assert (event.what, event_code(event)) == ("refused", "message.encoding")
    assert site.wire.snapshot("enrolment") == before
    assert (await site.send_command(pack(again))).what == "applied"


async def test_a_command_of_version_1_is_refused_by_name(site: Deployment) -> None:
    signed = site.world.operator.sign(COMMAND, commands_of(OPERATOR), command(site, enrol()))
    fields = signed.model_dump()
    del fields["version"]
    event = await site.send_command(msgpack.packb(fields))
    assert event_code(event) == "protocol.version"
    assert answer(site, event).reasons[0].found == "version 1"


async def test_bytes_that_are_no_command_are_refused(site: Deployment) -> None:
    assert event_code(await site.send_command(b"\xc1")) == "message.encoding"


@pytest.mark.parametrize("kind", ["host", "app"])
async def test_a_recheck_of_who_is_not_there_is_refused_and_asks_nobody(site: Deployment, kind: Any) -> None:
    assert event_code(await give(site, command(site, RecheckNow(kind=kind, id="nobody")))) == "enrolment.unknown"
    assert site.wire.said(f"{subjects.WORK}.>") == []


@threat(rows.NAMES_MADE_UP)
async def test_a_pointer_that_the_bus_made_keeps_no_order_from_the_other_sessions(site: Deployment) -> None:
    """What is in force is not answered as refused, and whoever can be told is told."""
    await site.admitted()
    for key in ("current.app.a1.a0", "current.app.a1.z9", "pending.app.a1.h1"):
        await site.bus.bucket("sessions").put(key, b"junk")
    since = len(site.events)
    event = await give(site, command(site, Revoke(kind="app", id="a1", reason="test")))
    assert event.what == "applied"
    await site.until("app", "a1", "revoked", since=since)
    recheck = command(site, RecheckNow(kind="app", id="a1"), sequence=int(site.clock() * 1e6) + 4000)
    assert event_code(await give(site, recheck)) == "record.open"


async def test_an_id_that_begins_like_another_is_another(site: Deployment) -> None:
    await site.admitted()
    await site.enrol_app("a")
    await site.enrol_host("h")
    since = len(site.events)
    await give(site, command(site, Revoke(kind="app", id="a", reason="test")))
    await give(site, command(site, Revoke(kind="host", id="h", reason="test"), sequence=int(site.clock() * 1e6) + 3000))
    await site.quiet()
    assert [e.what for e in site.events[since:] if e.kind != "op"] == []


async def test_a_session_on_its_way_is_revoked_too(site: Deployment) -> None:
    """Proven, its certificate under way: the order reaches it, and enrolment is read again before it gets anything."""
    held = site.wire.hold(subjects.inbound("app", "h1.a1", "colocation_proof"))
    path = asyncio.create_task(site.admitted())
    subject, proof = await held
    await site.order(Revoke(kind="app", id="a1", reason="test"))
    await site.until("app", "a1", "revoked")
    site.wire.inject(subject, proof)
    await site.dropped(1)
    path.cancel()
    await asyncio.wait([path])
    assert "certified" not in site.what("app", "a1")


@threat(rows.REVOCATION_HIDDEN, rows.KEY_STORAGE)
async def test_a_certificate_is_not_issued_to_who_was_revoked_meanwhile(site: Deployment) -> None:
    """Even if the order itself is lost on the bus."""
    held = site.wire.hold(f"{subjects.WORK}.app.*.issue")
    path = asyncio.create_task(site.admitted())
    subject, issue = await held
    lost = site.wire.hold(f"{subjects.WORK}.app.*.revoke")
    await site.order(Revoke(kind="app", id="a1", reason="test"))
    await lost
    site.wire.inject(subject, issue)
    await site.dropped(1)
    assert site.dropped_codes() == ["enrolment.revoked"]
    path.cancel()
    await asyncio.wait([path])
    assert not site.gateway.passes("a1")


async def test_ready_is_not_said_to_who_was_revoked_meanwhile(site: Deployment) -> None:
    held = site.wire.hold(f"{subjects.WORK}.app.*.applied")
    path = asyncio.create_task(site.admitted())
    subject, applied = await held
    lost = [site.wire.hold(f"{subjects.WORK}.app.*.revoke")]
    await site.order(Revoke(kind="app", id="a1", reason="test"))
    await lost[0]
    site.wire.inject(subject, applied)
    await site.dropped(1)
    assert site.dropped_codes() == ["enrolment.revoked"]
    path.cancel()
    await asyncio.wait([path])
    assert site.wire.said(subjects.outbound("app", "h1.a1", "ready")) == []


async def test_a_placement_taken_away_ends_trust_at_the_next_recheck(site: Deployment) -> None:
    await site.admitted()
    await site.enrol_app("a1", "h9")
    await site.order(RecheckNow(kind="app", id="a1"))
    assert event_code(await site.until("app", "a1", "untrusted")) == "enrolment.placement"


# Policies


def put(site: Deployment, key: Signer | None = None, **changes: Any) -> PutPolicy:
    whole = site.world.policies.command(site.world.author, version=1)
    manifest = unpack(PolicyManifest, whole.manifest.payload).model_copy(update=changes)
    signed = (key or site.world.author).sign(MANIFEST, MANIFESTS, manifest)
    return PutPolicy(manifest=signed, documents=whole.documents)


async def order_refused(site: Deployment, action: PutPolicy) -> str:
    event = await give(site, command(site, action))
    assert event.what == "refused"
    return event_code(event)


async def test_a_newer_manifest_is_put_in_force(site: Deployment) -> None:
    assert (await give(site, command(site, put(site, version=2)))).what == "applied"


async def test_a_manifest_does_not_go_back(site: Deployment) -> None:
    assert (await give(site, command(site, put(site, version=5)))).what == "applied"
    event = await give(site, command(site, put(site, version=4), sequence=int(site.clock() * 1e6) + 2000))
    assert event_code(event) == "command.policy"


async def test_another_manifest_of_the_same_version_is_refused(site: Deployment) -> None:
    assert await order_refused(site, put(site, version=1, min_crl_number=1)) == "command.policy"


@threat(rows.KEY_MANAGER_ENROLS, rows.KEY_OPERATOR_POLICY)
@pytest.mark.parametrize("whose", ["operator", "manager", "gateway"])
async def test_only_a_policy_author_signs_a_manifest(site: Deployment, whose: str) -> None:
    assert await order_refused(site, put(site, getattr(site.world, whose), version=2)) == "signature.signer"


async def test_a_document_that_is_missing_is_said(site: Deployment) -> None:
    whole = put(site, version=2)
    assert await order_refused(site, whole.model_copy(update={"documents": whole.documents[1:]})) == "command.policy"


async def test_a_signed_manifest_needs_no_more_than_its_bearer(site: Deployment) -> None:
    """The manifest's own signature counts: a command is no manifest."""
    whole = put(site, version=2)
    forged = whole.manifest.model_copy(update={"signature": bytes(64)})
    assert await order_refused(site, whole.model_copy(update={"manifest": forged})) == "signature.invalid"


async def test_of_two_manifests_at_once_the_newer_stays_in_force(
    site: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = put(site, version=2)
    held, on, store = asyncio.Event(), asyncio.Event(), MemoryBucket.put

    async def slow(bucket: MemoryBucket, key: str, value: bytes) -> int:
        if value == older.documents[0] and not held.is_set():
            held.set()
            await on.wait()
        return await store(bucket, key, value)

    monkeypatch.setattr(MemoryBucket, "put", slow)
    given = pack(site.world.operator.sign(COMMAND, commands_of(OPERATOR), command(site, older)))
    await site.bus.publish(order_subject(OPERATOR, given), given)
    await held.wait()
    newer = command(site, put(site, version=3), sequence=int(site.clock() * 1e6) + 2000)
    assert (await give(site, newer)).what == "applied"
    on.set()
    assert event_code(await site.until("op", OPERATOR, "refused")) == "command.policy"
    entry = await site.bus.bucket("policies").get("manifest")
    assert entry is not None and entry.value is not None
    newest = unpack(Standings, entry.value).standing[0].statement
    assert unpack(PolicyManifest, newest.payload).version == 3


async def test_a_manifest_that_nobody_believes_is_replaced(site: Deployment) -> None:
    """Its author was taken out of the settings before another had signed, or the bus put something there."""
    foreign = put(site, stranger(), version=9)
    said = InForce(
        statement=digest_of(pack(foreign.manifest)), command=bytes(32), operator="ann", order=9, applied_at=1
    )
    in_force = site.world.manager.sign(IN_FORCE, place_of("policies", "manifest"), said)
    standing = Standing(statement=foreign.manifest, in_force=in_force)
    await site.bus.bucket("policies").put("manifest", pack(Standings(version=PROTOCOL, standing=[standing])))
    assert (await give(site, command(site, put(site, version=2)))).what == "applied"


@threat(rows.KEY_OPERATOR_POLICY)
async def test_a_stolen_operators_key_does_not_keep_others_from_trying_policies(
    site: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its commands may be a second above the last, so it can put a policy on trial by one from far ahead. The
    trial is its policy author's, and stays when the key is taken out: the others sign above it."""
    trials = [site.world.policies.command(site.world.author, version=version) for version in (2, 3)]
    trial, other = [TryPolicy(manifest=put.manifest, documents=put.documents) for put in trials]
    sequence = int((site.clock() + 5) * 1e6)
    for _ in range(3):
        assert (await give(site, command(site, enrol(), sequence=sequence))).what == "applied"
        sequence += 1_000_000
    assert (await give(site, command(site, trial, sequence=sequence))).what == "applied"
    for bucket in ("operators", "enrolment"):  # as for an operator who has ordered nothing yet
        site.wire.restore(bucket, BucketState({}, 0))
    await site.kill_workers()
    site.run(site.wire.connect(), "another")
    monkeypatch.setattr("attestgate.bus.operator.time.time", site.clock)
    assert (await order(site.bus, site.world.operator_key, other, 10.0)).answer.applied
