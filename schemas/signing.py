"""Ed25519 statements: one label per purpose, the payload's bytes kept as they were signed."""

from __future__ import annotations

from typing import Annotated, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, Field

from attestgate.schemas.base import MAX_MESSAGE, Bytes32, Bytes64, Model, Refusal, pack, unpack
from attestgate.schemas.binding import canonical

M = TypeVar("M", bound=BaseModel)


class Signed(Model):
    """A payload (a packed model) with its signature and the public key that made it."""

    payload: Annotated[bytes, Field(max_length=MAX_MESSAGE)]
    signer: Bytes32
    signature: Bytes64


def sign(key: Ed25519PrivateKey, label: str, model: BaseModel, *context: bytes) -> Signed:
    """Sign a model under a label; `context` is what both ends know and the payload does not repeat."""
    # The label is signed too: stops a statement that was signed for one purpose from being taken for another.
    payload = pack(model)
    signature = key.sign(canonical(label, *context, payload))
    return Signed(payload=payload, signer=key.public_key().public_bytes_raw(), signature=signature)


def verify(signed: Signed, kind: type[M], label: str, signers: set[bytes], *context: bytes) -> M:
    """The model in a signed statement, parsed only once its signature is verified. Raises Refusal (`signature.*`).

    `signers` are the public keys allowed to sign it, 32 raw bytes each.
    """
    # The signer named is a claim: only a key that the caller lists is tried, never one that comes with the statement.
    if signed.signer not in signers:
        raise Refusal.because(
            "signature.signer",
            label,
            expected="a signature by a key named for this purpose",
            found=f"key {signed.signer.hex()[:16]}",
            action="enrol that key, or sign with the right one",
        )
    try:
        Ed25519PublicKey.from_public_bytes(signed.signer).verify(
            signed.signature, canonical(label, *context, signed.payload)
        )
    except (InvalidSignature, ValueError):
        raise Refusal.because(
            "signature.invalid",
            label,
            expected="a valid Ed25519 signature",
            found="a signature that does not verify",
            action="get it again: the statement was changed in transit, or is for another purpose",
        ) from None
    return unpack(kind, signed.payload)
