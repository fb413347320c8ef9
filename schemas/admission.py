"""The manager's signed statements to gateways, leases and the withdrawals that end them, and the gateways' reports.

The bucket `admissions` holds one signed statement per key: `cert.<serial>` for a certificate, `host.<session>` for a
host session. A request passes a gateway only while both are leased. A statement is trusted for its signature alone,
under a label of its own kind, and only under the key that it names.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, StringConstraints, model_validator

from attestgate.schemas.base import Bytes32, Count, Hex32, Id, Label, Model, Seconds, SessionId, pack, unpack
from attestgate.schemas.signing import Purpose, Signed, Signer, TrustedKeys

BUCKET = "admissions"
CRL = "crl."
"""Prefix of the keys of revocation lists, in the same bucket: CRLs in DER, signed by their CA."""
REVOKE = "revoke."
"""Prefix of the keys of operators' Revoke commands, in the same bucket, as they were signed."""
MAX_GATEWAYS = 64
"""Most gateways of one set."""
MAX_APPLIED = 64
"""Most changes in one report."""
MAX_GLASS = 4
"""Most break-glass admissions in one report."""
MAX_REVOKED, MAX_REFUSED = 16, 2
"""Most confirmed revocations, and refused leases, in one report."""
_MAX_STATEMENT = 16 * 1024
MAX_REPORT = 128 * 1024
"""Largest report in bytes."""

Serial = Annotated[
    str, StringConstraints(pattern=r"^(?:0[1-9a-f]|[1-9a-f][0-9a-f])(?:[0-9a-f]{2}){0,19}$", max_length=40)
]
"""A certificate's serial number: lower-case hexadecimal, at most 20 bytes (RFC 5280), the first not zero."""

_ID = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
TrustDomain = Annotated[str, StringConstraints(pattern=rf"^{_ID}(?:\.{_ID})*$", max_length=255)]
"""The trust domain of every identity (SPIFFE-ID, section 2.1)."""
SpiffeId = Annotated[
    str, StringConstraints(pattern=rf"^spiffe://{_ID}(?:\.{_ID})*/host/{_ID}/app/{_ID}$", max_length=401)
]
"""An application on a host: `spiffe://<trust domain>/host/<id>/app/<id>`."""
Key = Annotated[str, StringConstraints(pattern=r"^(?:cert|host)\.[0-9a-f]{2,40}$", max_length=45)]
NginxEpoch = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$", max_length=32)]
"""One life of nginx's shared memory: 16 random bytes that are lost with it."""
Sequence = Annotated[int, Field(ge=1, lt=2**63)]
"""Increases with every statement about one key."""
Integrity = Literal["anchored", "unanchored"]
Place = Annotated[str, StringConstraints(pattern=rf"^(?:host\.{_ID}|app\.{_ID}\.{_ID})$", max_length=132)]
Rank = Annotated[int, Field(ge=1, lt=2**63)]

