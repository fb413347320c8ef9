"""What the manager tells the gateways, signed: leases, and the withdrawals that end them; and what a gateway answers.

The bucket `admissions` holds one signed statement a key: `cert.<serial>` for a certificate, `host.<session>` for a host
session. A request passes a gateway only while both are leased. A statement is believed for its signature alone, under a
label of its own kind, and only under the key that it names.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field, StringConstraints, model_validator

from attestgate.schemas.base import Hex32, Id, Model, Refusal, Seconds, SessionId, pack, unpack
from attestgate.schemas.signing import Signed, sign, verify

BUCKET = "admissions"
CRL = "crl."
"""What the keys of revocation lists begin with, in the same bucket: CRLs in DER, signed by their CA."""
MAX_APPLIED = 1000
"""Most changes that one report tells of."""
MAX_GLASS = 16
"""Most admissions by hand that one report tells of."""
_MAX_STATEMENT = 16 * 1024
_MAX_REPORT = 1024 * 1024

Serial = Annotated[
    str, StringConstraints(pattern=r"^(?:0[1-9a-f]|[1-9a-f][0-9a-f])(?:[0-9a-f]{2}){0,19}$", max_length=40)
]
"""A certificate's serial number: lower-case hexadecimal, at most 20 bytes (RFC 5280), the first not zero."""

_ID = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
TrustDomain = Annotated[str, StringConstraints(pattern=rf"^{_ID}(?:\.{_ID})*$", max_length=255)]
"""The name in front of every identity (SPIFFE-ID, section 2.1)."""
SpiffeId = Annotated[str, StringConstraints(pattern=rf"^spiffe://{_ID}(?:\.{_ID})*/host/{_ID}/app/{_ID}$")]
"""An application on a host: `spiffe://<trust domain>/host/<id>/app/<id>`."""
Key = Annotated[str, StringConstraints(pattern=r"^(?:cert|host)\.[0-9a-f]{2,40}$")]
NginxEpoch = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
"""One life of nginx's shared memory: 16 random bytes that are lost with it."""
Sequence = Annotated[int, Field(ge=1, lt=2**63)]
"""Rises with every statement about one key."""
Integrity = Literal["anchored", "unanchored"]

_METHODS = r"(?:\*|[A-Z]{1,20}(?:,[A-Z]{1,20}){0,9})"
_SEGMENT = r"[A-Za-z0-9_~!$&'()+,=:@-][A-Za-z0-9._~!$&'()+,=:@-]*"
Rule = Annotated[
    str, StringConstraints(pattern=rf"^{_METHODS} (?:(?:/{_SEGMENT})*/\*\*|/|(?:/{_SEGMENT})+/?)$", max_length=256)
]
"""What an application may do at the controller: `GET,POST /switches/**`.

Methods with commas between them, or `*`; then a path (RFC 3986, no escapes), or a subtree: `PATH/**` is the path and
all below it. Case counts. compose/nginx/admission.js reads it.
"""
Rules = Annotated[list[Rule], Field(max_length=32)]
ALL: Rule = "* /**"
READ_ONLY: Rule = "GET,HEAD /**"


def spiffe_id(trust_domain: str, host: str, app: str) -> str:
    """The identity of an application on a host."""
    return f"spiffe://{trust_domain}/host/{host}/app/{app}"


