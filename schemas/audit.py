"""The decision log's entries: decisions that grant or withdraw trust, signed by the manager that made them.

Routine is left out: a passed recheck only renews an earlier decision. Evidence and keys are named by their hashes; no
entry holds a secret.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from attestgate.schemas.admission import MAX_GATEWAYS, Serial, SpiffeId
from attestgate.schemas.base import Count, Hex, Hex32, Id, Label, Model, Reason, Seconds, SessionId, Text, pack, unpack
from attestgate.schemas.enrolment import SubjectKind
from attestgate.schemas.messages import Outcome
from attestgate.schemas.signing import Purpose, Signed, Signer, TrustedKeys

MAX_ENTRY = 64 * 1024
MANAGERS = "managers"
"""In the place of an id, where an entry is about all managers."""
MAX_REASONS = 8
"""Most reasons in an entry; the event has all of them."""


class AcceptedFact(Model):
    """A host has proven K, or an application its co-location: it is trusted from here on.

    `measurements`: SHA-256 of the host's measurement list. `host_session`: the one an application depends on.
    """

    did: Literal["accepted"] = "accepted"
    outcome: Outcome
    measurements: Hex32 | None = None
    host_session: SessionId | None = None


class EndedFact(Model):
    """A session is over: refused before it was trusted, or no longer trusted, and its `certificates` withdrawn."""

    did: Literal["ended"] = "ended"
    state: Label
    step: Label
    reasons: Annotated[list[Reason], Field(max_length=MAX_REASONS)]
    quote: Hex32 | None = None
    certificates: Annotated[list[Serial], Field(max_length=8)] = []


class IssuedFact(Model):
    """A certificate was issued. `key`: SHA-256 of its SubjectPublicKeyInfo; `before`: the serial that it renews."""

    did: Literal["issued"] = "issued"
    serial: Serial
    certificate: Hex32
    key: Hex32
    key_made_by: Literal["enclave", "manager"]
    identity: SpiffeId
    issuer: Hex
    not_after: Seconds
    before: Serial | None = None


class Admitted(Model):
    """Enough gateways admit a certificate."""

    did: Literal["admitted"] = "admitted"
    serial: Serial
    gateways: Annotated[list[Id], Field(max_length=MAX_GATEWAYS)]


class WithdrawnFact(Model):
    """A certificate is no longer admitted; its session continues with the next."""

    did: Literal["withdrawn"] = "withdrawn"
    serial: Serial


class Ordered(Model):
    """An operator's command: revocations and drops were applied, what grants is about to be.

    `message`: SHA-256 of the command as it was signed.
    `about` is its subject, `manifest` the policy manifest that it puts in force.
    """

    did: Literal["ordered"] = "ordered"
    command: Literal["enrol", "revoke", "put-policy", "drop"]
    message: Hex32
    sequence: Count
    about: Text | None = None
    manifest: Hex32 | None = None
    reason: Text | None = None


class FailedFact(Model):
    """A command that was entered before it took effect, and was interrupted, is refused: it never did."""

    did: Literal["failed"] = "failed"
    message: Hex32


class KeyInForce(Model):
    """A key in use from here on, by its name, never its bytes. `gone` are those destroyed with it."""

    did: Literal["key-in-force"] = "key-in-force"
    key: Literal["issuing-ca", "storage-epoch"]
    name: Text
    gone: Annotated[list[Label], Field(max_length=64)] = []


class BreakGlassFact(Model):
    """An operator's break-glass admission of a certificate, as a gateway reported it.

    `statement`: SHA-256 of the signed admission. `signer`: its public key.
    """

    did: Literal["broken-glass"] = "broken-glass"
    operator: Id
    signer: Hex32
    statement: Hex32
    serial: Serial
    identity: SpiffeId
    expires_at: Seconds
    reason: Text


class Continued(Model):
    """A tree of the log is full, and closed: the log goes on in the tree that begins with this entry.

    `origin`, `size` and `root` are of the closed tree; `entries`: how many the log has up to there, in all its trees.
    """

    did: Literal["continued"] = "continued"
    origin: Text
    size: Count
    root: Hex32
    entries: Count


Fact: TypeAlias = Annotated[
    AcceptedFact
    | EndedFact
    | IssuedFact
    | Admitted
    | WithdrawnFact
    | Ordered
    | FailedFact
    | KeyInForce
    | BreakGlassFact
    | Continued,
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
    by: Text
    fact: Fact


DECISION = Purpose("decision", "manager", Decision)


def sign_decision(manager: Signer, subject: str, decision: Decision) -> bytes:
    """The entry's bytes, for its subject on the bus: what the stream stores and the tree hashes."""
    return pack(manager.sign(DECISION, subject, decision))


def open_decision(subject: str, data: bytes, trusted: TrustedKeys) -> Decision:
    """A verified entry, signed by a manager for this subject. Raises Refusal (`message.*`, `signature.*`)."""
    return trusted.read(DECISION, unpack(Signed, data, limit=MAX_ENTRY), subject)
