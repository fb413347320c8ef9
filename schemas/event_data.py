"""Every kind of event: its subject, its meaning, its `data`. docs/asyncapi.json is generated from this.

Publishers build `data` as a plain mapping; the tests validate every published event against these models.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, StringConstraints

from attestgate.schemas.admission import MAX_GATEWAYS, SpiffeId
from attestgate.schemas.base import Count, Hex, Hex32, Id, Label, Model, Reason, Reasons, Seconds, SessionId, Text
from attestgate.schemas.host_policy import BootState, UnknownEntry
from attestgate.schemas.messages import Outcome, Wanted

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
"""The events of a session, each published with the transition that it reports."""

GatewayWhat: TypeAlias = Literal[
    "admitted",
    "withdrawn",
    "lapsed",
    "refused",
    "request-refused",
    "connections-rejected",
    "break-glass",
    "blocked",
    "floors-unwritten",
    "floors-written",
    "reconciled",
    "nginx-failed",
    "clock-stepped",
    "failed",
]
"""The events of a gateway worker."""

EventKind: TypeAlias = Literal["host", "app", "gateway", "op", "manager", "unknown"]
"""The kind of an event's subject; `unknown` where a message does not say."""


Token = Annotated[str, Field(max_length=256 * 1024)]
"""A signed verdict."""
Unknown = Annotated[list[UnknownEntry], Field(max_length=2048)]


MAX_TOLD = 4 * 1024
"""Bytes in which an event names unknown entries, some thirty; it does so up to three times (schemas/events.py)."""


class Nothing(Model):
    """No data."""


class HostChallenged(Model):
    """The evidence that the host was challenged for."""

    wanted: Wanted
    agent_version: Label


class AppChallenged(Model):
    """The host that the application says it runs on."""

    host: Id
    agent_version: Label


class Rejected(Model):
    """Evidence not bound to the enrolled platform and measurement: anyone could have sent it; it ends nothing."""

    step: Label
    reasons: Reasons
    ear: Token | None = None


def entries_told(unknown: Iterable[UnknownEntry]) -> list[UnknownEntry]:
    """Unknown entries that an event names: the first ones, within `MAX_TOLD` bytes. Its reason says how many there are.

    A list can hold far more: whoever needs them all reads the list (`attestgate verify ima`).
    """
    told: list[UnknownEntry] = []
    room = MAX_TOLD
    for entry in unknown:
        room -= len(entry.model_dump_json())
        if room < 0:
            break
        told.append(entry)
    return told


class PolicyTried(Model):
    """The verdict of policies on trial on the same list (`attestgate policy diff --against hosts`)."""

    manifest: Hex32
    admitted: bool
    reasons: Reasons
    unknown: Unknown


class ListJudged(Model):
    """The appraisal of a measurement list: its length so far, SHA-256, replayed PCR 10 by bank, unknown entries.

    A TPM quote vouches for the first `anchored_entries` of them, and for how the machine was booted.
    """

    entries: Count
    anchored_entries: Count
    boot_state: BootState
    measurements: Hex32
    pcr10: Annotated[dict[Label, Hex], Field(max_length=3)]
    unknown: Unknown
    trial: PolicyTried | None = None


class HostGranted(ListJudged):
    """The verdict on which K was granted."""

    outcome: Outcome
    ear: Token
    """Here and below: the verdict as an EAR, a JWT signed by the manager (schemas/ear.py)."""


class HostTrusted(Model):
    """The host is trusted until its lease ends."""

    lease_end: Seconds
    outcome: Outcome


class HostRechecked(ListJudged):
    """A passed recheck, and the lease that it earned."""

    lease_end: Seconds
    outcome: Outcome
    ear: Token


class AppRechecked(Model):
    """A passed recheck, and the lease that it earned."""

    lease_end: Seconds
    outcome: Outcome
    ear: Token


class WaitingForKey(Model):
    """The application's evidence is accepted; the session of its host delivers the key."""

    outcome: Outcome
    ear: Token
    host_session: SessionId


class DeliveringKey(Model):
    """The host was asked to put an application's key into one of its volumes."""

    app: Id
    app_session: SessionId
    volume: Count


class KeyDelivered(Model):
    """The host's answer."""

    app: Id
    app_session: SessionId
    problem: Reason | None


class Proven(Model):
    """The application has proven K_app: it is on the machine of that host session."""

    host_session: SessionId


class Certified(Model):
    """The certificate that was issued, and where its key was generated."""

    serial: Label
    identity: SpiffeId
    not_after: Seconds
    key: Label


class Renewing(Certified):
    """The next certificate, and the one that it is to replace."""

    before_serial: Label


class AppAdmitted(Model):
    """The gateways that have confirmed, signed, that they admit the certificate."""

    serial: Label
    gateways: Annotated[list[Id], Field(max_length=MAX_GATEWAYS)]
    lease_end: Seconds


class Ended(Model):
    """Why a session ended, at which step, and the verdict that it was based on, if any."""

    step: Label
    reasons: Reasons
    outcome: Outcome | None = None
    ear: Token | None = None


