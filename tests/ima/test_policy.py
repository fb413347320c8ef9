"""Runtime policies: Keylime's format read and written, learned, linted; signatures of files and measured keys."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from struct import pack
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from hypothesis import given
from hypothesis import strategies as st

from attestgate.manager.verification.ima.appraisal import appraise_list
from attestgate.manager.verification.ima.keyrings import is_key, key_id, read_keys_in_slices, signed
from attestgate.manager.verification.ima.measurement_list import entries
from attestgate.manager.verification.ima.policy_lint import lint
from attestgate.manager.verification.ima.runtime_policy import LoadedPolicy, RuntimePolicy, learn, load, read
from attestgate.manager.verification.ima.slices import finish
from attestgate.schemas.base import Refusal
from attestgate.schemas.host_policy import GoldenPcrs, ListVerdict, Replay
from tests.support.ima.lists import NOW, boot_aggregate, document, frame, host, loaded, ng, recorded
from tests.support.threats import rows, threat

DIGEST = "ab" * 32
KEYLIME: dict[str, Any] = {
    "meta": {"version": 1, "generator": 3, "timestamp": "2026-01-01 00:00:00"},
    "release": 0,
    "digests": {"/bin/a": [DIGEST, "cd" * 20], "boot_aggregate": ["ef" * 32]},
    "excludes": ["/tmp/.*", r"/var/log/[a-z]+\.log$"],
    "keyrings": {".ima": [DIGEST]},
    "ima": {"ignored_keyrings": ["%keyring:uid:0"], "log_hash_alg": "sha1", "dm_policy": None},
    "ima-buf": {"kernel_version": [DIGEST]},
    "verification-keys": "",
}


def refusal_of(document: Mapping[str, object] | str) -> str:
    with pytest.raises(Refusal) as refusal:
        load(document if isinstance(document, str) else json.dumps(document, indent=1))
    return refusal.value.reasons[0].sentence()


def test_keylimes_document_is_read_as_it_means() -> None:
    text = json.dumps(KEYLIME)
    policy = load(text)
    assert policy.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert policy.digests[b"/bin/a"] == {bytes.fromhex(DIGEST), bytes.fromhex("cd" * 20)}
    assert policy.keyrings[b".ima"] == policy.buffers[b"kernel_version"] == {bytes.fromhex(DIGEST)}
    assert [policy.excluded(path) for path in (b"/tmp/a", b"/var/log/a.log", b"/var/log/a.logs", b"/x/tmp/a")] == [
        *(True, True, False, False)
    ]
    assert policy.nearest(b"/bin/a", 20) == "cd" * 20 and policy.nearest(b"/bin/b", 20) is None


def test_what_is_written_is_what_keylime_wants() -> None:
    written = json.loads(document(recorded("clean")).text())
    assert written.keys() == KEYLIME.keys()
    assert written["ima"] == {"ignored_keyrings": [], "log_hash_alg": "sha1", "dm_policy": None}
    assert written["meta"] == {"version": 1, "generator": 0}
    assert json.loads(read(json.dumps(KEYLIME).encode()).text()) == KEYLIME


@threat(rows.POLICY_GAP)
@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"unacknowledged-of": 1}, "file.fields"),
        ({"digests": {}}, "policy.empty"),
        ({"digests": {"/bin/a": []}}, "file.fields"),
        ({"digests": {"/bin/a": ["AB" * 32]}}, "file.fields"),
        ({"digests": {"/bin/a": ["ab" * 16]}}, "file.fields"),
        ({"digests": {"/bin/a": DIGEST}}, "file.fields"),
        ({"meta": {"version": 2, "generator": 0}}, "file.fields"),
        ({"meta": {"version": 1, "generator": 0, "x": 1}}, "file.fields"),
        ({"ima": {"ignored_keyrings": [], "log_hash_alg": "sha256", "dm_policy": None}}, "file.fields"),
        ({"ima": {"ignored_keyrings": [], "log_hash_alg": "sha1", "dm_policy": {"version": 1}}}, "file.fields"),
        ({"excludes": ["(?=x)"]}, "policy.pattern"),
        ({"excludes": [r"(a)\1"]}, "policy.pattern"),
        ({"excludes": ["("]}, "policy.pattern"),
        ({"excludes": [")|("]}, "policy.pattern"),
        ({"excludes": ["(((a{100}){100}){100})"]}, "policy.pattern"),
        ({"excludes": [f"(?:{number}x{{900}}){{1}}y" for number in range(3000)]}, "policy.pattern"),
        ({"verification-keys": "{}"}, "file.fields"),
        ({"verification-keys": '{"keyids": [], "pubkeys": ["AAAA"]}'}, "policy.key"),
        ({"verification-keys": '{"keyids": [], "pubkeys": ["not base64"]}'}, "policy.key"),
    ],
)
def test_a_policy_with_a_gap_is_refused_at_load(change: dict[str, object], code: str) -> None:
    assert refusal_of(KEYLIME | change).startswith(code)


@threat(rows.POLICY_GAP)
@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"meta": {}, "meta": {}}', "\udcff"[:0] + "null"])
def test_what_is_no_policy_is_refused(text: str) -> None:
    assert refusal_of(text).startswith("file.")


@threat(rows.POLICY_GAP)
@pytest.mark.parametrize("pattern", ["", ".*", "/", "/?", "(/usr)?", "^", "/tmp/|", "x*", "/(.|\\n)"])
def test_a_pattern_that_hides_every_path_is_refused(pattern: str) -> None:
    """An empty line of somebody's list, for one: with it every program would be accepted unseen."""
    sentence = refusal_of(KEYLIME | {"excludes": ["/tmp/", pattern]})
    assert sentence.startswith("policy.pattern") and "every path" in sentence and "excludes[1]" in sentence


