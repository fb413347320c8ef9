"""Operators' commands: verified, applied once, answered with a signed statement in an event.

All effects of a command are idempotent; its sequence is stored after them, so if a worker is killed in between, the
next one repeats them. What grants is in the decision log before it takes effect; what takes away, as soon as it has.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import structlog

from attestgate.manager.audit.orders import Orders
from attestgate.manager.events.emitter import Emit, plain
from attestgate.manager.handlers.quarantine import Quarantine
from attestgate.manager.local.slices import aside
from attestgate.manager.policy.applied_commands import AppliedCommands
from attestgate.manager.policy.enrolments import Enrolments, overtaken
from attestgate.manager.policy.policies import Policies
from attestgate.manager.policy.revocations import Revocations
from attestgate.manager.policy.signers import Signers
from attestgate.manager.records.current import CurrentSessions
from attestgate.manager.records.session_messages import SessionMessages
from attestgate.manager.sessions.inter_session import Order
from attestgate.schemas.base import Reason, Refusal, pack, unpack
from attestgate.schemas.binding import Role
from attestgate.schemas.enrolment import (
    COMMAND,
    Command,
    Drop,
    Enrol,
    PolicyManifest,
    PutPolicy,
    RecheckNow,
    Retry,
    Revoke,
    SubjectKind,
    TryPolicy,
    commands_of,
)
from attestgate.schemas.in_force import ANSWER, Answer, InForce, digest_of
from attestgate.schemas.signing import Signed, Signer

log = structlog.get_logger(__name__)
MAX_ANSWERED = 4
"""Reasons that a signed answer repeats."""
OBEYED = 1000
"""Revokes of gateways that are not applied again: they come with every report until what they stop is gone."""
VERSIONS = 10**10
"""By how much a policy's version may be above the highest so far; or it is a time, in microseconds at most."""
MICROSECONDS = 1_000_000
"""Of a second: a sequence is Unix time in microseconds."""


@dataclass(frozen=True)
class Received:
    """A command as it was received, its signature verified. `name` is the operator's, `digest` its SHA-256."""

    name: str
    digest: bytes
    signed: Signed
    command: Command
    at: int

    @property
    def about(self) -> tuple[SubjectKind, str] | None:
        """Whose enrolment it changes."""
        match self.command.action:
            case Enrol(subject=subject):
                return subject.kind, subject.id
            case Revoke(kind=kind, id=id):
                return kind, id
            case _:
                return None

    def said(self, statement: bytes, order: int) -> InForce:
        """What a manager says of a statement that this command puts in force."""
        return InForce(statement=statement, command=self.digest, operator=self.name, order=order, applied_at=self.at)


