"""The agent's side of a session, shared by both agents: from hello to the channel, then message by message.

All state is in the enclave's memory only. An agent that restarts sends a new hello; one that merely missed a message
sends `resume` and gets the same bytes again. Messages for another session or another hello, and messages that do not
decrypt, are ignored: the bus may send anything.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, TypeVar, get_args

import structlog
from pydantic import BaseModel

from attestgate.bus import subjects
from attestgate.bus.api import Bus, BusError, Message
from attestgate.bus.crypto import envelope
from attestgate.bus.crypto.channel import Channel, Duplicate, OutOfOrder, seal_frame
from attestgate.bus.crypto.envelope import SuiteName
from attestgate.bus.logs import bind_session, clear_session
from attestgate.schemas.base import Reason, Refusal, Secret, pack, unpack
from attestgate.schemas.binding import (
    PROOF_STEP,
    Role,
    canonical,
    digest,
    first_transcript,
    hello_hash,
    next_transcript,
)
from attestgate.schemas.limits import OUTBOUND
from attestgate.schemas.messages import (
    CHALLENGE,
    GRANT,
    REFUSED,
    REJECTED,
    Challenge,
    Ended,
    Proof,
    Resume,
    Sealed,
    to_agent,
)
from attestgate.schemas.signing import Purpose, Signed, TrustedKeys

log = structlog.get_logger(__name__)
M = TypeVar("M", bound=BaseModel)
INBOX, INBOX_BYTES = 256, 4 * 1024 * 1024
"""Messages, and their bytes, queued for the agent; beyond either the oldest are dropped: what was missed is sent again
on `resume`."""
LOGGED = 100
"""Of the messages dropped, one in so many is logged."""


class SessionOver(Exception):
    """The session has ended. `by_manager` is the final state the manager named, signed or on the channel."""

    def __init__(self, reasons: list[Reason], by_manager: str | None) -> None:
        super().__init__("; ".join(reason.sentence() for reason in reasons) or "no answer")
        self.reasons = reasons
        self.by_manager = by_manager


class _Unheard(NamedTuple):
    """A channel message of ours that the manager has not acknowledged; `at` is when it was first sent (monotonic)."""

    counter: int
    step: str
    data: bytes
    at: float


class Link:
    """An agent's own subjects on the bus: what it sends, and what is sent to it."""

    def __init__(self, bus: Bus, role: Role, id: str, host: str | None = None) -> None:
        """`host` is the one that an application runs on."""
        self._bus = bus
        self.role: Role = role
        self.id = id
        self.name = subjects.app_name(host, id) if host else id
        self._inbox: deque[tuple[str, bytes]] = deque()
        self._waiting_bytes = 0
        self._arrived = asyncio.Event()
        self.dropped = 0
        """Messages that this agent did not take: of an unknown step, too long, or more than it keeps."""

    async def listen(self) -> None:
        """Start listening to the subjects of this id."""
        await self._bus.listen(subjects.outbound_all(self.role, self.name), self._take)
        await self._bus.flush()

    async def say(self, step: str, data: bytes) -> None:
        """A message to the manager; on the bus when this returns. Raises BusError."""
        await self._bus.publish(subjects.inbound(self.role, self.name, step), data)

    async def next(self, wait_s: float) -> tuple[str, bytes] | None:
        """The next message and its step, or None after `wait_s`."""
        try:
            async with asyncio.timeout(max(wait_s, 0.0)):  # wait_for of Python 3.11 can swallow a cancellation
                while not self._inbox:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            return None
        return self._oldest()

    async def _take(self, message: Message) -> None:
        try:
            step = subjects.parse_outbound(message.subject).step
        except Refusal:
            return
        # Before anything of it is read or kept: the bus can send what it likes, as fast as it likes.
        if len(message.data) > OUTBOUND.get((self.role, step), -1):
            self._drop(step)
            return
        self._inbox.append((step, message.data))
        self._waiting_bytes += len(message.data)
        while len(self._inbox) > INBOX or self._waiting_bytes > INBOX_BYTES:
            self._drop(self._oldest()[0])
        self._arrived.set()

    def _oldest(self) -> tuple[str, bytes]:
        step, data = self._inbox.popleft()
        self._waiting_bytes -= len(data)
        return step, data

    def _drop(self, step: str) -> None:
        self.dropped += 1
        if self.dropped % LOGGED == 1:
            log.warning("dropped", step=step, dropped=self.dropped)