class Dropped(Model):
    """A message that changed nothing: its SHA-256, its size in bytes, and why."""

    step: Label
    size: Count
    message: Hex32
    reasons: Reasons


class PutAside(Model):
    """A message that a worker failed on at every attempt: its name in quarantine, None if that was full."""

    step: Label
    message: Hex32 | None
    reasons: Reasons


SignedAnswer = Annotated[str, StringConstraints(max_length=32 * 1024)]
"""The manager's signed answer (schemas/in_force.py), in base64: what the command line believes."""


class Applied(Model):
    """A command that was applied: the SHA-256 of its message."""

    message: Hex32
    sequence: Count
    command: Label
    answer: SignedAnswer


class CommandRefused(Model):
    """A command that was refused: the SHA-256 of its message."""

    message: Hex32
    reasons: Reasons
    answer: SignedAnswer


class RolledBack(Model):
    """What the bus had set back, and a worker has put in force again."""

    reasons: Reasons


class RecordRolledBack(Model):
    """Which record of a session the bus has set back, and what this worker knows to have come after it."""

    reasons: Reasons


class FloorsLost(Model):
    """A gateway that counts fewer changes of its floors than before."""

    gateway: Id
    reasons: Reasons


class LogInconsistent(Model):
    """How the decision log on the bus differs from what this worker has seen of it."""

    reasons: Reasons


class LogStranger(Model):
    """A message in the log's stream: its SHA-256, its sequence there, and why it is not an entry."""

    message: Hex32
    sequence: Count
    reasons: Reasons


class LogOverdue(Model):
    """How many of this worker's decisions are not in the tree, and the leaf hashes of the first of them."""

    count: Count
    leaves: Annotated[list[Hex32], Field(max_length=256)]


class GatewayAdmitted(Model):
    """nginx admits a key: `cert.<serial>` or `host.<session>`."""

    key: Text
    who: Text
    sequence: Count
    until: Seconds


class Withdrawn(Model):
    """nginx no longer admits a key. `after_s`: seconds since the decision, overstated by at most one."""

    key: Text
    reason: Text
    after_s: float | None = None


class Lapsed(Model):
    """A lease that expired."""

    key: Text


class StatementRefused(Model):
    """A statement in the bucket that is not the manager's, or is older than one seen before."""

    key: Text
    reason: Reason


class RequestRefused(Model):
    """Requests that nginx refused for one reason: how many since the last such report."""

    verdict: Text
    identity: Text
    serial: Label
    times: Count


class ConnectionsRejected(Model):
    """Connections that nginx closed before TLS, at one port for one limit: how many since the last such report."""

    port: Count
    limit: Text
    times: Count


class BrokenGlass(Model):
    """An operator's break-glass admission of a certificate, without the manager."""

    operator: Id
    identity: SpiffeId
    serial: Label
    until: Seconds
    reason: Text


class Blocked(Model):
    """An operator's Revoke of a subject (`host.<id>`, `app.<id>`) that a gateway has come to know, by bus or file."""

    subject: Text
    operator: Id
    sequence: Count
    reason: Text


class FloorsUnwritten(Model):
    """Why a gateway's disk does not take what was taken away, and how many changes wait for it."""

    problem: Text
    rows: Count


class FloorsWritten(Model):
    """How many changes the disk has taken at last."""

    rows: Count


class Reconciled(Model):
    """How many entries of nginx differed from the gateway worker's leases."""

    put: Count
    removed: Count


class NginxFailed(Model):
    """nginx does not answer, or answers wrongly."""

    problem: Text


class ClockStepped(Model):
    """By how many seconds the wall clock was set, above 0 ahead: seen against the monotonic clock."""

    by_s: float


class WorkerFailed(Model):
    """Why a worker did not start, or stopped."""

    reasons: Reasons


@dataclass(frozen=True)
class Told:
    """One kind of event."""

    kinds: tuple[EventKind, ...]
    what: str
    means: str
    data: type[Model] = Nothing
    alarm: bool = False
    """Trust was taken away, or an operator must look into it: kept where no routine pushes it out (bus/layout.py)."""


_BOTH: tuple[EventKind, ...] = ("host", "app")

