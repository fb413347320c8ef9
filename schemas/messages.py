"""Every message of the two sessions, in the order of docs/protocol.md.

Which of them are sealed, and how: hello, challenge, resume and signed refusals travel in the clear (a challenge and a
refusal are signed); evidence is sealed to the manager's session key; a grant is sealed to the enclave's session key
and signed; everything after it goes through the channel (bus/crypto/channel.py).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from attestgate.schemas.base import (
    MAX_MESSAGE,
    Bytes32,
    Bytes64,
    Hex32,
    Id,
    Label,
    Model,
    Reason,
    Reasons,
    Seconds,
    Secret,
    SessionId,
)
from attestgate.schemas.binding import Role
from attestgate.schemas.signing import Purpose
from attestgate.schemas.tpm import TpmQuote
from attestgate.schemas.versioned import Versioned

AgentVersion = Annotated[str, Field(max_length=64)]
EvidenceKind = Literal["sgx", "ima", "tpm"]
Wanted = Annotated[list[EvidenceKind], Field(max_length=3)]
PublicKey = Annotated[bytes, Field(max_length=2048)]
Quote = Annotated[bytes, Field(max_length=16 * 1024)]
MAX_LIST = 64 * 1024 * 1024
"""Largest measurement list, uncompressed, in bytes: about 500,000 entries."""


Ciphertext = Annotated[bytes, Field(max_length=MAX_MESSAGE)]


class HostHello(Versioned):
    """0: a host agent asks to be attested. Nothing in it is trusted."""

    role: Literal["host"] = "host"
    host: Id
    random: Bytes32
    boot_id: Annotated[str, Field(max_length=64)]
    agent_version: AgentVersion
    can_give: Wanted


class AppHello(Versioned):
    """0: an application asks to be attested."""

    role: Literal["app"] = "app"
    app: Id
    host: Id
    random: Bytes32
    agent_version: AgentVersion


class Challenge(Model):
    """1 (signed, label `challenge`): a fresh challenge. The lease counts from `issued_at`."""

    session: SessionId
    role: Role
    hello: Bytes64
    nonce: Bytes32
    issued_at: Seconds
    expires_at: Seconds
    session_key: PublicKey
    suite: Label
    wanted: Wanted


class Sealed(Model):
    """An HPKE ciphertext for one session."""

    session: SessionId
    ciphertext: Ciphertext


class MeasurementList(Model):
    """A piece of the kernel's binary measurement list (securityfs `binary_runtime_measurements`).

    `offset` counts the bytes before it; `prefix` and `whole` are SHA-256 over those bytes and over all of the list,
    computed by the attested enclave; `zlib` is the compressed piece, `size` its length before compression.
    """

    offset: Annotated[int, Field(ge=0, le=MAX_LIST)]
    size: Annotated[int, Field(ge=0, le=MAX_LIST)]
    prefix: Bytes32
    whole: Bytes32
    zlib: Ciphertext


class HostEvidence(Model):
    """2 (sealed): the enclave's session key, its quote, the measurement list, the TPM's quote if requested."""

    enclave_key: PublicKey
    quote: Quote
    measurements: MeasurementList
    tpm: TpmQuote | None = None


class AppEvidence(Model):
    """2 (sealed): the enclave's session key, its quote, a PKCS #10 request for a key generated in the enclave."""

    enclave_key: PublicKey
    quote: Quote
    certificate_request: Annotated[bytes, Field(max_length=4096)]
    proxy: bool = False
    """The enclave will forward the requests of a program outside; the measured code declares it."""


class HostGrant(Model):
    """3 (sealed, signed with label `grant`): K, n1 and the channel secret."""

    k: Secret
    n1: Bytes32
    channel: Secret


class AppGrant(Model):
    """3 (sealed, signed with label `grant`): n2 and the channel secret."""

    n2: Bytes32
    channel: Secret


class Proof(Model):
    """4: HMAC-SHA512 with K over n1 (host) or with K_app over n2 (application)."""

    proof: Bytes64


