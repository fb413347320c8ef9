"""A new policy before it is in force: on lists, on live hosts; learned from a folder; signed as Keylime signs."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from pydantic import JsonValue
from typer.testing import CliRunner

from attestgate.bus.api import Message
from attestgate.cli.policy import app as policy_app
from attestgate.cli.policy_hosts import Answers
from attestgate.compose.local.policies import LearnedPolicies
from attestgate.manager.policy.policies import manifest_name
from attestgate.manager.policy.policy_tree import measured_files
from attestgate.manager.policy.policy_trial import try_on
from attestgate.manager.sessions.record import HostRecord
from attestgate.manager.sessions.trusted_host import trusted
from attestgate.manager.verification.ima.policy_dsse import PAYLOAD_TYPE, opened, pae, read_key, read_signing_key, sign
from attestgate.manager.verification.ima.runtime_policy import load
from attestgate.schemas.base import Refusal, unpack
from attestgate.schemas.enrolment import PolicyManifest, RecheckNow, TryPolicy
from attestgate.schemas.event_data import PolicyTried
from attestgate.schemas.events import Event
from attestgate.schemas.sgx import policy_name
from tests.support.ima.lists import VECTORS, document, frame, loaded, ng, recorded
from tests.support.manager.deployment import Deployment

CLEAN, DRIFT = recorded("clean"), recorded("drift")
EC_KEY, ED_KEY = ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()
POLICY = document(CLEAN).text().encode()


def test_a_list_under_a_new_policy() -> None:
    assert not try_on(loaded(CLEAN), "clean", CLEAN).fails
    drifted = try_on(loaded(CLEAN), "drift", DRIFT)
    assert drifted.fails and len(drifted.unknown) == 10 and drifted.problem == ""
    assert try_on(loaded(CLEAN), "cut", CLEAN[:-1]).problem.startswith("ima.truncated")
    assert try_on(loaded(CLEAN), "ascii", (VECTORS / "clean.ascii").read_bytes()[:-1]).problem.startswith("ima.ascii")


def test_diff_against_lists(tmp_path: Path) -> None:
    policy = tmp_path / "new.json"
    policy.write_bytes(POLICY)
    clean, drift = (str(VECTORS / name) for name in ("clean.bin", "drift.ascii"))
    runner = CliRunner()
    assert runner.invoke(policy_app, ["diff", str(policy), "--against", clean]).exit_code == 0
    both = runner.invoke(policy_app, ["diff", str(policy), "--against", clean, "--against", drift, "--json"])
    assert both.exit_code == 1
    passes, fails = json.loads(both.stdout)["trials"]
    assert passes["unknown"] == [] and len(fails["unknown"]) == 10
    told = runner.invoke(policy_app, ["diff", str(policy), "--against", drift]).stdout
    assert "fails" in told and "/usr/local/bin/rogue-agent" in told
    with pytest.raises(Refusal, match=r"cli\.argument"):
        runner.invoke(policy_app, ["diff", str(policy), "--against", "hosts"], catch_exceptions=False, env={})


def test_learn_from_a_folder_knows_what_a_host_will_measure(tmp_path: Path) -> None:
    image = tmp_path / "image"
    (image / "usr" / "bin").mkdir(parents=True)
    (image / "usr" / "bin" / "new tool").write_bytes(b"tool")
    (image / "etc").mkdir()
    (image / "etc" / "link").symlink_to("/usr/bin/new tool")
    os.mkfifo(image / "etc" / "pipe")
    digest = hashlib.sha256(b"tool").digest()
    assert list(measured_files(image, "sha256")) == [(b"/usr/bin/new_tool", digest)]
    output = tmp_path / "policy.json"
    arguments = ["learn", str(VECTORS / "clean.bin"), str(image), "-o", str(output), "--below", "/opt"]
    assert CliRunner().invoke(policy_app, arguments).exit_code == 0
    grown = CLEAN + frame(b"ima-sig", ng(digest), b"/opt/usr/bin/new_tool\0", b"")
    assert not try_on(load(output.read_bytes()), "grown", grown).fails
    assert try_on(loaded(CLEAN), "grown", grown).fails


def public_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def private_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.mark.parametrize("key", [EC_KEY, ED_KEY])
def test_a_signed_policy_opens_with_its_authors_key_only(
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey,
) -> None:
    envelope = sign(POLICY, key)
    public = read_key(public_pem(key), source="key")
    others = [read_key(public_pem(ec.generate_private_key(ec.SECP256R1())), source="key")]
    assert opened(envelope, [*others, public], source="policy") == POLICY
    named = load(envelope, authors=[public])
    assert named.sha256 == policy_name(envelope) and named.digests == load(POLICY).digests
    for raw, keys, code in (
        (envelope, others, "policy.signature"),
        (envelope, [], "policy.signature"),
        (POLICY, [public], "policy.unsigned"),
    ):
        with pytest.raises(Refusal, match=code):
            load(raw, authors=keys)


def test_the_envelope_is_dsse_as_keylime_writes_it() -> None:
    """The protocol's own example of PAE, and an envelope put together by hand."""
    assert (
        pae("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    made = EC_KEY.sign(b"DSSEv1 28 application/vnd.keylime+json %d " % len(POLICY) + POLICY, ec.ECDSA(hashes.SHA256()))
    envelope = {
        "payload": base64.b64encode(POLICY).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": "anything", "sig": base64.b64encode(made).decode()}],
    }
    assert opened(json.dumps(envelope).encode(), [EC_KEY.public_key()], source="policy") == POLICY
    url_safe = envelope | {"signatures": [{"sig": base64.urlsafe_b64encode(made).decode()}]}
    assert opened(json.dumps(url_safe).encode(), [EC_KEY.public_key()], source="policy") == POLICY
    changes: list[dict[str, Any]] = [
        {"payload": base64.b64encode(POLICY + b" ").decode()},
        {"payloadType": "text/plain"},
        {"payload": "?"},
        {"signatures": []},
        {"signatures": [{"sig": "AAAA"}]},
        {"more": 1},
    ]
    for change in changes:
        with pytest.raises(Refusal):
            opened(json.dumps(envelope | change).encode(), [EC_KEY.public_key()], source="policy")


def test_signing_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_bytes(POLICY)
    (tmp_path / "key.pem").write_bytes(private_pem(EC_KEY))
    arguments = ["dsse", str(tmp_path / "policy.json"), "--key", str(tmp_path / "key.pem"), "-o", str(tmp_path / "out")]
    assert CliRunner().invoke(policy_app, arguments).exit_code == 0
    assert opened((tmp_path / "out").read_bytes(), [EC_KEY.public_key()], source="policy") == POLICY


def test_keys_of_other_kinds_sign_nothing() -> None:
    key = rsa.generate_private_key(65537, 2048)
    for read in (lambda: read_key(public_pem(key), source="k"), lambda: read_signing_key(private_pem(key), source="k")):
        with pytest.raises(Refusal, match=r"policy\.key"):
            read()
    with pytest.raises(Refusal, match=r"policy\.key"):
        read_signing_key(b"nothing", source="k")


def less(tmp_path: Path) -> LearnedPolicies:
    """A policy that has lost the last program that the host has measured."""
    shorter = tmp_path / "shorter"
    shorter.write_bytes(CLEAN[: CLEAN.rindex(b"\x0a\0\0\0")])
    return LearnedPolicies.learn(shorter)


async def test_a_policy_on_trial_is_told_of_and_cuts_nobody_off(site: Deployment, tmp_path: Path) -> None:
    await site.enrol_host()
    await site.host()
    await site.until("host", "h1", "trusted")
    put = less(tmp_path).command(site.world.author, version=2)
    await site.order(TryPolicy(manifest=put.manifest, documents=put.documents))
    since = len(site.events)
    await site.order(RecheckNow(kind="host", id="h1"))
    event = await site.until("host", "h1", "rechecked", since=since)
    tried = PolicyTried.model_validate(event.data["trial"])
    manifest = manifest_name(unpack(PolicyManifest, put.manifest.payload))
    assert tried.manifest == manifest and not tried.admitted and len(tried.unknown) == 1
    assert tried.unknown[0].index == 447
    (record,) = await site.records(HostRecord)
    assert trusted(record, int(site.clock()), site.timing.skew_s) is not None

    answers = Answers(manifest)
    await answers.hear(Message("attest.v1.events.host.h1.rechecked", event.body()))
    (trial, silent) = await answers.of(["h1", "h2"], 0.01)
    assert trial.fails and trial.entries == 448 and [entry.index for entry in trial.unknown] == [447]
    assert silent.fails and silent.name == "h2"

    since = len(site.events)
    await site.order(RecheckNow(kind="host", id="h1"))
    assert "trial" not in (await site.until("host", "h1", "rechecked", since=since)).data, "once is enough"
    await site.order(put)
    await site.order(RecheckNow(kind="host", id="h1"))
    await site.until("host", "h1", "untrusted", since=since)


async def test_events_about_something_else_are_no_answer() -> None:
    answers = Answers("ab" * 32)
    other = PolicyTried(manifest="cd" * 32, admitted=True, reasons=[], unknown=[]).model_dump(mode="json")
    nothing: list[dict[str, JsonValue]] = [{}, {"trial": other}]
    for data in nothing:
        event = Event(id="1", kind="host", subject="h1", what="rechecked", at=1, source="test", data=data)
        await answers.hear(Message("attest.v1.events.host.h1.rechecked", event.body()))
    (silent,) = await answers.of(["h1"], 0.01)
    assert silent.fails and "attestgate hosts" in silent.problem


async def test_a_trial_without_an_authors_signature_is_refused(site: Deployment, tmp_path: Path) -> None:
    put = less(tmp_path).command(site.world.operator, version=2)
    refused = await site.order(TryPolicy(manifest=put.manifest, documents=put.documents))
    assert refused.what == "refused"
