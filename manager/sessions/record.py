"""The record of a session: all that a worker needs to take its next step, sealed whole in the bus.

A worker keeps nothing between two messages. What is to be sent stands in the record's outbox before it is sent, so
that a worker killed anywhere leaves the next one everything it needs to come to the same end.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import PlainSerializer, PlainValidator

from attestgate.bus.crypto.channel import Channel
from attestgate.bus.crypto.envelope import SuiteName
from attestgate.manager.sessions.states import ENDS, State
from attestgate.schemas.base import Bytes32, Bytes64, Id, Model, Reason, Seconds, Secret, SessionId
from attestgate.schemas.binding import Role
from attestgate.schemas.messages import EvidenceKind, Outcome
from attestgate.schemas.sgx import PlatformIdentity
from attestgate.schemas.tpm import TpmClock


def _state(name: str) -> State:
    """A state by its name, as it was packed."""
    return State(name)


StateName = Annotated[State, PlainValidator(_state)]


def _platform(parts: PlatformIdentity | dict[str, bytes]) -> PlatformIdentity | None:
    """A platform's name as it was packed: the bytes of each salted hash, half as long as its digits."""
    if isinstance(parts, PlatformIdentity):
        return parts
    return PlatformIdentity(**{name: part.hex() for name, part in parts.items()}) if parts else None


def _packed_platform(platform: PlatformIdentity | None) -> dict[str, bytes]:
    return {name: bytes.fromhex(part) for name, part in platform.model_dump().items()} if platform else {}


Platform = Annotated[PlatformIdentity | None, PlainValidator(_platform), PlainSerializer(_packed_platform)]


class Outgoing(Model):
    """One thing to do after the record is stored; `id` makes a repeat harmless (Nats-Msg-Id).

    send: to the agent, plain; publish: into a stream (events, admissions); work: to a session, sealed;
    wake: have the server wake this session at `at`; summary: the readable line beside the record;
    current: this session now speaks for its subject; log: an entry of the decision log.
    """

    how: Literal["send", "publish", "work", "wake", "summary", "current", "log"]
    id: str
    subject: str = ""
    data: bytes = b""
    headers: dict[str, str] = {}
    at: Seconds = 0


class Unacknowledged(Model):
    """A message to the agent that it has not been seen to have. `counter` is 0 within the handshake."""

    counter: int
    step: str
    data: bytes


class Handshake(Model):
    """What a session needs until T4; gone after it."""

    hello: Bytes64
    nonce: Bytes32
    window_end: Seconds
    session_private: Secret
    transcript: Bytes64
    """T1 when challenged, T3 when granted."""
    enclave_key: bytes = b""
    """The key in the quote, which the grant is sealed to; known from T2 on."""
    channel_secret: Secret | None = None
    challenge_nonce: Bytes32 | None = None
    """n1 or n2."""
    verifications: int = 0


class Question(Model):
    """A recheck under way. `chain` is the manager's own chain up to and with the recheck message."""

    nonce: Bytes32
    issued_at: Seconds
    window_end: Seconds
    chain: Bytes64
    whole: bool
    """The whole list was asked for: the policy has changed since it was judged."""


class SessionRecord(Model):
    """What both kinds of session share. Times are Unix seconds; `revision` counts the record's own changes."""

    session: SessionId
    subject: Id
    host: Id
    state: StateName
    suite: SuiteName
    wanted: list[EvidenceKind]
    created_at: Seconds
    issued_at: Seconds
    """When the question was asked whose answer trust rests on: the lease counts from it."""
    deadline: Seconds
    """When the session is over by itself; of one that is over, when it is cleared away."""
    next_recheck: Seconds | None = None
    lease_end: Seconds | None = None
    revision: int = 0
    handshake: Handshake | None = None
    channel: Channel | None = None
    question: Question | None = None
    enclave_key_hash: bytes = b""
    outcome: Outcome | None = None
    platform: Platform = None
    """The SGX platform, by salted hashes."""
    reasons: list[Reason] = []
    """Why it ended."""
    decisions: int = 0
    """Entries of the decision log so far."""
    outbox: list[Outgoing] = []
    unacknowledged: list[Unacknowledged] = []

    @property
    def over(self) -> bool:
        """True in a final state."""
        return self.state in ENDS

    @property
    def next_timer(self) -> int:
        """When the clock next has something to say to this session, Unix seconds."""
        if self.over:
            return self.deadline
        if self.question is not None:
            return min(self.deadline, self.question.window_end)
        return min(self.deadline, self.next_recheck or self.deadline)

    @property
    def resting(self) -> bool:
        """True where nothing is under way: over, or trusted until the next recheck."""
        return self.over or self.state in (State.TRUSTED, State.ADMITTED)

    @property
    def simulated(self) -> bool:
        """True where the evidence came from a simulated platform."""
        return self.outcome is not None and self.outcome.simulated


class HostRecord(SessionRecord):
    """A host's session. The measurement list is remembered by its length, hash and replay, not by its bytes."""

    role: Literal["host"] = "host"
    k: Secret | None = None
    list_size: int = 0
    list_digest: bytes = b""
    replay: bytes = b""
    """schemas.host_policy.Replay, packed: how far the list was replayed, and to which PCR values."""
    tpm: TpmClock | None = None
    """The clock of the newest quote of its TPM, if it has one enrolled."""
    apps: dict[SessionId, Id] = {}
    """The application sessions that were given a key of this host."""

    def trusted(self, now: int) -> bool:
        """Whether applications may rest on this host at Unix second `now`."""
        in_time = self.lease_end is not None and now < self.lease_end
        return in_time and self.state in (State.TRUSTED, State.RECHECKING)


class Retiring(Model):
    """The certificate before the present one: leased beside it for one more period, so that no request is dropped."""

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
    """The serial that the application was told it may use."""
    retiring: Retiring | None = None
    proxy: bool = False
    manager_key: bool = False


ROLE: dict[type[HostRecord] | type[AppRecord], Role] = {HostRecord: "host", AppRecord: "app"}


def record_key(role: Role, session: str) -> str:
    """The record's key in the bucket `sessions`."""
    return f"{role}.{session}"


def current_key(role: Role, subject: str, host: str) -> str:
    """The key of the pointer to the session that speaks for a subject (an application: on one host)."""
    return f"current.{_place(role, subject, host)}"


def pending_key(role: Role, subject: str, host: str) -> str:
    """The key of the pointer to the session that a subject opened last, trusted or not."""
    return f"pending.{_place(role, subject, host)}"


def _place(role: Role, subject: str, host: str) -> str:
    return f"{role}.{subject}" if role == "host" else f"{role}.{subject}.{host}"
