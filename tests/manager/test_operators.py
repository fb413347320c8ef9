"""Operators' commands: who may, how long, in which order, once; and policies that never go back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestgate.bus import subjects
from attestgate.bus.memory.bucket import MemoryBucket
from attestgate.manager.local.high_water import HighWater
from attestgate.manager.policy.enrolments import Enrolments
from attestgate.schemas.base import pack, unpack
from attestgate.schemas.enrolment import Command, Enrol, HostEnrolment, PolicyManifest, PutPolicy, RecheckNow, Revoke
from attestgate.schemas.events import Event
from attestgate.schemas.signing import Signed, sign
from tests.support.manager.deployment import Deployment, order_subject
from tests.support.manager.world import AUTHOR, HOST_ENCLAVE, OPERATOR
from tests.support.reasons import event_code


def enrol(mrenclave: str = HOST_ENCLAVE.mrenclave.hex(), id: str = "h1") -> Enrol:
    return Enrol(subject=HostEnrolment(id=id, mrenclaves=[mrenclave], platform="ab" * 32))


def command(site: Deployment, action: Any, **changes: Any) -> Command:
    fields = {
        "operator": OPERATOR,
        "sequence": int(site.clock() * 1_000_000) + 1000,
        "expires_at": int(site.clock()) + 60,
        "action": action,
    }
    return Command(**fields | changes)


async def give(
    site: Deployment,
    given: Command,
    key: Ed25519PrivateKey | None = None,
    *,
    name: str = OPERATOR,
    label: str = "command",
) -> Event:
    return await site.send_command(pack(sign(key or site.world.operator, label, given)), name)


async def test_a_command_is_applied_and_answered(site: Deployment) -> None:
    event = await give(site, command(site, enrol()))
    assert (event.what, event.data["command"]) == ("applied", "enrol")


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


async def test_a_used_sequence_whose_command_the_bus_forgot_is_refused(site: Deployment) -> None:
    """The worker's own memory holds the number alone: what came under it cannot be compared any more."""
    forgetful, given = site.wire.snapshot("operators"), command(site, enrol())
    assert (await give(site, given)).what == "applied"
    site.wire.restore("operators", forgetful)
    other = command(site, Revoke(kind="host", id="h1", reason="stolen"), sequence=given.sequence)
    assert event_code(await give(site, other)) == "command.sequence"


async def test_of_two_operators_words_under_one_sequence_the_first_stands(site: Deployment) -> None:
    given = command(site, enrol())
    assert (await give(site, given)).what == "applied"
    marks = HighWater(site.folder / "manager-0" / "high-water.json")
    enrolments = Enrolments(site.wire.connect(), site.signers, marks)
    other = command(site, Revoke(kind="host", id="h1", reason="stolen"), sequence=given.sequence)
    with pytest.raises(Exception, match=r"command\.sequence"):
        await enrolments.put("host", "h1", sign(site.world.operator, "command", other))
    await enrolments.put("host", "h1", sign(site.world.operator, "command", given))


async def test_an_older_command_is_overtaken(site: Deployment) -> None:
    older, newer = command(site, enrol()), command(site, enrol("cd" * 32), sequence=int(site.clock() * 1e6) + 2000)
    assert (await give(site, newer)).what == "applied"
    event = await give(site, older)
    assert (event.what, event_code(event)) == ("refused", "command.sequence")


async def test_an_older_command_is_overtaken_though_the_bus_forgot_the_newer(site: Deployment) -> None:
    forgetful = site.wire.snapshot("operators")
    older = command(site, enrol())
    assert (await give(site, command(site, enrol("cd" * 32), sequence=older.sequence + 5))).what == "applied"
    site.wire.restore("operators", forgetful)
    assert event_code(await give(site, older)) == "command.sequence"


async def test_a_revocation_is_not_undone_by_an_older_enrolment_of_another_operator(site: Deployment) -> None:
    """Sequences are compared for each subject too, whoever signed."""
    assert (await give(site, command(site, enrol()))).what == "applied"
    revoked = command(site, Revoke(kind="host", id="h1", reason="stolen"), sequence=int(site.clock() * 1e6) + 9000)
    assert (await give(site, revoked)).what == "applied"
    marks = HighWater(site.folder / "manager-0" / "high-water.json")
    enrolments = Enrolments(site.wire.connect(), site.signers, marks)
    older = sign(site.world.operator, "command", command(site, enrol(), sequence=revoked.sequence - 1))
    with pytest.raises(Exception, match=r"command\.sequence"):
        await enrolments.put("host", "h1", older)


