"""The decision log's entries: what a manager decided that grants or takes away trust, signed by who decided.

Routine is not in it: a recheck that was answered well renews what was decided before. Evidence is named by its hash,
keys by theirs; no secret is among it.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from attestgate.schemas.admission import Serial
from attestgate.schemas.base import Hex, Hex32, Id, Model, Reason, Seconds, SessionId, pack, unpack
from attestgate.schemas.enrolment import SubjectKind
from attestgate.schemas.messages import Outcome
from attestgate.schemas.signing import Signed, sign, verify

LABEL = "decision"
MAX_ENTRY = 64 * 1024
MAX_REASONS = 8
"""Reasons that an entry holds; the event has all of them."""


class AcceptedFact(Model):
    """A host has proven K, an application that it is on its host's machine: it is trusted from here on.

    `measurements`: SHA-256 of the host's measurement list. `host_session`: what an application rests on.
    """

    did: Literal["accepted"] = "accepted"
    outcome: Outcome
    measurements: Hex32 | None = None
    host_session: SessionId | None = None


class EndedFact(Model):
    """A session is over: refused before there was trust, or trust has ended, and `certificates` with it."""

    did: Literal["ended"] = "ended"
    state: str
    step: str
    reasons: Annotated[list[Reason], Field(max_length=MAX_REASONS)]
    quote: Hex32 | None = None
    certificates: list[Serial] = []


class IssuedFact(Model):
    """A certificate. `key` is the SHA-256 of its SubjectPublicKeyInfo; `before` is the serial that it renews."""

    did: Literal["issued"] = "issued"
    serial: Serial
    certificate: Hex32
    key: Hex32
    key_made_by: Literal["enclave", "manager"]
    identity: str
    issuer: Hex
    not_after: Seconds
    before: Serial | None = None


class Admitted(Model):
    """Enough gateways let a certificate pass."""

    did: Literal["admitted"] = "admitted"
    serial: Serial
    gateways: list[Id]


class WithdrawnFact(Model):
    """A certificate passes no more, and its session goes on with the next."""

    did: Literal["withdrawn"] = "withdrawn"
    serial: Serial


class Ordered(Model):
    """An operator's command was applied. `message`: SHA-256 of the command as it was signed.

    `about` is whom or what it is about, `manifest` the policy manifest that it puts in force.
    """

    did: Literal["ordered"] = "ordered"
    command: Literal["enrol", "revoke", "put-policy", "drop"]
    message: Hex32
    sequence: int
    about: str | None = None
    manifest: Hex32 | None = None
    reason: str | None = None


class KeyInForce(Model):
    """A key that is used from here on, by name: never the key. `gone` are those destroyed with it."""

    did: Literal["key-in-force"] = "key-in-force"
    key: Literal["issuing-ca", "storage-epoch"]
    name: str
    gone: list[str] = []


class BreakGlassFact(Model):
    """An operator let a certificate pass by hand, as a gateway reported it.

    `statement`: SHA-256 of the operator's words. `signer`: his public key; whether it may say this, the gateway knows.
    """

    did: Literal["broken-glass"] = "broken-glass"
    operator: Id
    signer: Hex32
    statement: Hex32
    serial: Serial
    identity: str
    expires_at: Seconds
    reason: str


Fact: TypeAlias = Annotated[
    AcceptedFact | EndedFact | IssuedFact | Admitted | WithdrawnFact | Ordered | KeyInForce | BreakGlassFact,
    Field(discriminator="did"),
]


class Decision(Model):
    """One entry. `by` is the worker or operator; `number` counts a session's own entries from 1, and is 0 elsewhere."""

    id: SessionId
    kind: SubjectKind | Literal["op", "manager"]
    subject: Id
    session: SessionId | None = None
    number: Annotated[int, Field(ge=0, lt=2**31)] = 0
    at: Seconds
    by: str
    fact: Fact


def sign_decision(key: Ed25519PrivateKey, decision: Decision) -> bytes:
    """The entry's bytes: what the bus stores and the tree hashes."""
    return pack(sign(key, LABEL, decision))


def open_decision(data: bytes, managers: set[bytes]) -> Decision:
    """An entry, believed for a manager's signature. Raises Refusal (`message.*`, `signature.*`)."""
    return verify(unpack(Signed, data, limit=MAX_ENTRY), Decision, LABEL, managers)