_METHODS = r"(?:\*|[A-Z]{1,20}(?:,[A-Z]{1,20}){0,9})"
_SEGMENT = r"[A-Za-z0-9_~!$&'()+,=:@-][A-Za-z0-9._~!$&'()+,=:@-]*"
Rule = Annotated[
    str, StringConstraints(pattern=rf"^{_METHODS} (?:(?:/{_SEGMENT})*/\*\*|/|(?:/{_SEGMENT})+/?)$", max_length=256)
]
"""What an application may do at the controller: `GET,POST /switches/**`.

Comma-separated methods, or `*`; then a path (RFC 3986, no escapes), or a subtree: `PATH/**` is the path and all below
it. Case-sensitive. compose/nginx/admission.js reads it.
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


class Tenure(Model):
    """A session as the current one of its place: a host (`host.<id>`), or an application on a host (`app.<id>.<host>`).

    `rank` is given once, when the session becomes current: microseconds, above every rank known of the place. Of two
    sessions of a place the one with the higher (rank, session) counts, whatever the bus shows of it.
    """

    place: Place
    session: SessionId
    rank: Rank


class _Leased(Model):
    """What both kinds of lease hold. `issued_at` and `expires_at` count from the challenge whose answer earned it.

    `enrolled` is the sequence of the Enrol that it rests on, `policy` the version of the policy manifest.
    """

    issued_at: Seconds
    expires_at: Seconds
    sequence: Sequence
    rank: Rank
    enrolled: Sequence
    policy: Sequence

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.expires_at <= self.issued_at:
            raise ValueError("a lease must expire after it was issued")
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
    """The enclave only forwards the traffic of a program outside."""
    manager_key: bool = False
    """The private key was generated by the manager, not in the enclave."""
    allow: Rules
    """What it may do: a request passes if any rule allows it."""

    @property
    def marks(self) -> list[str]:
        """What the controller should know about this admission, as words."""
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

    @property
    def subject(self) -> str:
        """Whose enrolment it rests on."""
        return f"app.{self.app}"

    @property
    def tenure(self) -> Tenure:
        """The session that it is for, at its place."""
        return Tenure(place=f"app.{self.app}.{self.host}", session=self.app_session, rank=self.rank)


class HostLease(_Leased):
    """A host session is trusted: without it none of its certificates pass."""

    host: Id
    host_session: SessionId

    @property
    def key(self) -> str:
        """Its key in the bucket."""
        return f"host.{self.host_session}"

    @property
    def subject(self) -> str:
        """Whose enrolment it rests on."""
        return f"host.{self.host}"

    @property
    def tenure(self) -> Tenure:
        """The session that it is for, at its place."""
        return Tenure(place=self.subject, session=self.host_session, rank=self.rank)


class Withdrawal(Model):
    """A tombstone: the key has no lease and never gets one again. `until` is the end of the lease withdrawn.

    `ends` is the session that is over with it; None where a session goes on with its next certificate.
    """

    key: Key
    issued_at: Seconds
    until: Seconds
    sequence: Sequence
    reason: Annotated[str, Field(min_length=1, max_length=100)]
    """A reason code, as in `schemas.base.Reason`."""
    ends: Tenure | None


Statement: TypeAlias = Lease | HostLease | Withdrawal
StatementKind = Literal["lease", "host lease", "withdrawal"]
"""The kind of a statement is also the label of its signature."""
_PURPOSES: dict[StatementKind, Purpose[Any]] = {
    "lease": Purpose("lease", "manager", Lease),
    "host lease": Purpose("host lease", "manager", HostLease),
    "withdrawal": Purpose("withdrawal", "manager", Withdrawal),
}


class Posted(Model):
    """A value of the bucket: which kind of statement, and the statement. A wrong `kind` fails the signature."""

    kind: StatementKind
    signed: Signed


def post(manager: Signer, statement: Statement) -> bytes:
    """Sign a statement with the manager's identity: the bytes to put under `statement.key`."""
    kind, purpose = next((k, p) for k, p in _PURPOSES.items() if isinstance(statement, p.model))
    return pack(Posted(kind=kind, signed=manager.sign(purpose, _place(statement.key), statement)))


def open_posted(key: str, value: bytes, trusted: TrustedKeys) -> Statement:
    """The statement stored under a key of the bucket. Raises Refusal (`message.*`, `signature.*`)."""
    posted = unpack(Posted, value, limit=_MAX_STATEMENT)
    statement: Statement = trusted.read(_PURPOSES[posted.kind], posted.signed, _place(key))
    return statement


def revoke_key(kind: str, id: str, signer: bytes) -> str:
    """The bucket's key of an operator's newest Revoke of a subject."""
    return f"{REVOKE}{kind}.{id}.{signer.hex()[:16]}"


def _place(key: str) -> str:
    return f"{BUCKET}/{key}"


class AppliedStatement(Model):
    """A key as nginx now has it. `app_session` is None for a host session."""

    key: Key
    state: Literal["admitted", "withdrawn"]
    sequence: Sequence
    app_session: SessionId | None = None


class RefusedLease(Model):
    """A lease below a floor of the gateway, with the value of the bucket that set the floor, under its key there."""

    key: Key
    code: Label
    floor_key: Annotated[str, Field(max_length=200)]
    floor: Annotated[bytes, Field(max_length=_MAX_STATEMENT)]


class GatewayReport(Model):
    """What one gateway made its nginx do, and when (by the gateway's clock).

    `glass`: operators' signed break-glass admissions in force there (schemas/break_glass.py). `floors` counts the
    changes of the gateway's floors, which are on its disk; `revoked` are the Revoke commands in force there, by their
    SHA-256, as they were signed: on its disk, and out of nginx's memory of this epoch.
    """

    gateway: Id
    epoch: NginxEpoch
    applied: Annotated[list[AppliedStatement], Field(max_length=MAX_APPLIED)]
    at: Seconds
    glass: Annotated[list[Signed], Field(max_length=MAX_GLASS)] = []
    floors: Count
    revoked: Annotated[list[Bytes32], Field(max_length=MAX_REVOKED)] = []
    refused: Annotated[list[RefusedLease], Field(max_length=MAX_REFUSED)] = []


REPORT = Purpose("gateway report", "gateway", GatewayReport)


def sign_report(gateway: Signer, report: GatewayReport) -> bytes:
    """A report as it travels on `attest.v1.in.gateway.<id>.report`."""
    return pack(gateway.sign(REPORT, f"gateway/{report.gateway}", report))


def open_report(data: bytes, id: str, trusted: TrustedKeys) -> GatewayReport:
    """A verified report of gateway `id`, whose enrolled identity is in `trusted`. Raises Refusal."""
    return trusted.read(REPORT, unpack(Signed, data, limit=MAX_REPORT), f"gateway/{id}")
