"""The record of a session: all that a worker needs for the next step, stored encrypted on the bus.

A worker keeps no state between two messages. Messages are in the record's outbox before they are sent, so whenever a
worker is killed, the next one has everything it needs to reach the same result.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import PlainSerializer, PlainValidator

from attestgate.bus.crypto.channel import Channel
from attestgate.bus.crypto.envelope import SuiteName
from attestgate.bus.subjects import app_name
from attestgate.manager.sessions.states import ENDS, State
from attestgate.schemas.admission import Tenure
from attestgate.schemas.base import Bytes32, Bytes64, Count, Id, Model, Reasons, Seconds, Secret, SessionId
from attestgate.schemas.binding import Role
from attestgate.schemas.clocks import stale
from attestgate.schemas.messages import EvidenceKind, Outcome
from attestgate.schemas.sgx import PlatformIdentity
from attestgate.schemas.tpm import TpmClock


def _state(name: str) -> State:
    """A packed state: its name."""
    return State(name)


StateName = Annotated[State, PlainValidator(_state)]


def _platform(parts: PlatformIdentity | dict[str, bytes]) -> PlatformIdentity | None:
    """A packed platform: the bytes of each salted hash, half as long as its hex digits."""
    if isinstance(parts, PlatformIdentity):
        return parts
    return PlatformIdentity(**{name: part.hex() for name, part in parts.items()}) if parts else None


def _packed_platform(platform: PlatformIdentity | None) -> dict[str, bytes]:
    return {name: bytes.fromhex(part) for name, part in platform.model_dump().items()} if platform else {}


Platform = Annotated[PlatformIdentity | None, PlainValidator(_platform), PlainSerializer(_packed_platform)]


class Outgoing(Model):
    """One action after the record is stored; `id` makes a repeat idempotent (Nats-Msg-Id).

    send: to the agent, core NATS; publish: into a stream (events, admissions); work: to a session, encrypted;
    lost: the notice `host-lost` to an application session, made of the record's state and reasons;
    wake: schedule a timer of this session at `at`; summary: the readable line beside the record;
    current: make this the current session of its subject; hold: no session of this host until it is enrolled again;
    enter: an entry of the decision log, stored before anything else of this outbox is sent; note: an entry that nothing
    waits for.
    """

    how: Literal["send", "publish", "work", "lost", "wake", "summary", "current", "hold", "enter", "note"]
    id: str
    subject: str = ""
    data: bytes = b""
    headers: dict[str, str] = {}
    at: Seconds = 0


class Unacknowledged(Model):
    """A message that the agent has not acknowledged yet. `counter` is 0 within the handshake."""

    counter: int
    step: str
    data: bytes


class Handshake(Model):
    """What a session needs until T4; dropped then."""

    hello: Bytes64
    nonce: Bytes32
    window_end: Seconds
    session_private: Secret
    transcript: Bytes64
    """T1 when challenged, T3 when granted."""
    t2: bytes = b""
    """What an application's K_app is derived from; known from T2 on."""
    enclave_key: bytes = b""
    """The key in the quote, to which the grant is encrypted; known from T2 on."""
    channel_secret: Secret | None = None
    challenge_nonce: Bytes32 | None = None
    """n1 or n2."""
    verifications: int = 0


class Question(Model):
    """An open recheck challenge. `chain` is the manager's own chain up to and including the recheck message."""

    nonce: Bytes32
    issued_at: Seconds
    window_end: Seconds
    chain: Bytes64
    whole: bool
    """The whole list was requested: the policy has changed since the last appraisal."""


class Basis(Model):
    """What a verdict rests on: the order of the Enrol that was in force, and the version of the policy manifest."""

    enrolled: Count
    policy: Count


