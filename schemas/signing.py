"""Ed25519 statements: each says what it is for, where it belongs, who may make it, and in which deployment.

All of that is signed beside the payload, and checked by `TrustedKeys.read` at each use, wherever the bytes came from: a
statement means nothing at another place, for another purpose, or from the key of another role.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Generic, Literal, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, Field

from attestgate.schemas.base import MAX_MESSAGE, Bytes32, Bytes64, Refusal, pack, unpack
from attestgate.schemas.binding import PROTOCOL, canonical
from attestgate.schemas.versioned import Versioned

M = TypeVar("M", bound=BaseModel)
AuthorRole = Literal["manager", "operator", "policy-author", "gateway"]


class Signed(Versioned):
    """A payload (a packed model) with its signature and the public key that made it."""

    payload: Annotated[bytes, Field(max_length=MAX_MESSAGE)]
    signer: Bytes32
    signature: Bytes64


@dataclass(frozen=True)
class Purpose(Generic[M]):
    """What a statement is for: the label of its signature, the role that may make it, and what it says."""

    label: str
    author: AuthorRole
    model: type[M]

    def signed_bytes(self, deployment: str, place: str, context: Collection[bytes], payload: bytes) -> bytes:
        """What the signature is over. `context` is what both ends know and the payload does not repeat."""
        return canonical(self.label, deployment, self.author, place, *context, payload)


@dataclass(frozen=True)
class Signer:
    """A private key in one deployment, which its trust domain names."""

    deployment: str
    key: Ed25519PrivateKey

    @cached_property
    def public(self) -> bytes:
        """The public key, 32 raw bytes."""
        return self.key.public_key().public_bytes_raw()

    def sign(self, purpose: Purpose[M], place: str, model: M, *context: bytes) -> Signed:
        """A statement for one place: a bucket's key, or whose messages it is among."""
        payload = pack(model)
        signature = self.key.sign(purpose.signed_bytes(self.deployment, place, context, payload))
        return Signed(version=PROTOCOL, payload=payload, signer=self.public, signature=signature)


@dataclass(frozen=True)
class TrustedKeys:
    """Whose statements count in one deployment: public keys by role, 32 raw bytes each."""

    deployment: str
    by_role: Mapping[AuthorRole, Collection[bytes]]

    def check_signer(self, purpose: Purpose[M], key: bytes) -> None:
        """Raises Refusal `signature.signer` for a key that is not trusted to make statements of a purpose."""
        # The signer named is a claim: only a key of the settings is tried, never one that comes with the statement.
        if key not in self.by_role.get(purpose.author, ()):
            raise Refusal.because(
                "signature.signer",
                purpose.label,
                expected=f"a signature by a key of role {purpose.author} in the settings",
                found=f"key {key.hex()[:16]}",
                action="enrol that key, or sign with the right one",
            )

    def read(self, purpose: Purpose[M], signed: Signed, place: str, *context: bytes) -> M:
        """What a statement says, parsed only once its signature is verified. Raises Refusal (`signature.*`)."""
        self.check_signer(purpose, signed.signer)
        try:
            Ed25519PublicKey.from_public_bytes(signed.signer).verify(
                signed.signature, purpose.signed_bytes(self.deployment, place, context, signed.payload)
            )
        except (InvalidSignature, ValueError):
            raise Refusal.because(
                "signature.invalid",
                purpose.label,
                expected=f"a valid Ed25519 signature of this {purpose.label} for {place} in {self.deployment}",
                found="a signature that does not verify",
                action="get it again: it was changed in transit, or is for another purpose, place or deployment",
            ) from None
        return unpack(purpose.model, signed.payload)