def serial_hex(serial: int) -> str:
    """A serial number as `Serial` writes it."""
    return serial.to_bytes((serial.bit_length() + 7) // 8, "big").hex()


def crl_key(issuer: str) -> str:
    """The bucket's key of a CA's revocation list; `issuer` is its subject key identifier in hexadecimal."""
    return f"{CRL}{issuer}"


class _Leased(Model):
    """What both kinds of lease hold. `issued_at` and `expires_at` count from the question that earned the lease."""

    issued_at: Seconds
    expires_at: Seconds
    sequence: Sequence

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.expires_at <= self.issued_at:
            raise ValueError("a lease ends after it was issued")
        return self


class Lease(_Leased):
    """One certificate may pass the gateways of a set, as long as its host session may."""

    gateways: Id
    serial: Serial
    certificate: Hex32
    """SHA-256 of the certificate's DER."""
    identity: SpiffeId
    app: Id
    host: Id
    app_session: SessionId
    host_session: SessionId
    integrity: Integrity
    simulated: bool
    observe_only: bool
    proxy: bool = False
    """The enclave only carries the traffic of a program outside."""
    manager_key: bool = False
    """The private key was made by the manager, not in the enclave."""
    allow: Rules
    """What it may do: one of the rules has to allow a request."""

    @property
    def marks(self) -> list[str]:
        """What the controller should know of this admission, in words."""
        marks = {
            "simulated": self.simulated,
            "observe-only": self.observe_only,
            "proxy": self.proxy,
            "manager-key": self.manager_key,
        }
        return [mark for mark, holds in marks.items() if holds]

    @model_validator(mode="after")
    def _one_identity(self) -> Self:
        if not self.identity.endswith(f"/host/{self.host}/app/{self.app}"):
            raise ValueError("the identity names another host or application")
        return self

    @property
    def key(self) -> str:
        """Its key in the bucket."""
        return f"cert.{self.serial}"


class HostLease(_Leased):
    """A host session is trusted: without it none of its certificates pass."""

    host: Id
    host_session: SessionId

    @property
    def key(self) -> str:
        """Its key in the bucket."""
        return f"host.{self.host_session}"


class Withdrawal(Model):
    """A tombstone: the key has no lease any more and gets none again. `until` is the end of the lease taken back."""

    key: Key
    issued_at: Seconds
    until: Seconds
    sequence: Sequence
    reason: Annotated[str, Field(min_length=1, max_length=100)]
    """A reason code, as in `schemas.base.Reason`."""


Statement: TypeAlias = Lease | HostLease | Withdrawal
StatementKind = Literal["lease", "host lease", "withdrawal"]
"""The kind of a statement is also the label of its signature."""
_KINDS: dict[StatementKind, type[Statement]] = {"lease": Lease, "host lease": HostLease, "withdrawal": Withdrawal}


class Posted(Model):
    """A value of the bucket: which kind of statement, and the statement. A wrong `kind` fails the signature."""

    kind: StatementKind
    signed: Signed


def post(key: Ed25519PrivateKey, statement: Statement) -> bytes:
    """Sign a statement with the manager's identity: the bytes to put under `statement.key`."""
    kind = next(kind for kind, model in _KINDS.items() if isinstance(statement, model))
    return pack(Posted(kind=kind, signed=sign(key, kind, statement)))


def open_posted(key: str, value: bytes, managers: set[bytes]) -> Statement:
    """The statement that stands under a key of the bucket. Raises Refusal (`message.*`, `signature.*`, `admission.*`).

    `managers` are the manager identities trusted to say this, 32 raw bytes each.
    """
    posted = unpack(Posted, value, limit=_MAX_STATEMENT)
    statement: Statement = verify(posted.signed, _KINDS[posted.kind], posted.kind, managers)
    if statement.key != key:
        raise Refusal.because(
            "admission.key",
            "key in the bucket",
            expected=statement.key,
            found=key,
            action="somebody moved a statement: check who may write the bucket",
        )
    return statement


class AppliedStatement(Model):
    """A key as nginx now has it. `app_session` is None for a host session."""

    key: Key
    state: Literal["admitted", "withdrawn"]
    sequence: Sequence
    app_session: SessionId | None = None


class GatewayReport(Model):
    """What one gateway made its nginx do, and when (by the gateway's clock).

    `glass`: operators' words, signed, by which certificates pass without the manager (schemas/break_glass.py).
    """

    gateway: Id
    epoch: NginxEpoch
    applied: Annotated[list[AppliedStatement], Field(max_length=MAX_APPLIED)]
    at: Seconds
    glass: Annotated[list[Signed], Field(max_length=MAX_GLASS)] = []


def sign_report(key: Ed25519PrivateKey, report: GatewayReport) -> bytes:
    """A report as it travels on `attest.v1.in.gateway.<id>.report`."""
    return pack(sign(key, "gateway report", report))


def open_report(data: bytes, gateways: set[bytes]) -> GatewayReport:
    """A report, checked. `gateways` are the identities enrolled under the id it is expected from.

    Raises Refusal (`message.*`, `signature.*`). The caller compares `gateway` with the subject it came on.
    """
    return verify(unpack(Signed, data, limit=_MAX_REPORT), GatewayReport, "gateway report", gateways)