class SessionRecord(Model):
    """The fields of both kinds of session. Times are Unix seconds; `revision` counts the record's own changes."""

    session: SessionId
    subject: Id
    host: Id
    state: StateName
    suite: SuiteName
    wanted: list[EvidenceKind]
    created_at: Seconds
    issued_at: Seconds
    """When the challenge was sent whose answer trust is based on: the lease counts from it."""
    deadline: Seconds
    """When the session expires; once it has ended, when its record is deleted."""
    next_recheck: Seconds | None = None
    lease_end: Seconds | None = None
    revision: int = 0
    rank: Count = 0
    """Given when the record is made (manager/sessions/rank.py); 0 in one of a version that had none."""
    basis: Basis | None = None
    """What the newest verdict rests on."""
    handshake: Handshake | None = None
    channel: Channel | None = None
    question: Question | None = None
    enclave_key_hash: bytes = b""
    outcome: Outcome | None = None
    platform: Platform = None
    """The SGX platform, by salted hashes."""
    reasons: Reasons = []
    """Why it ended."""
    decisions: int = 0
    """Entries of the decision log so far."""
    events: int = 0
    """Events so far."""
    outbox: list[Outgoing] = []
    unacknowledged: list[Unacknowledged] = []

    @property
    def over(self) -> bool:
        """True in a final state."""
        return self.state in ENDS

    def stale(self, now: int, skew_s: int) -> bool:
        """Whether a challenge of this session lies in the future at Unix second `now`: the clock was set, and a lease
        would last longer than its time."""
        asked = max(self.issued_at, self.question.issued_at if self.question is not None else 0)
        return stale(asked, now, skew_s)

    @property
    def next_timer(self) -> int:
        """When the next timer of this session fires, Unix seconds."""
        if self.over:
            return self.deadline
        if self.question is not None:
            return min(self.deadline, self.question.window_end)
        return min(self.deadline, self.next_recheck or self.deadline)

    @property
    def resting(self) -> bool:
        """True if nothing is pending: ended, or trusted until the next recheck."""
        return self.over or self.state in (State.TRUSTED, State.ADMITTED)

    @property
    def simulated(self) -> bool:
        """True where the evidence came from a simulated platform."""
        return self.outcome is not None and self.outcome.simulated


class HostRecord(SessionRecord):
    """A host's session. Of the measurement list it keeps length, hash and replay state, not the bytes."""

    role: Literal["host"] = "host"
    k: Secret | None = None
    list_size: int = 0
    list_digest: bytes = b""
    replay: bytes = b""
    """schemas.host_policy.Replay, packed: how far the list was replayed, and to which PCR values."""
    tpm: TpmClock | None = None
    """The clock of the newest quote of its TPM, if it has one enrolled."""
    held: bool = False
    """It ended so that the host is held until it is enrolled again."""
    apps: dict[SessionId, Id] = {}
    """The application sessions for which this host was asked to deliver a key, oldest first."""

    @property
    def name(self) -> str:
        """Its name on the bus."""
        return self.subject


class Retiring(Model):
    """The previous certificate: leased beside the current one for one more period, so that no request is refused."""

    serial: str
    sha256: str
    issuer: str
    not_after: Seconds


class AppRecord(SessionRecord):
    """An application's session."""

    role: Literal["app"] = "app"
    host_session: SessionId | None = None
    certificate_request: bytes = b""
    serial: str = ""
    certificate: str = ""
    certificate_hash: str = ""
    issuer: str = ""
    """Subject key identifier of the CA that issued it."""
    not_after: Seconds = 0
    gateways: list[Id] = []
    """Gateways that have reported this certificate's admission."""
    ready: str = ""
    """The serial in the last `ready`: the application may use it."""
    retiring: Retiring | None = None
    proxy: bool = False
    manager_key: bool = False

    @property
    def name(self) -> str:
        """Its name on the bus: one for each host."""
        return app_name(self.host, self.subject)


ROLE: dict[type[HostRecord] | type[AppRecord], Role] = {HostRecord: "host", AppRecord: "app"}


def place_of(record: HostRecord | AppRecord) -> str:
    """Where a session is, or may become, the current one: a host, or an application on a host."""
    return place(record.role, record.subject, record.host)


def tenure_of(record: HostRecord | AppRecord) -> Tenure | None:
    """A session as the current one of its place; None before it has become that: then it has no lease either."""
    if record.lease_end is None or not record.rank:
        return None
    return Tenure(place=place_of(record), session=record.session, rank=record.rank)


def waking(record: HostRecord | AppRecord) -> bytes:
    """What a session's timer says: its role, and the revision that set it, by which its newest timer is known."""
    return f"{record.role} {record.revision}".encode()


def record_key(role: Role, session: str) -> str:
    """The record's key in the bucket `sessions`."""
    return f"{role}.{session}"


CURRENT = "current."
"""Prefix of the keys of the pointers to current sessions, before their places."""


def current_key(role: Role, subject: str, host: str) -> str:
    """The key of the pointer to the current session of a subject (of an application: on one host)."""
    return f"{CURRENT}{place(role, subject, host)}"


def held_key(host: str) -> str:
    """The key under which the bus says that a host is held."""
    return f"held.{host}"


def pending_key(role: Role, subject: str, host: str) -> str:
    """The key of the pointer to the session that a subject opened last, trusted or not yet."""
    return f"pending.{place(role, subject, host)}"


def place(role: Role, subject: str, host: str) -> str:
    """The name of a place of sessions: `host.<id>`, or `app.<id>.<host>`."""
    return f"{role}.{subject}" if role == "host" else f"{role}.{subject}.{host}"
