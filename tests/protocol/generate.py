"""Writes tests/vectors/protocol: fixed inputs, and what schemas/binding.py makes of them, byte for byte.

Run by hand after a change of the protocol: `python -m tests.protocol.generate`. Bytes are hexadecimal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestgate.bus.crypto import channel
from attestgate.bus.crypto.channel import Channel
from attestgate.manager.audit import merkle
from attestgate.manager.audit.intake import subject_of
from attestgate.manager.audit.seam import seam_after
from attestgate.schemas import binding
from attestgate.schemas.audit import Admitted, Decision, sign_decision
from attestgate.schemas.base import Secret
from attestgate.schemas.binding import Role
from attestgate.schemas.checkpoint import Checkpoint, origin_of, sign_checkpoint
from attestgate.schemas.signing import Signer

FOLDER = Path(__file__).resolve().parents[1] / "vectors" / "protocol"


def filled(name: str, size: int) -> bytes:
    """Readable made-up bytes: a name, repeated."""
    return (name.encode() * size)[:size]


def handshake(role: Role) -> dict[str, Any]:
    """T0 to T4, report data, proof and chains of one session."""
    suite, session, subject = "mlkem768-x25519", "00112233445566778899aabbccddeeff", {"host": "h1", "app": "a1"}[role]
    identity, nonce, key = filled("identity", 32), filled("nonce", 32), filled("enclave key", 1216)
    messages = {step: filled(step, 100) for step in ("hello", "challenge", "evidence", "grant", "proof")}
    evidence = binding.evidence_hash(filled("measurements" if role == "host" else "certificate request", 64))
    t0 = binding.first_transcript(suite, role, session, subject, identity)
    t1 = binding.next_transcript(t0, "down", "challenge", messages["challenge"])
    t2 = binding.next_transcript(t1, "up", "evidence", messages["evidence"])
    t3 = binding.next_transcript(t2, "down", "grant", messages["grant"])
    t4 = binding.next_transcript(t3, "up", binding.PROOF_STEP[role], messages["proof"])
    k, n = Secret(filled("K", 32)), filled("n1" if role == "host" else "n2", 32)
    k_app = binding.application_key(k, session, t2)
    proof = binding.host_proof(k, n, t3) if role == "host" else binding.colocation_proof(k_app, n, t3)
    down = binding.next_chain(binding.first_chain(t4, "down"), filled("recheck", 100))
    nothing = binding.evidence_hash(b"")
    return {
        "comment": f"The {role}'s handshake: messages of made-up bytes, and what both ends compute from them.",
        "in": {
            "suite": suite,
            "role": role,
            "session": session,
            "subject": subject,
            "manager_identity": identity.hex(),
            "nonce": nonce.hex(),
            "enclave_key": key.hex(),
            "messages": {step: data.hex() for step, data in messages.items()},
            "evidence_hash": evidence.hex(),
            "k": k.reveal().hex(),
            "n1" if role == "host" else "n2": n.hex(),
            "recheck": filled("recheck", 100).hex(),
        },
        "out": {
            "hello_hash": binding.hello_hash(messages["hello"]).hex(),
            "t0": t0.hex(),
            "t1": t1.hex(),
            "t2": t2.hex(),
            "t3": t3.hex(),
            "t4": t4.hex(),
            "report_data": binding.report_data(role, session, subject, nonce, t1, key, evidence).hex(),
            "tpm_nonce": binding.tpm_nonce(nonce, t1).hex(),
            "k_app": k_app.reveal().hex(),
            "proof": proof.hex(),
            "chain_up": binding.first_chain(t4, "up").hex(),
            "chain_down": binding.first_chain(t4, "down").hex(),
            "chain_down_after_recheck": down.hex(),
            "recheck_report_data": binding.recheck_report_data(
                role,
                session,
                subject,
                nonce,
                down,
                binding.enclave_key_hash(key),
                evidence if role == "host" else nothing,
            ).hex(),
        },
    }


def statements() -> dict[str, Any]:
    """Encodings of labelled statements."""
    cases: list[tuple[str, list[binding.Part]]] = [
        ("empty", []),
        ("numbers", [0, 1, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63 - 1]),
        ("text", ["", "a", "ä", "x" * 31, "x" * 32, "x" * 256]),
        ("bytes", [b"", b"a", bytes(255), bytes(256)]),
        ("mixed", [b"1", "1", 1]),
    ]
    return {
        "comment": "canonical(label, parts): a msgpack array of the label, prefixed with the version, and the parts.",
        "cases": [
            {
                "label": label,
                "parts": [{"bytes": p.hex()} if isinstance(p, bytes) else p for p in parts],
                "encoding": binding.canonical(label, *parts).hex(),
                "digest": binding.digest(label, *parts).hex(),
            }
            for label, parts in cases
        ],
    }


def frames() -> dict[str, Any]:
    """Two messages down a channel, and one up, with made-up salts."""
    session, secret, t4 = "00112233445566778899aabbccddeeff", Secret(filled("channel", 32)), filled("t4", 64)
    manager = Channel.start(session, secret, t4, "down")
    agent = Channel.start(session, secret, t4, "up")
    made: list[dict[str, Any]] = []

    def say(sender: Channel, step: str, text: bytes) -> tuple[Channel, bytes]:
        with patch.object(channel, "token_bytes", lambda size: filled(step, size)):
            sender, data = sender.seal(step, text)
        made.append({"direction": sender.sends, "step": step, "plaintext": text.hex(), "frame": data.hex()})
        return sender, data

    manager, first = say(manager, "accepted", b"the lease")
    manager, _ = say(manager, "recheck", b"the question")
    agent, _ = agent.open("accepted", first)
    say(agent, "recheck_evidence", b"the answer")
    return {
        "comment": "Channel frames as sent, in order; the agent had opened `accepted` when it answered (ack 1).",
        "in": {"session": session, "channel_secret": secret.reveal().hex(), "t4": t4.hex()},
        "frames": made,
    }


def decision_log() -> dict[str, Any]:
    """An entry, the leaf hash that stands for it, the tree of three like it, and that tree's signed head."""
    key = Signer("sdn.example.org", Ed25519PrivateKey.from_private_bytes(filled("manager", 32)))
    made = [_entry(key, number) for number in (1, 2, 3)]
    entries = [entry for _, entry in made]
    leaves = [merkle.leaf_hash(entry) for entry in entries]
    head = Checkpoint(origin=origin_of("sdn.example.org"), size=3, root=merkle.root_of(leaves), cursor=4, at=1800000000)
    closed = Checkpoint(origin=head.origin, size=256, root=filled("root", 32), cursor=300, at=1800000100)
    subject, seam = seam_after(closed, 256, key)
    begun = Checkpoint(
        origin=origin_of("sdn.example.org", 2), size=1, root=merkle.leaf_hash(seam), cursor=300, at=1800000200
    )
    return {
        "comment": "A session's entries in the decision log, as stored; the tree over them; its head after message 4. "
        "A tree of 256 entries that is closed; the entry that continues it, and the next tree's first head.",
        "in": {
            "manager_key": filled("manager", 32).hex(),
            "manager_identity": key.public.hex(),
            "deployment": key.deployment,
            "subjects": [subject for subject, _ in made],
            "entries": [entry.hex() for entry in entries],
        },
        "out": {
            "leaves": [leaf.hex() for leaf in leaves],
            "root": head.root.hex(),
            "inclusion_of_1": [node.hex() for node in merkle.inclusion_proof(leaves, 1)],
            "consistency_from_2": [node.hex() for node in merkle.consistency_proof(leaves, 2)],
            "checkpoint": sign_checkpoint(key.key, head),
            "closed": sign_checkpoint(key.key, closed),
            "seam_subject": subject,
            "seam": seam.hex(),
            "begun": sign_checkpoint(key.key, begun),
        },
    }


def _entry(key: Signer, number: int) -> tuple[str, bytes]:
    decision = Decision(
        id=filled(f"id {number} ", 16).hex(),
        kind="app",
        subject="a1",
        session="00112233445566778899aabbccddeeff",
        number=number,
        at=1800000000,
        by="attestgate/manager",
        fact=Admitted(serial=f"{16 + number:x}", gateways=["gateway-1"]),
    )
    subject = subject_of(decision)
    return subject, sign_decision(key, subject, decision)


def vectors() -> dict[str, dict[str, Any]]:
    """Every file's content by its name."""
    return {
        "statements.json": statements(),
        "host.json": handshake("host"),
        "app.json": handshake("app"),
        "channel.json": frames(),
        "decision-log.json": decision_log(),
    }


def text(content: dict[str, Any]) -> str:
    """A file's text."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write them."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, content in vectors().items():
        (FOLDER / name).write_text(text(content), encoding="utf-8")


if __name__ == "__main__":
    main()