EVENTS = (
    Told(("host",), "challenged", "a session started: the host was challenged for evidence", HostChallenged),
    Told(("app",), "challenged", "a session started: the application was challenged for evidence", AppChallenged),
    Told(
        _BOTH, "evidence-rejected", "evidence that anyone could have sent was rejected; the session goes on", Rejected
    ),
    Told(("host",), "granted", "the evidence is accepted: K and n1 were sent to the host's enclave", HostGranted),
    Told(("host",), "trusted", "the host's enclave has proven K", HostTrusted),
    Told(("host",), "delivering-key", "the host was asked to deliver an application's key", DeliveringKey),
    Told(("host",), "key-delivered", "the host has delivered it, or reports why not", KeyDelivered),
    Told(("app",), "waiting-for-key", "the evidence is accepted: the key was requested from the host", WaitingForKey),
    Told(("app",), "granted", "the key is in the volume: n2 was sent to the application's enclave"),
    Told(("app",), "proven", "the co-location proof is valid", Proven),
    Told(("app",), "certified", "the certificate was issued and leased to the gateways", Certified),
    Told(("app",), "admitted", "enough gateways admit it: the application was notified", AppAdmitted),
    Told(("app",), "renewing", "the next certificate was issued, before the current one expires", Renewing),
    Told(("app",), "renewed", "enough gateways admit it: the one before it is withdrawn", AppAdmitted),
    Told(_BOTH, "rechecking", "fresh evidence was requested"),
    Told(("host",), "rechecked", "the fresh evidence is accepted: the lease was renewed", HostRechecked),
    Told(("app",), "rechecked", "the fresh evidence is accepted: the lease was renewed", AppRechecked),
    Told(_BOTH, "late-answer", "evidence arrived after its challenge had expired: ignored"),
    Told(_BOTH, "refused", "ended before it was trusted", Ended),
    Told(
        _BOTH,
        "untrusted",
        "ended: a recheck failed, or the host of an application is no longer trusted",
        Ended,
        alarm=True,
    ),
    Told(_BOTH, "expired", "ended: no answer before its deadline", Ended),
    Told(_BOTH, "revoked", "ended: revoked by an operator", Ended, alarm=True),
    Told(_BOTH, "superseded", "ended: replaced by a newer session of the same subject", Ended),
    Told(
        ("host", "app", "gateway", "op", "unknown"),
        "dropped",
        "a message changed nothing: it is invalid, does not decrypt, or is a replay",
        Dropped,
    ),
    Told(
        ("host", "app", "gateway", "op", "unknown"),
        "quarantined",
        "a worker failed on a message at every attempt, and moved it to quarantine",
        PutAside,
    ),
    Told(("op",), "applied", "an operator's command was applied", Applied),
    Told(("op",), "refused", "an operator's command was refused", CommandRefused),
    Told(("manager",), "started", "a worker started"),
    Told(
        ("manager",),
        "rolled-back",
        "ALARM: the bus was set back: a worker has put in force again what was newer",
        RolledBack,
        alarm=True,
    ),
    Told(
        ("manager",),
        "record-rolled-back",
        "ALARM: the bus shows a session as it was before, or one that has ended: it is refused",
        RecordRolledBack,
        alarm=True,
    ),
    Told(
        ("manager",),
        "floors-lost",
        "ALARM: a gateway has lost what it remembers: what it confirmed before does not hold",
        FloorsLost,
        alarm=True,
    ),
    Told(
        ("manager",),
        "log-inconsistent",
        "ALARM: the decision log was rolled back, truncated or rewritten",
        LogInconsistent,
        alarm=True,
    ),
    Told(
        ("manager",),
        "log-stranger",
        "ALARM: a message that no manager signed is among the decisions",
        LogStranger,
        alarm=True,
    ),
    Told(
        ("manager",),
        "log-overdue",
        "ALARM: decisions a minute old are not in the log; until they are, nothing new is granted",
        LogOverdue,
        alarm=True,
    ),
    Told(
        ("manager", "gateway"),
        "clock-stepped",
        "ALARM: the machine's clock was set, or it was suspended; everybody is judged anew",
        ClockStepped,
        alarm=True,
    ),
    Told(
        ("manager", "gateway"),
        "failed",
        "a worker cannot run with its configuration, and has stopped",
        WorkerFailed,
        alarm=True,
    ),
    Told(("gateway",), "admitted", "nginx admits a key", GatewayAdmitted),
    Told(("gateway",), "withdrawn", "nginx no longer admits a key", Withdrawn),
    Told(("gateway",), "lapsed", "a lease expired", Lapsed),
    Told(("gateway",), "refused", "a statement in the bucket was refused", StatementRefused),
    Told(("gateway",), "request-refused", "nginx has refused requests", RequestRefused),
    Told(("gateway",), "connections-rejected", "nginx has closed connections before TLS", ConnectionsRejected),
    Told(
        ("gateway",),
        "break-glass",
        "ALARM: an operator admits a certificate without the manager",
        BrokenGlass,
        alarm=True,
    ),
    Told(
        ("gateway",),
        "blocked",
        "ALARM: an operator's Revoke is known to the gateway: nothing of the subject enrolled before passes",
        Blocked,
        alarm=True,
    ),
    Told(
        ("gateway",),
        "floors-unwritten",
        "ALARM: the gateway's disk does not take its floors: nothing new is admitted there, or confirmed",
        FloorsUnwritten,
        alarm=True,
    ),
    Told(("gateway",), "floors-written", "the gateway's disk takes its floors again", FloorsWritten),
    Told(("gateway",), "reconciled", "nginx was reconciled with the leases", Reconciled),
    Told(("gateway",), "nginx-failed", "nginx is unreachable", NginxFailed),
)

BY_NAME: dict[tuple[str, str], Told] = {(kind, told.what): told for told in EVENTS for kind in told.kinds}
"""Each event by the kind of its subject and what happened."""
