"""Every event there is: who it is about, what it means, what its `data` holds. docs/asyncapi.json is made from this.

Publishers build `data` as a plain mapping; the tests hold everything that is really published against these models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from attestgate.schemas.base import Hex, Hex32, Id, Model, Reason, Seconds, SessionId
from attestgate.schemas.host_policy import BootState, UnknownEntry
from attestgate.schemas.messages import EvidenceKind, Outcome

SessionWhat: TypeAlias = Literal[
    "challenged",
    "evidence-rejected",
    "waiting-for-key",
    "granted",
    "trusted",
    "delivering-key",
    "key-delivered",
    "proven",
    "certified",
    "admitted",
    "renewing",
    "renewed",
    "rechecking",
    "rechecked",
    "late-answer",
    "refused",
    "untrusted",
    "expired",
    "revoked",
    "superseded",
]
"""What a session tells of itself, in the transition that made it so."""

GatewayWhat: TypeAlias = Literal[
    "admitted",
    "withdrawn",
    "lapsed",
    "refused",
    "request-refused",
    "break-glass",
    "reconciled",
    "nginx-failed",
    "failed",
]
"""What a gateway worker tells."""

EventKind: TypeAlias = Literal["host", "app", "gateway", "op", "manager", "unknown"]
"""Who an event is about; `unknown` where a message does not say."""


class Nothing(Model):
    """No data: the event says it all."""


class HostChallenged(Model):
    """The evidence that the host was asked for."""

    wanted: list[EvidenceKind]
    agent_version: str


class AppChallenged(Model):
    """The host that the application says it runs on."""

    host: Id
    agent_version: str


class Rejected(Model):
    """Evidence that is not tied to the enrolled platform and measurement: it could be anybody's, and ends nothing."""

    step: str
    reasons: list[Reason]
    ear: str | None = None


class PolicyTried(Model):
    """What policies on trial would make of the same list (`attestgate policy diff --against hosts`)."""

    manifest: Hex32
    admitted: bool
    reasons: list[Reason]
    unknown: list[UnknownEntry]


class ListJudged(Model):
    """What was found in a measurement list: how long it is now, its SHA-256, its replay by bank, unknown entries.

    A TPM quote vouches for the first `anchored_entries` of them, and for how the machine was booted.
    """

    entries: int
    anchored_entries: int
    boot_state: BootState
    measurements: Hex32
    pcr10: dict[str, Hex]
    unknown: list[UnknownEntry]
    trial: PolicyTried | None = None


class HostGranted(ListJudged):
    """The verdict that K was granted on."""

    outcome: Outcome
    ear: str
    """Here and below: the verdict as an EAR, a JWT signed by the manager (schemas/ear.py)."""


class HostTrusted(Model):
    """The host is trusted until its lease ends."""

    lease_end: Seconds
    outcome: Outcome


class HostRechecked(ListJudged):
    """A recheck that was answered well, and the lease that it earned."""

    lease_end: Seconds
    outcome: Outcome
    ear: str


class AppRechecked(Model):
    """A recheck that was answered well, and the lease that it earned."""

    lease_end: Seconds
    outcome: Outcome
    ear: str


class WaitingForKey(Model):
    """The application's evidence is good; the session of its host hands over the key."""

    outcome: Outcome
    ear: str
    host_session: SessionId


class DeliveringKey(Model):
    """The host was told to put an application's key into one of its volumes."""

    app: Id
    app_session: SessionId
    volume: int


class KeyDelivered(Model):
    """The host's answer."""

    app: Id
    app_session: SessionId
    problem: Reason | None


class Proven(Model):
    """The application has K's application key: it is on the machine of that host session."""

    host_session: SessionId


class Certified(Model):
    """The certificate that was issued, and where its key was made."""

    serial: str
    identity: str
    not_after: Seconds
    key: str


class Renewing(Certified):
    """The next certificate, beside the one that it is to replace."""

    before_serial: str


class AppAdmitted(Model):
    """The gateways that have said, signed, that the certificate passes."""

    serial: str
    gateways: list[Id]
    lease_end: Seconds


class Ended(Model):
    """Why a session ended, at which step, and the verdict that it rested on, if there was one."""

    step: str
    reasons: list[Reason]
    outcome: Outcome | None = None
    ear: str | None = None


class Dropped(Model):
    """A message that changed nothing: its SHA-256, its size in bytes, and why."""

    step: str
    size: int
    message: Hex32
    reasons: list[Reason]


class PutAside(Model):
    """A message that made a worker fail each time: its name in quarantine, None if that was full."""

    step: str
    message: Hex32 | None
    reasons: list[Reason]


class Applied(Model):
    """A command that was applied: the SHA-256 of its message."""

    message: Hex32
    sequence: int
    command: str


class CommandRefused(Model):
    """A command that was refused: the SHA-256 of its message."""

    message: Hex32
    reasons: list[Reason]


class LogInconsistent(Model):
    """How the decision log on the bus differs from what this worker has seen of it."""

    reasons: list[Reason]


class LogStranger(Model):
    """A message in the log's stream: its SHA-256, its sequence there, and why it is no entry."""

    message: Hex32
    sequence: int
    reasons: list[Reason]


class LogOverdue(Model):
    """How many of this worker's decisions are not in the tree, and the leaf hashes of the first of them."""

    count: int
    leaves: list[Hex32]


