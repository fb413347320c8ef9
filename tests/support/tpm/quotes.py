"""Quotes made here, field by field, and signed by keys of each kind."""

from __future__ import annotations

import hashlib
from struct import pack

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from attestgate.manager.verification.tpm.quote import (
    ECDSA,
    RSAPSS,
    AttestationKey,
)

EC_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
NONCE = b"n" * 32
SHA256_HASH = hashes.SHA256()
SHA1, SHA256, SHA384 = 0x0004, 0x000B, 0x000C
VALUES = bytes(range(256)) + bytes(range(96))


def sized(data: bytes) -> bytes:
    return pack(">H", len(data)) + data


def attest(
    *,
    magic: int = 0xFF544347,
    kind: int = 0x8018,
    nonce: bytes = NONCE,
    safe: int = 1,
    selection: bytes | None = None,
    digest: bytes | None = None,
    rest: bytes = b"",
) -> bytes:
    """A TPMS_ATTEST over SHA-256 PCR 0-10 holding VALUES."""
    selected = pack(">IHB", 1, SHA256, 3) + b"\xff\x07\x00" if selection is None else selection
    made = hashlib.sha256(VALUES).digest() if digest is None else digest
    clock = pack(">QIIB", 23_000, 6, 1, safe)
    return (
        pack(">IH", magic, kind)
        + sized(b"\x00\x0bsigner")
        + sized(nonce)
        + clock
        + pack(">Q", 7)
        + selected
        + sized(made)
    ) + rest


def ecdsa(
    message: bytes,
    key: ec.EllipticCurvePrivateKey = EC_KEY,
    hashed: hashes.HashAlgorithm = SHA256_HASH,
    algorithm: int = SHA256,
) -> bytes:
    """A TPMT_SIGNATURE by ECDSA."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashed)))
    return pack(">HH", ECDSA, algorithm) + sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))


def rsa_signature(scheme: int, message: bytes) -> bytes:
    pad: padding.AsymmetricPadding = padding.PKCS1v15()
    if scheme == RSAPSS:
        pad = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.MAX_LENGTH)
    return pack(">HH", scheme, SHA256) + sized(RSA_KEY.sign(message, pad, hashes.SHA256()))


def pem(key: ed25519.Ed25519PublicKey | AttestationKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