@pytest.mark.parametrize("pattern", ["/tmp/", "^$", "/$", "/[^u]", "/(usr|etc)/", "boot_aggregate"])
def test_a_pattern_that_leaves_some_path_visible_is_loaded(pattern: str) -> None:
    assert load(json.dumps(KEYLIME | {"excludes": [pattern]})).excluded(b"/usr/bin/x") == ("usr" in pattern)


def test_a_pattern_is_refused_by_its_line() -> None:
    text = json.dumps(KEYLIME | {"excludes": ["/tmp/.*", "(?<=x)y"]}, indent=1)
    line = next(number for number, line in enumerate(text.splitlines(), 1) if "(?<=x)y" in line)
    sentence = refusal_of(text)
    assert f"line {line}: excludes[1]" in sentence and "RE2" in sentence


@threat(rows.POLICY_GAP)
def test_a_pattern_that_would_blow_up_elsewhere_takes_linear_time() -> None:
    policy = load(json.dumps(KEYLIME | {"excludes": ["/(a+)+$"]}))
    assert not policy.excluded(b"/" + b"a" * 4000 + b"!")


def test_learning_keeps_keys_buffers_and_files_apart_and_leaves_out_what_teaches_nothing() -> None:
    certificate = make_certificate(ec.generate_private_key(ec.SECP256R1()))
    data = b"".join(
        [
            frame(b"ima-ng", ng(bytes(20), b"sha1"), b"boot_aggregate\0"),
            buffer(b".ima", certificate),
            buffer(b"kernel_version", b"6.1"),
            frame(b"ima-ng", ng(bytes(32)), b"/unreadable\0"),
            frame(b"ima-ng", ng(bytes(32)), b"/violation\0", template_hash=bytes(20)),
            frame(b"ima-ng", ng(), b"/not/utf-8/\xff\0"),
        ]
    )
    policy, left_out = learn([entries(data)])
    assert left_out == [b"/not/utf-8/\xff"]
    assert policy.digests == {"boot_aggregate": ["00" * 20]}
    assert policy.keyrings == {".ima": [hashlib.sha256(certificate).hexdigest()]}
    assert policy.ima_buf == {"kernel_version": [hashlib.sha256(b"6.1").hexdigest()]}


