"""One transition in the making: the next record, and what is to be sent once it is stored.

Pure but for the randomness it is given: no clock, no network. `finish` puts everything into the record's outbox.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from secrets import token_bytes
from typing import Any, Generic, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, JsonValue

from attestgate.bus import subjects
from attestgate.bus.crypto.channel import Channel
from attestgate.bus.layout import ADMISSIONS, TTL
from attestgate.manager.sessions.appraisal import AppraisalResult
from attestgate.manager.sessions.record import AppRecord, HostRecord, Outgoing, Unacknowledged
from attestgate.manager.sessions.states import APP, ENDS, HOST, Input, State, move
from attestgate.manager.verification import ear
from attestgate.schemas.admission import Statement, Withdrawal, post
from attestgate.schemas.audit import Decision, Fact, sign_decision
from attestgate.schemas.base import pack
from attestgate.schemas.binding import Role
from attestgate.schemas.event_data import SessionWhat
from attestgate.schemas.events import Event
from attestgate.schemas.settings import GatewaySet, Timing
from attestgate.schemas.signing import sign

R = TypeVar("R", HostRecord, AppRecord)


KEPT_S = 3600
"""How long a session that is over stays to be seen, and a certificate's or a host's withdrawal for gateways."""


@dataclass(frozen=True)
class Context:
    """What a step may know beside its record and input."""

    now: int
    timing: Timing
    identity: Ed25519PrivateKey
    gateways: GatewaySet
    source: str
    log_head: str = ""
    """The newest checked head of the decision log, as a signed note."""
    token: Callable[[int], bytes] = token_bytes

    @property
    def manager_identity(self) -> bytes:
        """The public half of the manager's identity."""
        return self.identity.public_key().public_bytes_raw()


class Draft(Generic[R]):
    """Collects one transition's changes and messages."""

    def __init__(self, record: R, context: Context) -> None:
        self.record: R = record
        self.context = context
        self.before = record.state
        self._asked: R = record
        self._outbox: list[Outgoing] = []

    def move(self, given: Input) -> State:
        """Take the table's step. Raises InvalidTransition."""
        table = HOST if self.record.role == "host" else APP
        state = move(table, self.record.state, given)
        self.set(state=state)
        return state

    def set(self, **fields: Any) -> None:
        """Change fields of the record."""
        self.record = self.record.model_copy(update=fields)

    def acknowledge(self, channel: Channel) -> None:
        """A channel message was opened, `channel` is the state after it: what its sender has heard is let go."""
        unacknowledged = [message for message in self.record.unacknowledged if message.counter > channel.acknowledged]
        self.set(channel=channel, unacknowledged=unacknowledged)

    def send(self, step: str, data: bytes, counter: int = 0) -> None:
        """A message to the agent, kept until it has been heard."""
        subject = subjects.outbound(self.record.role, self.record.subject, step)
        kept = [*self.record.unacknowledged, Unacknowledged(counter=counter, step=step, data=data)]
        self.set(unacknowledged=kept)
        self._put(how="send", subject=subject, data=data)

    def say(self, step: str, model: BaseModel) -> None:
        """A message to the agent on its channel."""
        channel = self.record.channel
        if channel is None:
            raise AssertionError(f"no channel yet in {self.record.state}")
        channel, data = channel.seal(step, pack(model))
        self.set(channel=channel)
        self.send(step, data, channel.sent)

    def say_signed(self, step: str, label: str, model: BaseModel) -> None:
        """A signed message to the agent, for where there is no channel."""
        subject = subjects.outbound(self.record.role, self.record.subject, step)
        self._put(how="send", subject=subject, data=pack(sign(self.context.identity, label, model)))

    def event(self, what: SessionWhat, **data: JsonValue) -> None:
        """Something for people to see: schemas/event_data.py says what its `data` holds."""
        record = self.record
        event = Event(
            id=self.context.token(16).hex(),
            kind=record.role,
            subject=record.subject,
            what=what,
            at=self.context.now,
            session=record.session,
            state=record.state,
            before=self.before if self.before != record.state else None,
            simulated=record.outcome.simulated if record.outcome else None,
            source=self.context.source,
            data=data,
        )
        subject = subjects.event(record.role, record.subject, what)
        self._put(how="publish", subject=subject, data=event.body(), headers=event.headers(), id=event.id)

    def ear(self, result: AppraisalResult) -> dict[str, JsonValue]:
        """The result signed, as an EAT attestation result, for its event; empty where nothing was appraised."""
        asked = self._asked.handshake or self._asked.question
        if result.verdict is None or asked is None:
            return {}
        token = ear.sign(
            self.context.identity,
            subject=f"{self._asked.role}/{self._asked.subject}" if result.own else None,
            session=self._asked.session,
            nonce=asked.nonce,
            at=self.context.now,
            submods=ear.appraised(result.verdict, result.listed, result.reasons),
        )
        return {"ear": token}

    def decide(self, fact: Fact) -> None:
        """A decision that grants or takes away trust, for the decision log."""
        record = self.record
        decision = Decision(
            id=self.context.token(16).hex(),
            kind=record.role,
            subject=record.subject,
            session=record.session,
            number=record.decisions + 1,
            at=self.context.now,
            by=self.context.source,
            fact=fact,
        )
        self.set(decisions=decision.number)
        subject = subjects.decision(record.role, record.subject, decision.id)
        self._put(how="log", subject=subject, data=sign_decision(self.context.identity, decision), id=decision.id)

    def work(self, role: Role, session: str, what: str, model: BaseModel) -> None:
        """A message to another session (or to this one), taken up by any worker."""
        self._put(how="work", subject=subjects.work(role, session, what), data=pack(model))

    def post(self, statement: Statement) -> None:
        """A signed statement for the gateways. A tombstone leaves by itself: no lease before it is alive by then."""
        headers = {TTL: f"{KEPT_S}s"} if isinstance(statement, Withdrawal) else {}
        subject = ADMISSIONS.subject(statement.key)
        self._put(how="publish", subject=subject, data=post(self.context.identity, statement), headers=headers)

    def current(self) -> None:
        """From now on this session speaks for its subject; the one before it is superseded."""
        self._put(how="current")

    def forget_secrets(self) -> None:
        """Nothing that is over can be opened with what its record still holds."""
        self.set(handshake=None, question=None, channel=None)
        if isinstance(self.record, HostRecord):
            self.set(k=None)

    def finish(self) -> R:
        """The record to store: its outbox filled, its next waking set."""
        now = self.context.now
        if self.record.over:
            self.forget_secrets()
            if self.before not in ENDS:
                self.set(deadline=now + KEPT_S)
        record = self.record
        at = max(record.next_timer, now + 1)
        self._put(how="wake", subject=subjects.deadline(record.session), data=record.role.encode(), at=at)
        self._put(how="summary")
        self.set(outbox=self._outbox, revision=record.revision + 1)
        return self.record

    def _put(self, **fields: Any) -> None:
        fields.setdefault("id", self.context.token(16).hex())
        self._outbox.append(Outgoing(**fields))
