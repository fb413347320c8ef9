"""The protocol's vectors: what the code computes is what is written down, and once more from first principles."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tests.protocol.generate import FOLDER, text, vectors


@pytest.mark.parametrize("name", sorted(vectors()))
def test_the_code_makes_the_vectors_on_disk(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == text(vectors()[name])


def test_no_vector_is_left_over() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.json")) == sorted(vectors())


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    assert content["comment"]
    return content


def encode(label: str, *parts: Any) -> bytes:
    """What docs/protocol.md says, without the project's own code."""
    return bytes(msgpack.packb([f"attestgate/v2 {label}", *parts]))


def sha512(label: str, *parts: Any) -> bytes:
    return hashlib.sha512(encode(label, *parts)).digest()


@pytest.mark.parametrize("role", ["host", "app"])
def test_a_second_implementation_agrees(role: str) -> None:
    content = load(f"{role}.json")
    given, made = content["in"], {name: bytes.fromhex(value) for name, value in content["out"].items()}
    message = {step: bytes.fromhex(data) for step, data in given["messages"].items()}
    identity, nonce = bytes.fromhex(given["manager_identity"]), bytes.fromhex(given["nonce"])
    session, subject = given["session"], given["subject"]
    key, evidence, k = (bytes.fromhex(given[name]) for name in ("enclave_key", "evidence_hash", "k"))
    step = "key_proof" if role == "host" else "colocation_proof"
    t = [sha512("transcript", given["suite"], role, session, subject, identity)]
    for direction, name, data in (
        ("down", "challenge", message["challenge"]),
        ("up", "evidence", message["evidence"]),
        ("down", "grant", message["grant"]),
        ("up", step, message["proof"]),
    ):
        t.append(sha512("transcript step", t[-1], direction, name, data))
    assert [made[f"t{i}"] for i in range(5)] == t
    assert made["hello_hash"] == sha512("hello", message["hello"])
    assert made["report_data"] == sha512("report data", role, session, subject, nonce, t[1], key, evidence)
    assert made["tpm_nonce"] == hashlib.sha256(encode("tpm nonce", nonce, t[1])).digest()
    info = encode("application key", session, t[2])
    k_app = HKDF(algorithm=SHA512(), length=32, salt=None, info=info).derive(k)
    assert made["k_app"] == k_app
    if role == "host":
        proof = hmac.digest(k, encode("host key proof", bytes.fromhex(given["n1"]), t[3]), "sha512")
    else:
        proof = hmac.digest(k_app, encode("co-location proof", bytes.fromhex(given["n2"]), t[3]), "sha512")
    assert made["proof"] == proof
    down = sha512("chain", t[4], "down")
    assert (made["chain_up"], made["chain_down"]) == (sha512("chain", t[4], "up"), down)
    chain = sha512("chain step", down, bytes.fromhex(given["recheck"]))
    assert made["chain_down_after_recheck"] == chain
    beside = evidence if role == "host" else sha512("evidence", b"")
    asked = sha512("recheck report data", role, session, subject, nonce, chain, sha512("enclave key", key), beside)
    assert made["recheck_report_data"] == asked


def test_a_second_implementation_opens_the_frames() -> None:
    content = load("channel.json")
    secret, t4 = bytes.fromhex(content["in"]["channel_secret"]), bytes.fromhex(content["in"]["t4"])
    chain = {direction: sha512("chain", t4, direction) for direction in ("up", "down")}
    counter = {"up": 0, "down": 0}
    for made in content["frames"]:
        direction, data = made["direction"], bytes.fromhex(made["frame"])
        frame = msgpack.unpackb(data)
        counter[direction] += 1
        assert frame["counter"] == counter[direction]
        assert frame["session"] == content["in"]["session"]
        info = encode(f"channel {made['step']}", direction, frame["counter"], chain[direction])
        key = HKDF(algorithm=SHA512(), length=32, salt=frame["salt"], info=info).derive(secret)
        associated = encode("channel data", t4, direction, frame["counter"], chain[direction], frame["ack"])
        assert AESGCM(key).decrypt(bytes(12), frame["ciphertext"], associated).hex() == made["plaintext"]
        chain[direction] = sha512("chain step", chain[direction], data)


def test_a_second_implementation_of_the_decision_log_agrees() -> None:
    """RFC 9162, section 2.1, and C2SP signed-note, written out for three entries."""
    content = load("decision-log.json")
    given, made = content["in"], content["out"]
    identity = Ed25519PublicKey.from_public_bytes(bytes.fromhex(given["manager_identity"]))
    entries = [bytes.fromhex(entry) for entry in given["entries"]]
    for subject, entry in zip(given["subjects"], entries, strict=True):
        signed = msgpack.unpackb(entry)
        statement = encode("decision", given["deployment"], "manager", subject, signed["payload"])
        identity.verify(signed["signature"], statement)
        assert signed["version"] == 2
    one, two, three = (hashlib.sha256(b"\x00" + entry).digest() for entry in entries)
    both = hashlib.sha256(b"\x01" + one + two).digest()
    root = hashlib.sha256(b"\x01" + both + three).digest()
    assert made["leaves"] == [leaf.hex() for leaf in (one, two, three)]
    assert made["root"] == root.hex()
    assert made["inclusion_of_1"] == [one.hex(), three.hex()]
    assert made["consistency_from_2"] == [three.hex()]
    body, signature = made["checkpoint"].split("\n\n")
    origin, size, shown, cursor, at = body.split("\n")
    assert (origin, size, base64.b64decode(shown)) == ("sdn.example.org/attestgate/decisions", "3", root)
    assert (cursor, at) == ("cursor 4", "time 1800000000")
    mark, name, raw = signature.rstrip("\n").split(" ")
    key_id = hashlib.sha256(origin.encode() + b"\n\x01" + bytes.fromhex(given["manager_identity"])).digest()[:4]
    assert (mark, name, base64.b64decode(raw)[:4]) == ("—", origin, key_id)
    identity.verify(base64.b64decode(raw)[4:], f"{body}\n".encode())


def test_a_second_implementation_of_the_logs_next_tree_agrees() -> None:
    """The entry that a tree begins with: where it lies, what it says, and the head over it alone."""
    content = load("decision-log.json")
    given, made = content["in"], content["out"]
    log = "sdn.example.org/attestgate/decisions"
    closed, begun = made["closed"].split("\n"), made["begun"].split("\n")
    identifier = hashlib.sha256(f"continued {log}/2".encode()).digest()[:16].hex()
    assert made["seam_subject"] == f"attest.v1.log.manager.managers.{identifier}"
    seam = bytes.fromhex(made["seam"])
    signed = msgpack.unpackb(seam)
    statement = encode("decision", given["deployment"], "manager", made["seam_subject"], signed["payload"])
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(given["manager_identity"])).verify(signed["signature"], statement)
    decision = msgpack.unpackb(signed["payload"])
    assert (decision["id"], decision["kind"], decision["subject"]) == (identifier, "manager", "managers")
    assert f"time {decision['at']}" == closed[4]
    root = base64.b64decode(closed[2]).hex()
    size = int(closed[1])
    fact = {"did": "continued", "origin": log, "size": size, "root": root, "entries": size}
    assert (decision["fact"], closed[0]) == (fact, log)
    assert (begun[0], begun[1], begun[3]) == (f"{log}/2", "1", closed[3])
    assert base64.b64decode(begun[2]) == hashlib.sha256(b"\x00" + seam).digest()
    assert begun[6].startswith(f"— {log}/2 ")
