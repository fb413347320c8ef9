"""Signed runtime policies: a DSSE envelope around Keylime's JSON, opened only with a configured key.

Source: DSSE protocol v1 (secure-systems-lab/dsse, protocol.md): the signature covers PAE(type, payload). Keylime signs
its policies so with ECDSA P-256 and SHA-256 (`keylime-policy sign runtime`); Ed25519 keys are taken as well.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Generator, Sequence
from typing import Annotated

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from pydantic import Field

from attestgate.manager.verification.ima.slices import finish
from attestgate.schemas.base import Model, Refusal, Text, parse_json

PAYLOAD_TYPE = "application/vnd.keylime+json"
_STANDARD = bytes.maketrans(b"-_", b"+/")
PolicyKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
SigningKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


MAX_PAYLOAD = 64 * 1024 * 1024
"""Characters of base64: no smaller than the largest document read."""


class Signature(Model):
    """One signature; `keyid` is a hint that nothing is decided by."""

    keyid: Text = ""
    sig: Annotated[str, Field(max_length=4096)]


class Envelope(Model):
    """A DSSE envelope: `payload` and `sig` are base64, standard or URL-safe."""

    payload: Annotated[str, Field(max_length=MAX_PAYLOAD)]
    payload_type: Annotated[Text, Field(alias="payloadType")]
    signatures: Annotated[list[Signature], Field(min_length=1, max_length=16)]


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what a signature covers."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def is_envelope(raw: bytes) -> bool:
    """True if a document is an envelope rather than a policy."""
    if b'"payload"' not in raw or b'"signatures"' not in raw:
        return False  # a long policy is not read for it
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and "payload" in document and "signatures" in document


def opened(raw: bytes, keys: Sequence[PolicyKey], *, source: str) -> bytes:
    """The policy in a document: as it is where no key is configured, else out of an envelope that one of them signed.

    Raises Refusal (`policy.unsigned`, `policy.signature`, `file.*`). An envelope is refused
    too where no key is configured: its author meant it to be verified.
    """
    return finish(opened_in_slices(raw, keys, source=source))


def opened_in_slices(raw: bytes, keys: Sequence[PolicyKey], *, source: str) -> Generator[None, None, bytes]:
    """The same, as a generator that yields after each slice."""
    if not is_envelope(raw):
        if not keys:
            return raw
        raise _refused("policy.unsigned", source, "a DSSE envelope", "a bare policy", "sign it: attestgate policy dsse")
    if not keys:
        raise _refused(
            "policy.signature",
            source,
            "a key to verify it with",
            "no key",
            "configure its author's key, or use the bare policy",
        )
    yield
    envelope = parse_json(Envelope, raw, source=source, limit=2 * MAX_PAYLOAD)
    # The type is signed with the payload (PAE): stops a document that its author signed for another purpose.
    if envelope.payload_type != PAYLOAD_TYPE:
        raise _refused(
            "policy.signature", f"{source}: payloadType", PAYLOAD_TYPE, envelope.payload_type, "sign a policy"
        )
    yield
    payload = _bytes(envelope.payload, f"{source}: payload")
    yield
    signed = pae(envelope.payload_type, payload)
    made = [_bytes(signature.sig, f"{source}: sig") for signature in envelope.signatures]
    # Each key brings its own algorithm; nothing in the envelope chooses one.
    for key in keys:
        for signature in made:
            if _verifies(key, signature, signed):
                return payload
            yield
    raise _refused("policy.signature", source, "a signature by a configured key", "none that verifies", "sign it again")


def sign(payload: bytes, key: SigningKey) -> bytes:
    """The envelope around a policy."""
    message = pae(PAYLOAD_TYPE, payload)
    made = (
        key.sign(message, ec.ECDSA(hashes.SHA256()))
        if isinstance(key, ec.EllipticCurvePrivateKey)
        else key.sign(message)
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    signature = Signature(keyid=hashlib.sha256(public).hexdigest(), sig=base64.b64encode(made).decode())
    envelope = Envelope.model_validate(
        {"payload": base64.b64encode(payload).decode(), "payloadType": PAYLOAD_TYPE, "signatures": [signature]}
    )
    return envelope.model_dump_json(by_alias=True).encode() + b"\n"


def read_key(pem: bytes, *, source: str) -> PolicyKey:
    """A policy author's public key from PEM. Raises Refusal (`policy.key`)."""
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        raise _refused("policy.key", source, "an EC or Ed25519 public key in PEM", "not such a key", "export the key")
    return key


def read_signing_key(pem: bytes, *, source: str) -> SigningKey:
    """A policy author's private key from PEM without a passphrase. Raises Refusal (`policy.key`)."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        expected = "an EC or Ed25519 private key in PEM, not encrypted"
        raise _refused("policy.key", source, expected, "not such a key", "generate one: openssl ecparam -genkey")
    return key


def _verifies(key: PolicyKey, signature: bytes, message: bytes) -> bool:
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        else:
            key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _bytes(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii").translate(_STANDARD), validate=True)
    except (binascii.Error, ValueError):
        raise _refused("policy.signature", field, "base64", "invalid base64", "sign the policy again") from None


def _refused(code: str, field: str, expected: str, found: str, action: str) -> Refusal:
    return Refusal.because(code, field, expected=expected, found=found, action=action)
