"""One transition being built: the next record, and the messages to send once it is stored.

Pure except for the randomness passed in: no clock, no network. `finish` puts everything into the record's outbox.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from secrets import token_bytes
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, JsonValue

from attestgate.bus import subjects
from attestgate.bus.crypto.channel import Channel
from attestgate.bus.layout import ADMISSIONS, TTL
from attestgate.manager.sessions.appraisal import AppraisalResult
from attestgate.manager.sessions.record import AppRecord, HostRecord, Outgoing, Unacknowledged, waking
from attestgate.manager.sessions.states import APP, ENDS, HOST, Input, State, move
from attestgate.manager.verification import ear
from attestgate.schemas.admission import Statement, Withdrawal, post
from attestgate.schemas.audit import Decision, Fact, sign_decision
from attestgate.schemas.base import Reason, Refusal, pack
from attestgate.schemas.binding import Role
from attestgate.schemas.event_data import SessionWhat, entries_told
from attestgate.schemas.events import Event
from attestgate.schemas.host_policy import ListVerdict
from attestgate.schemas.messages import to_agent
from attestgate.schemas.settings import GatewaySet, Timing
from attestgate.schemas.signing import Purpose, Signer

R = TypeVar("R", HostRecord, AppRecord)
M = TypeVar("M", bound=BaseModel)


KEPT_S = 3600
"""Retention in seconds of an ended session, and of the withdrawal of a certificate or a host."""


@dataclass(frozen=True)
class Context:
    """What a step may use in addition to its record and input.

    `now` and `now_us` are one reading of the clock; `known_rank` is the highest rank known of a session's place, where
    the step opens the session.
    """

    now: int
    now_us: int
    timing: Timing
    identity: Signer
    gateways: GatewaySet
    source: str
    log_head: str = ""
    """The newest checked head of the decision log, as a signed note."""
    standing_still: Reason | None = None
    """Why the decision log takes in no entries, if it does not."""
    token: Callable[[int], bytes] = token_bytes
    known_rank: int = 0

    def check_log(self) -> None:
        """Raises Refusal `log.standing-still` where nothing may be granted, since nobody could look it up."""
        if self.standing_still is not None:
            raise Refusal(self.standing_still)


def _told(listed: ListVerdict) -> ListVerdict:
    """A list's verdict as an event has room for it."""
    return listed.model_copy(update={"unknown": entries_told(listed.unknown)})


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
        """Take over `channel`, the state after opening a message; what its sender has acknowledged is not kept."""
        unacknowledged = [message for message in self.record.unacknowledged if message.counter > channel.acknowledged]
        self.set(channel=channel, unacknowledged=unacknowledged)

    def send(self, step: str, data: bytes, counter: int = 0) -> None:
        """Send the agent a message, and keep it until it is acknowledged."""
        subject = subjects.outbound(self.record.role, self.record.name, step)
        kept = [*self.record.unacknowledged, Unacknowledged(counter=counter, step=step, data=data)]
        self.set(unacknowledged=kept)
        self._put(how="send", subject=subject, data=data)

    def say(self, step: str, model: BaseModel) -> None:
        """Send the agent a message on its channel."""
        channel = self.record.channel
        if channel is None:
            raise AssertionError(f"no channel yet in {self.record.state}")
        channel, data = channel.seal(step, pack(model))
        self.set(channel=channel)
        self.send(step, data, channel.sent)

    def say_signed(self, purpose: Purpose[M], model: M) -> None:
        """Send the agent a signed message, where there is no channel; the step has the name of its purpose."""
        subject = subjects.outbound(self.record.role, self.record.name, purpose.label)
        signed = self.context.identity.sign(purpose, to_agent(self.record.role, self.record.name), model)
        self._put(how="send", subject=subject, data=pack(signed))

    def event(self, what: SessionWhat, **data: JsonValue) -> None:
        """Publish an event; schemas/event_data.py defines its `data`."""
        record = self.record
        event = Event(
            id=self.context.token(16).hex(),
            kind=record.role,
            subject=record.subject,
            host=record.host if record.role == "app" else None,
            what=what,
            at=self.context.now,
            session=record.session,
            number=record.events + 1,
            state=record.state,
            before=self.before if self.before != record.state else None,
            simulated=record.outcome.simulated if record.outcome else None,
            source=self.context.source,
            data=data,
        )
        self.set(events=record.events + 1)
        subject = subjects.event(record.role, record.name, what)
        self._put(how="publish", subject=subject, data=event.body(), headers=event.headers(), id=event.id)

    def ear(self, result: AppraisalResult) -> dict[str, JsonValue]:
        """The result signed, as an EAT attestation result, for its event; empty where nothing was appraised."""
        asked = self._asked.handshake or self._asked.question
        if result.verdict is None or asked is None:
            return {}
        token = ear.sign(
            self.context.identity.key,
            subject=f"{self._asked.role}/{self._asked.subject}" if result.own else None,
            session=self._asked.session,
            nonce=asked.nonce,
            at=self.context.now,
            submods=ear.appraised(result.verdict, result.listed and _told(result.listed), result.reasons),
        )
        return {"ear": token}

    def enter(self, fact: Fact) -> None:
        """Enter a decision that grants: before its entry is stored, nothing of this transition is sent.

        Raises Refusal `log.standing-still`.
        """
        # Else whoever keeps the log from growing could have trust granted that nobody can look up.
        self.context.check_log()
        self._decide("enter", fact)

    def note(self, fact: Fact) -> None:
        """Enter a decision that takes away, or renews what was granted: nothing waits for its entry."""
        self._decide("note", fact)

    def _decide(self, how: Literal["enter", "note"], fact: Fact) -> None:
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
        entry = sign_decision(self.context.identity, subject, decision)
        self._put(how=how, subject=subject, data=entry, id=decision.id)

    def work(self, role: Role, session: str, what: str, model: BaseModel) -> None:
        """Send a message to another session (or to this one); any worker may handle it."""
        self._put(how="work", subject=subjects.work(role, session, what), data=pack(model))

    def lost(self, session: str) -> None:
        """Inform an application session that this host's session has ended, and why."""
        # Without a copy of the reasons: with one for each of many applications the record would be too large to store,
        # and a host that chose long names for its programs would not be cut off.
        self._put(how="lost", subject=subjects.work("app", session, "host-lost"))

    def post(self, statement: Statement) -> None:
        """Publish a signed statement for the gateways. A withdrawal stays on the bus for KEPT_S, or until its end."""
        # By then every lease signed before it has expired: `lease_s` is at most 3600 (schemas/settings.py), and the end
        # is that of the lease withdrawn, however far ahead the clock was that it was issued by.
        headers = {}
        if isinstance(statement, Withdrawal):
            headers = {TTL: f"{max(KEPT_S, statement.until - self.context.now)}s"}
        subject = ADMISSIONS.subject(statement.key)
        self._put(how="publish", subject=subject, data=post(self.context.identity, statement), headers=headers)

    def current(self) -> None:
        """Make this the current session of its subject; the one before it is superseded."""
        self._put(how="current")

    def hold(self) -> None:
        """No session of this host from here on, until it is enrolled again."""
        self._put(how="hold")

    def forget_secrets(self) -> None:
        """Drop the keys: the record of an ended session decrypts none of its messages."""
        self.set(handshake=None, question=None, channel=None)
        if isinstance(self.record, HostRecord):
            self.set(k=None)

    def finish(self) -> R:
        """The record to store: its outbox filled, its next timer scheduled."""
        now = self.context.now
        if self.record.over:
            self.forget_secrets()
            if self.before not in ENDS:
                self.set(deadline=now + KEPT_S)
        record = self.record
        at = max(record.next_timer, now + 1)
        self.set(revision=record.revision + 1)
        self._put(how="wake", subject=subjects.deadline(record.session), data=waking(self.record), at=at)
        self._put(how="summary")
        self.set(outbox=self._outbox)
        return self.record

    def _put(self, **fields: Any) -> None:
        fields.setdefault("id", self.context.token(16).hex())
        self._outbox.append(Outgoing(**fields))