async def test_an_expired_command_is_refused(site: Deployment) -> None:
    assert event_code(await give(site, command(site, enrol(), expires_at=int(site.clock()) - 1))) == "command.expired"


async def test_a_command_on_another_operators_subject_is_refused(site: Deployment) -> None:
    assert event_code(await give(site, command(site, enrol()), name="somebody")) == "command.subject"


async def test_a_command_in_another_operators_name_is_refused(site: Deployment) -> None:
    assert event_code(await give(site, command(site, enrol(), operator=AUTHOR), name=AUTHOR)) == "command.operator"


async def test_a_policy_author_may_not_enrol(site: Deployment) -> None:
    event = await give(site, command(site, enrol(), operator=AUTHOR), site.world.author, name=AUTHOR)
    assert event_code(event) == "command.role"


async def test_a_stranger_may_nothing(site: Deployment) -> None:
    assert event_code(await give(site, command(site, enrol()), Ed25519PrivateKey.generate())) == "signature.signer"


async def test_a_signature_for_another_purpose_is_none_here(site: Deployment) -> None:
    event = await give(site, command(site, enrol()), label="policy manifest")
    assert event_code(event) == "signature.invalid"


@pytest.mark.parametrize("field", ["payload", "signature", "signer"])
async def test_a_changed_command_is_refused(site: Deployment, field: str) -> None:
    signed = sign(site.world.operator, "command", command(site, enrol()))
    value = getattr(signed, field)
    changed = signed.model_copy(update={field: value[:-1] + bytes([value[-1] ^ 1])})
    event = await site.send_command(pack(changed))
    assert event.what == "refused"
    assert event_code(event).startswith("signature.")


async def test_bytes_that_are_no_command_are_refused(site: Deployment) -> None:
    assert event_code(await site.send_command(b"\xc1")) == "message.encoding"


@pytest.mark.parametrize("kind", ["host", "app"])
async def test_a_recheck_of_who_is_not_there_is_refused_and_asks_nobody(site: Deployment, kind: Any) -> None:
    assert event_code(await give(site, command(site, RecheckNow(kind=kind, id="nobody")))) == "enrolment.unknown"
    assert site.wire.said(f"{subjects.WORK}.>") == []


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


def put(site: Deployment, key: Ed25519PrivateKey | None = None, **changes: Any) -> PutPolicy:
    whole = site.world.policies.command(site.world.author, version=1)
    manifest = unpack(PolicyManifest, whole.manifest.payload).model_copy(update=changes)
    return PutPolicy(manifest=sign(key or site.world.author, "policy manifest", manifest), documents=whole.documents)


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


async def test_an_operator_cannot_sign_a_manifest(site: Deployment) -> None:
    assert await order_refused(site, put(site, site.world.operator, version=2)) == "signature.signer"


async def test_a_document_that_is_missing_is_said(site: Deployment) -> None:
    whole = put(site, version=2)
    assert await order_refused(site, whole.model_copy(update={"documents": whole.documents[1:]})) == "command.policy"


async def test_a_signed_manifest_needs_no_more_than_its_bearer(site: Deployment) -> None:
    """The manifest's own signature counts: a command is no manifest."""
    whole = put(site, version=2)
    forged = Signed(payload=whole.manifest.payload, signer=whole.manifest.signer, signature=bytes(64))
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
    given = pack(sign(site.world.operator, "command", command(site, older)))
    await site.bus.publish(order_subject(OPERATOR, given), given)
    await held.wait()
    newer = command(site, put(site, version=3), sequence=int(site.clock() * 1e6) + 2000)
    assert (await give(site, newer)).what == "applied"
    on.set()
    assert event_code(await site.until("op", OPERATOR, "refused")) == "command.policy"
    entry = await site.bus.bucket("policies").get("manifest")
    assert entry is not None and entry.value is not None
    assert unpack(PolicyManifest, unpack(Signed, entry.value).payload).version == 3


async def test_a_manifest_that_nobody_believes_is_replaced(site: Deployment) -> None:
    """Its author was taken out of the settings before another had signed, or the bus put something there."""
    stranger = put(site, Ed25519PrivateKey.generate(), version=9)
    await site.bus.bucket("policies").put("manifest", pack(stranger.manifest))
    assert (await give(site, command(site, put(site, version=2)))).what == "applied"