class Operators:
    """Handles operators' commands.

    `standing_still` says why the decision log takes in no entries; `skew_s` is by how much an operator's clock may be
    ahead.
    """

    def __init__(
        self,
        identity: Signer,
        signers: Signers,
        applied: AppliedCommands,
        enrolments: Enrolments,
        policies: Policies,
        revocations: Revocations,
        current: CurrentSessions,
        messages: SessionMessages,
        quarantine: Quarantine,
        orders: Orders,
        standing_still: Callable[[], Reason | None],
        emit: Emit,
        now: Callable[[], float],
        skew_s: int,
    ) -> None:
        self._identity = identity
        self._signers = signers
        self._applied = applied
        self._enrolments = enrolments
        self._policies = policies
        self._revocations = revocations
        self._current = current
        self._messages = messages
        self._quarantine = quarantine
        self._orders = orders
        self._standing_still = standing_still
        self._emit = emit
        self._now = now
        self._skew_s = skew_s
        self._obeyed: dict[bytes, None] = {}
        """Gateways' Revokes that this worker has applied, by their SHA-256."""

    async def take(self, name: str, data: bytes) -> None:
        """Apply a command received on operator `name`'s subject, and publish the signed answer as an event.

        Raises Refusal (`command.*`, `signature.*`), BusError.
        """
        digest, newest = await aside(len(data), digest_of, data), 0
        message, received = digest.hex(), None
        try:
            self._signers.check_named(name)
            received = await self._read(name, data, digest)
            own = await self._applied.newest(received.signed.signer)
            repeated = own is not None and own.command == digest
            replaced = await self._replaced(received)
            newest = max(replaced, own.order if own is not None and not repeated else 0)
            self._check(received, replaced, newest)
            if not repeated:  # else only the answer was lost
                await self._apply_and_note(received)
        except Refusal as refusal:
            if received is not None:
                await self._close(received)
            answer = self._answer(name, digest, newest, refusal)
            await self._emit("op", name, "refused", message=message, reasons=plain(refusal.reasons), answer=answer)
            raise
        command = received.command
        answer = self._answer(name, digest, max(newest, command.sequence))
        told = {"message": message, "sequence": command.sequence, "command": command.action.do, "answer": answer}
        await self._emit("op", name, "applied", **told)

    async def revoked_at_gateway(self, signed: Signed, command: Command) -> None:
        """Apply a Revoke that a gateway obeys, as if it had come as a command now, whatever its expiry.

        `command` is what was read of it. It has no effect where something newer is in force. Raises BusError.
        """
        digest = digest_of(pack(signed))
        received = Received(self._signers.name_of(signed.signer), digest, signed, command, int(self._now()))
        action = command.action
        if digest in self._obeyed or not isinstance(action, Revoke):
            return
        if command.sequence > await self._replaced(received):
            try:
                await self._revoke(received, action)
                await self._orders.note(received.name, command, digest.hex())
            except Refusal as refusal:
                log.info("overtaken: a revocation that a gateway obeys", reason=refusal.reasons[0].sentence())
        self._obeyed[digest] = None
        if len(self._obeyed) > OBEYED:
            del self._obeyed[next(iter(self._obeyed))]

    async def _read(self, name: str, data: bytes, digest: bytes) -> Received:
        signed = unpack(Signed, data)
        # The outer encoding is not signed, and what is in force is named by the hash of its one encoding. A command
        # that the bus has packed anew would stand beside a wrong hash: it would count for nothing, in another's place.
        if await aside(len(data), pack, signed) != data:
            raise _another_encoding()
        command = await aside(len(data), self._signers.read_command, signed)
        if self._signers.name_of(signed.signer) != name:
            found = self._signers.name_of(signed.signer)
            raise _refused("subject", f"a command signed by {name}", found, "publish on your own subject")
        return Received(name, digest, signed, command, int(self._now()))

    async def _replaced(self, received: Received) -> int:
        """The highest sequence in force of what the command replaces, itself left out."""
        if received.about is not None:
            return await self._enrolments.newest(*received.about, but=received.signed)
        if isinstance(received.command.action, TryPolicy):
            return await self._policies.newest_trial(but=received.command.action.manifest)
        return 0

    def _check(self, received: Received, replaced: int, newest: int) -> None:
        """Raises Refusal for a command out of time or order. `newest`: of what it replaces and its operator's own."""
        command, now = received.command, self._now()
        if command.expires_at < received.at:
            raise _refused("expired", f"by {command.expires_at}", str(received.at), "sign it again; check both clocks")
        if received.about is not None and command.sequence <= replaced:
            raise overtaken(*received.about, replaced, command.sequence)
        if command.sequence <= newest:
            action = "sign it again: another was applied first"
            raise _refused("sequence", f"above {newest}", str(command.sequence), action)
        # Else one command from far ahead would be the last for its subject and its operator. Above what is in force
        # there is always room: an operator whose clock is right is not locked out by one whose clock was ahead.
        latest = max(int((now + self._skew_s) * MICROSECONDS), newest + MICROSECONDS)
        if command.sequence > latest:
            raise _refused("ahead", f"a sequence of at most {latest}", str(command.sequence), "correct your clock")

    async def _apply_and_note(self, received: Received) -> None:
        command = received.command
        await self._apply(received)
        await self._orders.note(received.name, command, received.digest.hex())
        await self._applied.note(received.signed.signer, received.said(received.digest, command.sequence))

    async def _enter(self, received: Received) -> None:
        """What is about to grant. Raises Refusal `log.standing-still`, BusError."""
        if (reason := self._standing_still()) is not None:
            raise Refusal(reason)
        await self._orders.enter(received.name, received.command, received.digest.hex())

    async def _close(self, received: Received) -> None:
        """A command is refused. If a worker that was killed had entered it, and it never took effect, it has failed."""
        action, message = received.command.action, received.digest.hex()
        if not isinstance(action, Enrol | PutPolicy) or not await self._orders.entered(received.name, message):
            return
        if isinstance(action, Enrol):
            in_force = await self._enrolments.newest(action.subject.kind, action.subject.id)
            pending = in_force < received.command.sequence
        else:
            pending = await self._policies.newest() < unpack(PolicyManifest, action.manifest.payload).version
        # Where it is in force, or something newer is, this is a repeat, and nothing has failed.
        if pending:
            await self._orders.failed(received.name, received.command, message)

    async def _apply(self, received: Received) -> None:
        action = received.command.action
        match action:
            case Enrol():
                await self._put(received, action.subject.kind, action.subject.id)
                await self._revocations.clear(action.subject.kind, action.subject.id, received.command.sequence)
            case Revoke():
                await self._enrolments.check_known(action.kind, action.id)
                await self._revoke(received, action)
            case RecheckNow():
                await self._enrolments.check_known(action.kind, action.id)
                if unread := await self._order(action.kind, action.id, "recheck", None, received):
                    raise Refusal(*unread)
            case PutPolicy() | TryPolicy():
                await self._policy(action, received)
            case Retry():
                await self._quarantine.retry(action.message)
            case Drop():
                await self._quarantine.drop(action.message)

    async def _revoke(self, received: Received, action: Revoke) -> None:
        if action.kind != "gateway":
            # First: gateways obey it as it was signed, whatever becomes of this worker and of all the rest.
            await self._revocations.post(received.signed, received.command, action)
        await self._put(received, action.kind, action.id)
        if action.kind != "gateway":
            revoked = _revoked(action, received.name)
            # It is in force. A session that no pointer leads to ends at its next recheck.
            for reason in await self._order(action.kind, action.id, "revoke", revoked, received):
                log.error("a session not told of its revocation", reason=reason.sentence())

    async def _put(self, received: Received, kind: SubjectKind, id: str) -> None:
        said = received.said(received.digest, received.command.sequence)
        grants = isinstance(received.command.action, Enrol)
        enter = partial(self._enter, received) if grants else None
        await self._enrolments.put(kind, id, received.signed, received.command, said, enter)

    async def _policy(self, action: PutPolicy | TryPolicy, received: Received) -> None:
        # A policy's authority is the signature of its author, not that of the command which brings it.
        manifest = self._signers.read_manifest(action.manifest)
        statement = digest_of(pack(action.manifest))
        if isinstance(action, PutPolicy):
            await self._check_version(manifest.version)
            said = received.said(statement, manifest.version)
            enter = partial(self._enter, received)
            await self._policies.put(action.manifest, manifest, action.documents, said, enter)
        else:
            said = received.said(statement, received.command.sequence)
            await self._policies.try_out(action.manifest, manifest, action.documents, said)

    async def _check_version(self, version: int) -> None:
        """Raises Refusal for a version so high that there would soon be none above it.

        Gateways take no lease by a lower one than they have seen, also when its author is taken out of the settings.
        """
        latest = max(
            await self._policies.highest_version() + VERSIONS, int((self._now() + self._skew_s) * MICROSECONDS)
        )
        if version > latest:
            raise _refused(
                "policy", f"a version of at most {latest}", str(version), "number policies by one, or by time"
            )

    async def _order(self, role: Role, id: str, what: str, reason: Reason | None, received: Received) -> list[Reason]:
        """Send an order to every session of a subject, including one that is not trusted yet.

        Returns why pointers could not be read: the bus can write any, and must not so keep an order from the others.
        """
        unread: list[Reason] = []
        for key in await self._current.keys(role, id):
            try:
                session = await self._current.session(key)
            except Refusal as refusal:
                unread += refusal.reasons
                continue
            if session is not None:
                order = Order(reasons=[reason] if reason else [])
                once = f"{received.name}-{received.command.sequence}-{session}"
                await self._messages.send(role, session, what, order, message_id=once)
        return unread

    def _answer(self, name: str, digest: bytes, newest: int, refusal: Refusal | None = None) -> str:
        """The signed answer to a command, in base64: the bus delivers it, and has no say in it."""
        reasons = list(refusal.reasons[:MAX_ANSWERED]) if refusal else []
        answer = Answer(applied=refusal is None, at=int(self._now()), newest=newest, reasons=reasons)
        signed = self._identity.sign(ANSWER, commands_of(name), answer, digest)
        return base64.b64encode(pack(signed)).decode()


def _revoked(action: Revoke, by: str) -> Reason:
    return Reason(
        code="operator.revoked",
        field=f"{action.kind} {action.id}",
        expected="an enrolment in force",
        found=f"revoked by {by}: {action.reason}",
        action="an operator has to enrol it again",
    )


def _another_encoding() -> Refusal:
    return Refusal.because(
        "message.encoding",
        COMMAND.label,
        expected="a signed command in its one encoding: the fields in their order, in msgpack's shortest forms",
        found="another encoding of it",
        action="send it as it was signed; if attestgate sent it, find out who changed it on the bus",
    )


def _refused(what: str, expected: str, found: str, action: str) -> Refusal:
    return Refusal.because(f"command.{what}", what, expected=expected, found=found, action=action)