def test_learning_adds_to_a_policy_and_changes_nothing_else() -> None:
    base = read(json.dumps(KEYLIME).encode())
    added, _ = learn([entries(frame(b"ima-ng", ng(), b"/bin/a\0"))] * 2, add_to=base)
    assert added.digests["/bin/a"] == [DIGEST, "cd" * 20, bytes(range(32)).hex()]
    assert added.model_copy(update={"digests": base.digests}) == base
    assert base.digests["/bin/a"] == [DIGEST, "cd" * 20]


@pytest.mark.parametrize("name", ["clean", "drift"])
def test_a_learned_policy_accepts_what_it_was_learned_from(name: str) -> None:
    verdict = judge(recorded(name), loaded(recorded(name)))
    assert verdict.accepted and verdict.unknown == []


# file signatures


def make_certificate(key: ec.EllipticCurvePrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ima")])
    now = datetime(2026, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def buffer(name: bytes, content: bytes, digest: bytes | None = None) -> bytes:
    return frame(b"ima-buf", ng(digest or hashlib.sha256(content).digest()), name + b"\0", content)


Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
KEYS: list[Private] = [
    ec.generate_private_key(ec.SECP256R1()),
    rsa.generate_private_key(public_exponent=65537, key_size=2048),
]


def verification_keys(*keys: Private, keyids: list[int] | None = None) -> str:
    ders = [
        key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        for key in keys
    ]
    ids = [key_id(key.public_key()) for key in keys] if keyids is None else keyids
    return json.dumps(
        {"meta": {"version": 1}, "keyids": ids, "pubkeys": [base64.b64encode(der).decode() for der in ders]}
    )


def signature(key: Private, digest: bytes, *, kind: int = 3, version: int = 2, algorithm: int = 4) -> bytes:
    prehashed = Prehashed(hashes.SHA256())
    if isinstance(key, rsa.RSAPrivateKey):
        made = key.sign(digest, padding.PKCS1v15(), prehashed)
    else:
        made = key.sign(digest, ec.ECDSA(prehashed))
    return pack(">BBBIH", kind, version, algorithm, key_id(key.public_key()), len(made)) + made


def judge(data: bytes, policy: LoadedPolicy) -> ListVerdict:
    return appraise_list(
        data,
        policy,
        host(policy, accept_unanchored=True, violations="accept"),
        before=Replay.start("sha256"),
        quoted=None,
        at=NOW,
    )


@pytest.mark.parametrize("key", KEYS)
def test_a_file_signed_with_a_key_of_the_policy_is_known(key: Private) -> None:
    digest = b"\x11" * 32
    entry = frame(b"ima-sig", ng(digest), b"/opt/new\0", signature(key, digest))
    keys = verification_keys(*KEYS)
    assert judge(boot_aggregate() + entry, loaded(boot_aggregate(), verification_keys=keys)).accepted
    assert not judge(boot_aggregate() + entry, loaded(boot_aggregate())).accepted
    other = frame(b"ima-sig", ng(b"\x12" * 32), b"/opt/new\0", signature(key, digest))
    assert not judge(boot_aggregate() + other, loaded(boot_aggregate(), verification_keys=keys)).accepted
    verity = frame(b"ima-sigv2", b"verity:" + ng(digest), b"/opt/new\0", signature(key, digest))
    assert not judge(boot_aggregate() + verity, loaded(boot_aggregate(), verification_keys=keys)).accepted


@pytest.mark.parametrize("key", KEYS)
def test_signatures_that_are_not_quite_right_are_none(key: Private) -> None:
    digest = b"\x11" * 32
    keys = finish(read_keys_in_slices(verification_keys(*KEYS), source="keys"))
    good = signature(key, digest)
    assert signed(keys, good, "sha256", digest)
    bad = [
        *(b"", good[:8], good[:-1], good + b"\0", b"\x03\x02\x04" + bytes(4) + good[7:]),
        *(signature(key, digest, kind=5), signature(key, digest, version=3), signature(key, digest, algorithm=2)),
    ]
    assert not any(signed(keys, made, "sha256", digest) for made in bad)
    assert not signed(keys, good, "sm3", digest) and not signed(keys, good, "sha256", digest[1:])
    assert not signed({}, good, "sha256", digest)


def test_key_ids_may_be_given_or_computed() -> None:
    for keyids in ([7], [7, 0]):
        keys = finish(read_keys_in_slices(verification_keys(*KEYS, keyids=keyids), source="keys"))
        assert list(keys) == [7, key_id(KEYS[1].public_key())]
    edwards = ed25519.Ed25519PrivateKey.generate().public_key()
    der = edwards.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    unfit = {"keyids": [], "pubkeys": [base64.b64encode(der).decode()]}
    with pytest.raises(Refusal, match=r"policy\.key"):
        finish(read_keys_in_slices(json.dumps(unfit), source="keys"))


def test_measured_keys_and_buffers_are_judged_by_their_own_lists() -> None:
    certificate = make_certificate(ec.generate_private_key(ec.SECP256R1()))
    known = hashlib.sha256(certificate).hexdigest()
    data = boot_aggregate() + buffer(b".ima", certificate)
    assert judge(data, loaded(boot_aggregate(), keyrings={".ima": [known]})).accepted
    assert not judge(data, loaded(boot_aggregate(), keyrings={".evm": [known]})).accepted
    assert not judge(data, loaded(boot_aggregate(), ima_buf={".ima": [known]})).accepted
    forged = boot_aggregate() + buffer(b".ima", b"another", bytes.fromhex(known))
    assert not judge(forged, loaded(boot_aggregate(), keyrings={".ima": [known]}, ima_buf={".ima": [known]})).accepted


def test_ignored_keyrings_ignore_keys_and_nothing_else() -> None:
    ima = {"ignored_keyrings": ["*"], "log_hash_alg": "sha1", "dm_policy": None}
    policy = load(json.dumps(json.loads(document(boot_aggregate()).text()) | {"ima": ima}))
    certificate = make_certificate(ec.generate_private_key(ec.SECP256R1()))
    assert judge(boot_aggregate() + buffer(b".any", certificate), policy).excluded == 1
    assert not judge(boot_aggregate() + buffer(b"kexec-cmdline", b"init=/bin/sh"), policy).accepted


@given(st.binary(max_size=200))
def test_any_buffer_is_a_key_or_not(content: bytes) -> None:
    assert is_key(content) is False


# lint


def lint_codes(**changes: object) -> list[str]:
    return [finding.code for finding in lint(RuntimePolicy.model_validate(KEYLIME).model_copy(update=changes))]


def test_lint_finds_what_an_author_should_see() -> None:
    assert lint_codes() == ["policy.sha1", "policy.ignored_keyrings"]
    clean = document(recorded("clean"))
    assert lint(clean) == []
    assert lint_codes(excludes=[".*", "/usr", "/tmp", "/tmp/"])[:3] == ["policy.wide", "policy.wide", "policy.open_end"]
    assert "policy.boot_aggregate" in lint_codes(digests={"/bin/a": [DIGEST]})


# host policy


def test_golden_values_are_ten_of_one_length() -> None:
    GoldenPcrs(bank="sha256", values=["00" * 32] * 10)
    for values in (["00" * 32] * 9, ["00" * 32] * 9 + ["00" * 20], []):
        with pytest.raises(ValueError, match="ten values"):
            GoldenPcrs(bank="sha256", values=values)
