"""Sealing to a key: HPKE (RFC 9180) under the suite that a session's transcript names.

The default is the hybrid of ML-KEM-768 and X25519, so that what is recorded on the bus today stays secret from a
future quantum computer; plain X25519 can be selected. A suite is never changed silently: it is part of T0.
"""

from __future__ import annotations

from typing import Literal, get_args

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from attestgate.schemas.base import Refusal, Secret

SuiteName = Literal["mlkem768-x25519", "x25519"]
SUITES: tuple[SuiteName, ...] = get_args(SuiteName)

_MLKEM_SEED, _MLKEM_PUBLIC, _X25519 = 64, 1184, 32
_HPKE = {
    "mlkem768-x25519": Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM),
    "x25519": Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM),
}


def generate(suite: SuiteName) -> tuple[Secret, bytes]:
    """A fresh key pair: the private half (ML-KEM seed, then X25519 scalar), the public half (same order)."""
    x = X25519PrivateKey.generate()
    if suite == "x25519":
        return Secret(x.private_bytes_raw()), x.public_key().public_bytes_raw()
    m = MLKEM768PrivateKey.generate()
    private = m.private_bytes_raw() + x.private_bytes_raw()
    return Secret(private), m.public_key().public_bytes_raw() + x.public_key().public_bytes_raw()


def seal(suite: SuiteName, public: bytes, info: bytes, plaintext: bytes) -> bytes:
    """HPKE one-shot seal. `info` binds the ciphertext to its place. Raises Refusal for a malformed public key.

    Base mode authenticates no sender: evidence is believed for its quote, which covers the transcript, a grant for the
    manager's signature, a volume key for the proof that it makes.
    """
    try:
        return _HPKE[suite].encrypt(plaintext, _public_key(suite, public), info=info)
    except ValueError:  # a point of low order (RFC 9180, section 7.1.4)
        raise _no_key(suite, public) from None


def open_sealed(suite: SuiteName, private: Secret, info: bytes, ciphertext: bytes) -> bytes:
    """The plaintext. Raises Refusal `envelope.open` for another key, another `info` or changed bytes."""
    try:
        return _HPKE[suite].decrypt(ciphertext, _private_key(suite, private), info=info)
    except (InvalidTag, ValueError):
        raise Refusal.because(
            "envelope.open",
            "ciphertext",
            expected="a message sealed to this session's key and context",
            found=f"{len(ciphertext)} bytes that do not decrypt",
            action="check who may publish there: it was changed, or belongs to another session",
        ) from None


def check_public_key(suite: SuiteName, public: bytes) -> None:
    """Raises Refusal `envelope.key` unless `public` is a key of the suite."""
    _public_key(suite, public)


def _public_key(suite: SuiteName, public: bytes) -> X25519PublicKey | MLKEM768X25519PublicKey:
    size = _X25519 if suite == "x25519" else _MLKEM_PUBLIC + _X25519
    try:
        if len(public) != size:
            raise ValueError("length")
        x = X25519PublicKey.from_public_bytes(public[-_X25519:])
        if suite == "x25519":
            return x
        return MLKEM768X25519PublicKey(MLKEM768PublicKey.from_public_bytes(public[:_MLKEM_PUBLIC]), x)
    except ValueError:
        raise _no_key(suite, public) from None


def _no_key(suite: SuiteName, public: bytes) -> Refusal:
    return Refusal.because(
        "envelope.key",
        "public key",
        expected=f"a {suite} key",
        found=f"{len(public)} bytes that are not such a key",
        action="use the suite of the challenge",
    )


def _private_key(suite: SuiteName, private: Secret) -> X25519PrivateKey | MLKEM768X25519PrivateKey:
    raw = private.reveal()
    x = X25519PrivateKey.from_private_bytes(raw[-_X25519:])
    if suite == "x25519":
        return x
    return MLKEM768X25519PrivateKey(MLKEM768PrivateKey.from_seed_bytes(raw[:_MLKEM_SEED]), x)