class AgentSession:
    """One session of one agent: `open`, `send_evidence`, `take_grant`, `prove`, then `say` and `hear`."""

    def __init__(self, link: Link, managers: TrustedKeys, suites: list[SuiteName], retry_s: float) -> None:
        self._link = link
        self._managers = managers
        self._suites = suites
        self._retry_s = retry_s
        self._hello = b""
        self._transcript = b""
        self._evidence = b""
        self._private = Secret(b"")
        self._channel: Channel | None = None
        self._unacknowledged: list[_Unheard] = []
        self._sent = 0
        self._resumed_at = float("-inf")
        self.session = ""
        self.suite: SuiteName = "mlkem768-x25519"
        self.public_key = b""
        self.t2 = b""

    @property
    def transcript(self) -> bytes:
        """The current transcript: T1 before evidence is sent, T3 after the grant."""
        return self._transcript

    async def open(self, hello: BaseModel, patience_s: float) -> Challenge:
        """Send hello, wait for the manager's challenge to it, generate the session's key pair. Raises SessionOver."""
        clear_session()
        self._hello = pack(hello)
        await self._link.say("hello", self._hello)

        def take(step: str, data: bytes) -> Challenge | None:
            if step != "challenge":
                return None
            signed = unpack(Signed, data)
            challenge = self._said(CHALLENGE, signed)
            if challenge.hello != hello_hash(self._hello) or challenge.role != self._link.role:
                return None
            suite = self._accepted_suite(challenge.suite)
            t0 = first_transcript(suite, challenge.role, challenge.session, self._link.id, signed.signer)
            self._transcript = next_transcript(t0, "down", "challenge", data)
            self.suite, self.session = suite, challenge.session
            bind_session(self.session)
            return challenge

        challenge = await self._await(take, patience_s)
        self._private, self.public_key = envelope.generate(self.suite)
        return challenge

    async def send_evidence(self, challenge: Challenge, evidence: BaseModel) -> None:
        """Seal evidence to the manager's session key and send it: T1 becomes T2."""
        info = canonical("evidence encryption", self._transcript)
        ciphertext = envelope.seal(self.suite, challenge.session_key, info, pack(evidence))
        self._evidence = pack(Sealed(session=self.session, ciphertext=ciphertext))
        self.t2 = self._transcript = next_transcript(self._transcript, "up", "evidence", self._evidence)
        await self._link.say("evidence", self._evidence)

    async def take_grant(self, kind: type[M], patience_s: float) -> M:
        """Wait for the signed grant to this enclave's key: T2 becomes T3. Raises SessionOver."""

        def take(step: str, data: bytes) -> M | None:
            if step != "grant":
                return None
            sealed = self._said(GRANT, unpack(Signed, data), self.t2)
            if sealed.session != self.session:
                return None
            plaintext = envelope.open_sealed(
                self.suite, self._private, canonical("grant encryption", self.t2), sealed.ciphertext
            )
            self._transcript = next_transcript(self.t2, "down", "grant", data)
            return unpack(kind, plaintext)

        return await self._await(take, patience_s, resume=True)

    async def prove(self, proof: bytes, channel_secret: Secret) -> None:
        """Send the proof; the channel starts at T4."""
        t3, step = self._transcript, PROOF_STEP[self._link.role]
        data = seal_frame(
            self.session,
            channel_secret,
            step,
            pack(Proof(proof=proof)),
            base=t3,
            direction="up",
            counter=0,
            chain=t3,
        )
        t4 = next_transcript(t3, "up", step, data)
        self._channel = Channel.start(self.session, channel_secret, t4, "up")
        await self._link.say(step, data)

    async def say(self, step: str, model: BaseModel) -> None:
        """Send a message on the channel. It is kept until the manager acknowledges it: a busy bus only delays it."""
        self._channel, data = self.channel.seal(step, pack(model))
        self._unacknowledged.append(_Unheard(self._channel.sent, step, data, time.monotonic()))
        await self._send_from(self._sent)

    async def hear(self, wait_s: float) -> tuple[str, bytes] | None:
        """The next channel message and its step, or None after `wait_s`. Raises SessionOver for the step `ended`."""
        until = time.monotonic() + wait_s
        while (left := until - time.monotonic()) > 0:
            got = await self._link.next(min(left, self._retry_s))
            if got is None:
                await self._send_from(self._sent)
                continue
            step, data = got
            try:
                self._take_refusal(step, data)
                self._channel, plaintext = self.channel.open(step, data)
            except Duplicate:
                continue
            except OutOfOrder:
                if self._resumed_at + self._retry_s <= time.monotonic():
                    await self.resume()
                continue
            except Refusal as refusal:
                log.debug("ignored", step=step, reason=refusal.reasons[0].code)
                continue
            if step == "ended":
                ended = unpack(Ended, plaintext)
                raise SessionOver(ended.reasons, ended.state)
            await self._resend(older_s=self._retry_s)
            return step, plaintext
        return None

    async def resume(self) -> None:
        """Ask for the last messages again, and resend what the manager has not acknowledged.

        What the bus cannot take now is retried later: the session survives.
        """
        self._resumed_at = time.monotonic()
        try:
            await self._link.say("resume", pack(Resume(session=self.session)))
        except BusError as error:
            log.info("resume deferred", session=self.session, error=str(error))
            return
        if self._channel is not None:
            await self._resend()

    async def _resend(self, older_s: float = 0.0) -> None:
        """Resend the same bytes: a lost message would otherwise hold up every later one."""
        self._unacknowledged = [
            message for message in self._unacknowledged if message.counter > self.channel.acknowledged
        ]
        if self._unacknowledged and self._unacknowledged[0].at + older_s <= time.monotonic():
            await self._send_from(0)

    async def _send_from(self, counter: int) -> None:
        """Send the messages above a counter, in order, as far as the bus takes them now."""
        for message in self._unacknowledged:
            if message.counter <= counter:
                continue
            try:
                await self._link.say(message.step, message.data)
            except BusError as error:
                log.info("send deferred", step=message.step, session=self.session, error=str(error))
                return
            self._sent = max(self._sent, message.counter)

    @property
    def channel(self) -> Channel:
        """The channel; there is one after `prove`."""
        if self._channel is None:
            raise AssertionError("no channel before the proof")
        return self._channel

    def open_for_me(self, info: bytes, ciphertext: bytes) -> bytes:
        """Decrypt what was sealed to this session's enclave key. Raises Refusal `envelope.open`."""
        return envelope.open_sealed(self.suite, self._private, info, ciphertext)

    async def _await(self, take: Callable[[str, bytes], M | None], patience_s: float, *, resume: bool = False) -> M:
        until = time.monotonic() + patience_s
        while (left := until - time.monotonic()) > 0:
            got = await self._link.next(min(left, self._retry_s))
            if got is None:
                if resume:
                    await self.resume()
                continue
            try:
                self._take_refusal(*got)
                answer = take(*got)
            except Refusal as refusal:
                log.debug("ignored", step=got[0], reason=refusal.reasons[0].code)
                continue
            if answer is not None:
                return answer
        raise SessionOver([_silence(self._link, patience_s)], None)

    def _said(self, purpose: Purpose[M], signed: Signed, *context: bytes) -> M:
        """What a manager signed for this agent. Raises Refusal."""
        return self._managers.read(purpose, signed, to_agent(self._link.role, self._link.name), *context)

    def _take_refusal(self, step: str, data: bytes) -> None:
        """Raise SessionOver for a signed refusal of this hello, or of evidence that this agent sent."""
        if step == "refused":
            refused = self._said(REFUSED, unpack(Signed, data))
            if refused.hello == hello_hash(self._hello):
                raise SessionOver(refused.reasons, "REFUSED")
        if step == "rejected" and self._evidence:
            rejected = self._said(REJECTED, unpack(Signed, data))
            if rejected.session == self.session and rejected.evidence == digest("rejected evidence", self._evidence):
                raise SessionOver(rejected.reasons, "REFUSED")

    def _accepted_suite(self, suite: str) -> SuiteName:
        for accepted in get_args(SuiteName):
            if suite == accepted and accepted in self._suites:
                return suite  # type: ignore[return-value]
        raise Refusal.because(
            "challenge.suite",
            "suite",
            expected=f"one of {', '.join(self._suites)}",
            found=suite,
            action="set the manager's suite to one that the agents' measured settings accept",
        )


def _silence(link: Link, patience_s: float) -> Reason:
    return Reason(
        code="manager.silent",
        field=f"{link.role} {link.id}",
        expected=f"an answer within {patience_s:g} s",
        found="no valid answer",
        action="check that a manager worker runs, and that manager_identity in the measured settings is its key",
    )