class GatewayAdmitted(Model):
    """nginx lets a key pass: `cert.<serial>` or `host.<session>`."""

    key: str
    who: str
    sequence: int
    until: Seconds


class Withdrawn(Model):
    """nginx lets a key pass no more. `after_s`: seconds since it was decided, at most one too long."""

    key: str
    reason: str
    after_s: float | None = None


class Lapsed(Model):
    """A lease that ended by itself."""

    key: str


class StatementRefused(Model):
    """A statement in the bucket that is not the manager's, or goes back in time."""

    key: str
    reason: Reason


class RequestRefused(Model):
    """Requests that nginx refused for one reason, so many since this was last told."""

    verdict: str
    identity: str
    serial: str
    times: int


class BrokenGlass(Model):
    """An operator lets a certificate pass by hand, without the manager."""

    operator: str
    identity: str
    serial: str
    until: Seconds
    reason: str


class Reconciled(Model):
    """nginx differed from the ledger, by so many entries."""

    put: int
    removed: int


class NginxFailed(Model):
    """nginx does not answer, or not as it should."""

    problem: str


class WorkerFailed(Model):
    """Why a worker did not begin, or went on no longer."""

    reasons: list[Reason]


@dataclass(frozen=True)
class Told:
    """One kind of event."""

    kinds: tuple[EventKind, ...]
    what: str
    means: str
    data: type[Model] = Nothing


_BOTH: tuple[EventKind, ...] = ("host", "app")

EVENTS = (
    Told(("host",), "challenged", "a session began: the host was asked for evidence", HostChallenged),
    Told(("app",), "challenged", "a session began: the application was asked for evidence", AppChallenged),
    Told(_BOTH, "evidence-rejected", "evidence that could be anybody's was not taken; the session stands", Rejected),
    Told(("host",), "granted", "the evidence is good: K and n1 were sent to the host's enclave", HostGranted),
    Told(("host",), "trusted", "the host's enclave has proven K", HostTrusted),
    Told(("host",), "delivering-key", "the host was told to deliver an application's key", DeliveringKey),
    Told(("host",), "key-delivered", "the host has delivered it, or says why not", KeyDelivered),
    Told(("app",), "waiting-for-key", "the evidence is good: the key was asked for at the host", WaitingForKey),
    Told(("app",), "granted", "the key lies in the volume: n2 was sent to the application's enclave"),
    Told(("app",), "proven", "the co-location proof is right", Proven),
    Told(("app",), "certified", "the certificate was issued and leased to the gateways", Certified),
    Told(("app",), "admitted", "enough gateways let it pass: the application was told", AppAdmitted),
    Told(("app",), "renewing", "the next certificate was issued, before the present one ends", Renewing),
    Told(("app",), "renewed", "enough gateways let it pass: the one before it is withdrawn", AppAdmitted),
    Told(_BOTH, "rechecking", "fresh evidence was asked for"),
    Told(("host",), "rechecked", "it came and is good: the lease was renewed", HostRechecked),
    Told(("app",), "rechecked", "it came and is good: the lease was renewed", AppRechecked),
    Told(_BOTH, "late-answer", "evidence came after its question had lapsed: worth nothing"),
    Told(_BOTH, "refused", "over before there was trust", Ended),
    Told(_BOTH, "untrusted", "over: a recheck failed, or the host of an application is trusted no more", Ended),
    Told(_BOTH, "expired", "over: silent past its deadline", Ended),
    Told(_BOTH, "revoked", "over: an operator said so", Ended),
    Told(_BOTH, "superseded", "over: a newer session of the same subject has taken its place", Ended),
    Told(
        ("host", "app", "gateway", "op", "unknown"),
        "dropped",
        "a message changed nothing: it does not fit, does not open, or replays something",
        Dropped,
    ),
    Told(
        ("host", "app", "gateway", "op", "unknown"),
        "quarantined",
        "a message made a worker fail each time, and was put aside",
        PutAside,
    ),
    Told(("op",), "applied", "an operator's command was applied", Applied),
    Told(("op",), "refused", "an operator's command was refused", CommandRefused),
    Told(("manager",), "started", "a worker began to work"),
    Told(("manager",), "log-inconsistent", "ALARM: the decision log was set back, cut or rewritten", LogInconsistent),
    Told(("manager",), "log-stranger", "ALARM: what no manager signed stands among the decisions", LogStranger),
    Told(("manager",), "log-overdue", "ALARM: decisions of a minute ago are not in the log", LogOverdue),
    Told(("manager", "gateway"), "failed", "a worker cannot work as it was set up, and has ended", WorkerFailed),
    Told(("gateway",), "admitted", "nginx lets a key pass", GatewayAdmitted),
    Told(("gateway",), "withdrawn", "nginx lets a key pass no more", Withdrawn),
    Told(("gateway",), "lapsed", "a lease ended by itself", Lapsed),
    Told(("gateway",), "refused", "a statement in the bucket was not believed", StatementRefused),
    Told(("gateway",), "request-refused", "nginx has refused requests", RequestRefused),
    Told(("gateway",), "break-glass", "ALARM: an operator lets a certificate pass without the manager", BrokenGlass),
    Told(("gateway",), "reconciled", "nginx was brought back in line", Reconciled),
    Told(("gateway",), "nginx-failed", "nginx is not reached", NginxFailed),
)

BY_NAME: dict[tuple[str, str], Told] = {(kind, told.what): told for told in EVENTS for kind in told.kinds}
"""Each event by who it is about and what happened."""
