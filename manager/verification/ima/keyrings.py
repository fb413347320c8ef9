"""File signatures in IMA entries: the keys of a policy, and the check of one signature.

Source: Linux security/integrity/integrity.h (struct signature_v2_hdr) and digsig_asymmetric.c; the JSON of the keys
is Keylime's `verification-keys` (keylime/ima/file_signatures.py): base64 DER public keys and their 32-bit key ids.
A signature is `u8 type 3 | u8 version 2 | u8 hash | be32 key id | be16 length | signature` over the file's digest.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from collections.abc import Generator
from contextlib import suppress
from typing import Annotated

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from pydantic import Field

from attestgate.schemas.base import Count, Label, Model, Refusal, parse_json

Key = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
Keys = dict[int, Key]
"""Public keys by their key id: the last four bytes of the subject key identifier."""

_HEADER = struct.Struct(">BBBIH")
_DIGSIG = 3
_VERSION = 2

_HASHES: dict[int, hashes.HashAlgorithm] = {
    4: hashes.SHA256(),
    5: hashes.SHA384(),
    6: hashes.SHA512(),
    7: hashes.SHA224(),
}
"""By the kernel's number (include/uapi/linux/hash_info.h); signatures over SHA-1 and MD5 are not accepted."""


MAX_KEYS = 1024
"""Most keys of a policy."""


class KeyringDocument(Model):
    """Keylime's keyring as JSON. `keyids` belong to `pubkeys` in order; one that is missing or 0 is computed."""

    meta: Annotated[dict[Label, Count], Field(max_length=16)] = {}
    keyids: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(max_length=MAX_KEYS)]
    pubkeys: Annotated[list[Annotated[str, Field(max_length=8192)]], Field(max_length=MAX_KEYS)]


def read_keys_in_slices(text: str, *, source: str) -> Generator[None, None, Keys]:
    """The keys of `verification-keys`, a JSON document in a string; none if it is empty. Raises Refusal.

    Yields after each key.
    """
    if not text:
        return {}
    field = f"{source}: verification-keys"
    document = parse_json(KeyringDocument, text, source=field)
    keys: Keys = {}
    for number, encoded in enumerate(document.pubkeys):
        try:
            key = serialization.load_der_public_key(base64.b64decode(encoded, validate=True))
        except (ValueError, binascii.Error, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
            raise Refusal.because(
                "policy.key",
                f"{field}, pubkeys[{number}]",
                expected="an RSA or EC public key in base64 DER",
                found="not such a key",
                action="export the key as SubjectPublicKeyInfo",
            )
        named = document.keyids[number] if number < len(document.keyids) else 0
        keys[named or key_id(key)] = key
        yield
    return keys


def is_key(buffer: bytes) -> bool:
    """True if a measured buffer is a public key or certificate (what IMA's KEY_CHECK measures), in DER or PEM."""
    for read in (
        x509.load_der_x509_certificate,
        x509.load_pem_x509_certificate,
        serialization.load_der_public_key,
        serialization.load_pem_public_key,
    ):
        with suppress(ValueError, UnsupportedAlgorithm):
            read(buffer)
            return True
    return False


def key_id(key: Key) -> int:
    """The kernel's id of a key without a certificate: the end of the SHA-1 over its bare public key."""
    if isinstance(key, rsa.RSAPublicKey):
        raw = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1)
    else:
        raw = key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    return int.from_bytes(hashlib.sha1(raw, usedforsecurity=False).digest()[16:], "big")


def signed(keys: Keys, signature: bytes, algorithm: str, digest: bytes) -> bool:
    """True if one of the keys made this signature over this file digest; anything else is False."""
    if len(signature) < _HEADER.size:
        return False
    kind, version, number, key, length = _HEADER.unpack_from(signature)
    hashed = _HASHES.get(number)
    made = signature[_HEADER.size :]
    # The key id is the signer's claim, 32 bits that collide at will: it picks a key of the policy, and proves nothing.
    if (kind, version, length) != (_DIGSIG, _VERSION, len(made)) or hashed is None or key not in keys:
        return False
    # The header is not signed: its hash has to be the entry's, or one digest would be verified as another's.
    if hashed.name != algorithm or hashed.digest_size != len(digest):
        return False
    public = keys[key]
    try:
        if isinstance(public, rsa.RSAPublicKey):
            public.verify(made, digest, padding.PKCS1v15(), Prehashed(hashed))
        else:
            public.verify(made, digest, ec.ECDSA(Prehashed(hashed)))
    except InvalidSignature:
        return False
    return True
