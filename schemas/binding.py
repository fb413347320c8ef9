"""What both ends compute the same way: labelled encodings, the transcript, report data, key proofs.

Everything signed, hashed or authenticated is a deterministic msgpack array that begins with a label, one label per
purpose, and holds only bytes, text and integers. docs/protocol.md has the definitions byte by byte; tests/vectors
has the vectors.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal

import msgpack
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from attestgate.schemas.base import Secret

PROTOCOL = 2
VERSION = f"attestgate/v{PROTOCOL}"
Part = bytes | str | int
Role = Literal["host", "app"]
PROOF_STEP: dict[Role, str] = {"host": "key_proof", "app": "colocation_proof"}
Direction = Literal["up", "down"]
"""`up` is agent to manager, `down` is manager to agent."""


def canonical(label: str, *parts: Part) -> bytes:
    """The deterministic encoding of one labelled statement.

    Injective: msgpack is self-delimiting and tags its types, so no two labels or lists of parts have one encoding.
    """
    for part in parts:
        # A float or a map has more than one encoding in msgpack.
        if isinstance(part, bool) or not isinstance(part, bytes | str | int):
            raise TypeError(f"only bytes, str and int are authenticated, not {type(part).__name__}")
    return bytes(msgpack.packb([f"{VERSION} {label}", *parts], use_bin_type=True))


def digest(label: str, *parts: Part) -> bytes:
    """SHA-512 of a labelled statement (64 bytes)."""
    return hashlib.sha512(canonical(label, *parts)).digest()


def first_transcript(suite: str, role: Role, session: str, subject: str, manager_identity: bytes) -> bytes:
    """T0: who speaks with whom, under which suite. Stops a downgrade, and one session's messages in another."""
    return digest("transcript", suite, role, session, subject, manager_identity)


def next_transcript(before: bytes, direction: Direction, step: str, message: bytes) -> bytes:
    """T(i) from T(i-1) and the bytes of an accepted message as they were sent."""
    return digest("transcript step", before, direction, step, message)


def first_chain(t4: bytes, direction: Direction) -> bytes:
    """The start of one direction's chain after the handshake."""
    return digest("chain", t4, direction)


def next_chain(before: bytes, message: bytes) -> bytes:
    """A direction's chain after one more of its messages, by its bytes as sent."""
    return digest("chain step", before, message)


def hello_hash(hello: bytes) -> bytes:
    """What a challenge signs to name the hello that it answers."""
    return digest("hello", hello)


def report_data(
    role: Role, session: str, subject: str, nonce: bytes, t1: bytes, enclave_key: bytes, evidence: bytes
) -> bytes:
    """The 64 bytes a first quote must carry. `evidence` is what travels beside the quote (see `evidence_hash`)."""
    return digest("report data", role, session, subject, nonce, t1, enclave_key, evidence)


def enclave_key_hash(enclave_key: bytes) -> bytes:
    """What is kept of the key that a session's first quote named."""
    return digest("enclave key", enclave_key)


def recheck_report_data(
    role: Role, session: str, subject: str, nonce: bytes, chain: bytes, key_hash: bytes, evidence: bytes
) -> bytes:
    """The 64 bytes a recheck's quote must carry; `chain` is the manager's, up to and with the recheck message."""
    return digest("recheck report data", role, session, subject, nonce, chain, key_hash, evidence)


def evidence_hash(*parts: bytes) -> bytes:
    """SHA-512 over the evidence beside the quote, each part by its own length."""
    return digest("evidence", *parts)


def tpm_nonce(nonce: bytes, t1: bytes) -> bytes:
    """The 32-byte qualifying data of a TPM quote. T1 stops a relay of the nonce into another session."""
    return hashlib.sha256(canonical("tpm nonce", nonce, t1)).digest()


def recheck_tpm_nonce(nonce: bytes, chain: bytes) -> bytes:
    """The 32-byte qualifying data of a recheck's TPM quote; `chain` as in `recheck_report_data`."""
    return hashlib.sha256(canonical("recheck tpm nonce", nonce, chain)).digest()


def host_proof(k: Secret, n1: bytes, t3: bytes) -> bytes:
    """HMAC-SHA512 by which the host's enclave shows that it holds K. T3 covers the grant: no older proof fits."""
    return hmac.digest(k.reveal(), canonical("host key proof", n1, t3), "sha512")


def application_key(k: Secret, session: str, t2: bytes) -> Secret:
    """K_app: what the host's enclave delivers to the application of one session, whose evidence T2 covers."""
    return Secret(derive(k, canonical("application key", session, t2), 32))


def colocation_proof(k_app: Secret, n2: bytes, t3: bytes) -> bytes:
    """HMAC-SHA512 by which the application's enclave proves that it is on the host's machine."""
    return hmac.digest(k_app.reveal(), canonical("co-location proof", n2, t3), "sha512")


def same(left: bytes, right: bytes) -> bool:
    """Constant-time comparison."""
    return hmac.compare_digest(left, right)


def derive(secret: Secret, info: bytes, length: int, salt: bytes | None = None) -> bytes:
    """HKDF-SHA512 (RFC 5869)."""
    return HKDF(algorithm=SHA512(), length=length, salt=salt, info=info).derive(secret.reveal())