class Accepted(Model):
    """5: the host is trusted until `lease_end`; sent again after each passed recheck."""

    lease_end: Seconds
    next_recheck: Seconds


class Recheck(Model):
    """6: a fresh challenge within the session. `list_offset` is how much of the list the manager has seen.

    `log_head`: for a host, the newest head of the decision log (schemas.checkpoint), which makes it a witness; empty
    while there is none.
    """

    nonce: Bytes32
    issued_at: Seconds
    expires_at: Seconds
    list_offset: Annotated[int, Field(ge=0, le=MAX_LIST)]
    log_head: Annotated[str, StringConstraints(max_length=4096)] = ""


class HostRecheckEvidence(Model):
    """6: fresh quotes and what the list grew by. `nonce` names the challenge that it answers."""

    nonce: Bytes32
    quote: Quote
    measurements: MeasurementList
    tpm: TpmQuote | None = None


class AppRecheckEvidence(Model):
    """7: a fresh quote. `nonce` names the challenge that it answers."""

    nonce: Bytes32
    quote: Quote


class DeliverKey(Model):
    """7: deliver the application's key to one quoted enclave, through one of the host's own volumes."""

    app: Id
    app_session: SessionId
    enclave_key: PublicKey
    suite: Label
    t2: Bytes64
    volume: Annotated[int, Field(ge=0, lt=1024)]


class KeyDelivered(Model):
    """7: done, or why not."""

    app_session: SessionId
    problem: Reason | None = None


class VolumeKey(Model):
    """The content of the sealed file in the volume: HPKE of K_app to the application's enclave session key."""

    app_session: SessionId
    ciphertext: Annotated[bytes, Field(max_length=4096)]


class Certificate(Model):
    """5, and 7 as `renew`: the application's certificate, leaf first.

    `private_key` (PKCS #8, PEM) is set only in the prototype's mode, where the manager generates the key.
    """

    chain: Annotated[str, Field(max_length=32 * 1024)]
    serial: Annotated[str, Field(max_length=64)]
    not_after: Seconds
    private_key: Secret | None = None


class Ready(Model):
    """6: a gateway has confirmed, signed, that nginx admits certificate `serial`; resent with every renewed lease."""

    serial: Annotated[str, Field(max_length=64)]

    gateway: Annotated[str, Field(max_length=256)]
    lease_end: Seconds
    next_recheck: Seconds


class Refused(Model):
    """The session is over (signed, label `refused`). Bound to the hello that it answers."""

    session: SessionId
    hello: Bytes64
    step: Label
    reasons: Reasons


class Rejected(Model):
    """One piece of evidence was rejected (signed, label `rejected`); the session goes on.

    Anyone can seal to a public challenge, so this ends nothing. `evidence` is the SHA-512 of the message: an agent
    heeds it only for bytes that it sent.
    """

    session: SessionId
    evidence: Bytes64
    reasons: Reasons


class Ended(Model):
    """8 (channel): trust has ended, and why: `state` is the final state."""

    state: Label
    reasons: Reasons


class Resume(Model):
    """An agent that lost its connection asks for the last messages again. Answered with stored bytes only."""

    session: SessionId


def to_agent(role: Role, name: str) -> str:
    """The place of the managers' signed messages to an agent, by its name on the bus."""
    return f"{role}/{name}"


CHALLENGE = Purpose("challenge", "manager", Challenge)
GRANT = Purpose("grant", "manager", Sealed)
"""Its context is T2."""
REFUSED = Purpose("refused", "manager", Refused)
REJECTED = Purpose("rejected", "manager", Rejected)


class Outcome(Model):
    """A verdict's short form in records and events; no secret."""

    simulated: bool
    integrity: Literal["anchored", "unanchored"]
    """The host's; an application takes over its host's."""
    observe_only: bool
    """Admitted by an observe-only host policy: an enforcing one would refuse it."""
    quote_id: Hex32
    mrenclave: Hex32
    tcb_status: Label
    policy: Annotated[dict[Label, Hex32], Field(max_length=8)]
