"""An operator's side: sign a command, publish it, wait for the managers' signed answer."""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from dataclasses import dataclass
from typing import NamedTuple, Self

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestgate.bus import subjects
from attestgate.bus.api import Bus, Message
from attestgate.bus.forward import event_of
from attestgate.schemas.base import Refusal, pack, unpack
from attestgate.schemas.clocks import SKEW_S
from attestgate.schemas.enrolment import COMMAND, Action, Command, commands_of
from attestgate.schemas.in_force import ANSWER, Answer, digest_of
from attestgate.schemas.settings import OperatorFile
from attestgate.schemas.signing import Signed, Signer, TrustedKeys

log = structlog.get_logger(__name__)
VALID_S = 60
"""How long a command may take to be applied."""
OVERTAKEN = "command.sequence"
AGAIN = (OVERTAKEN, "command.ahead", "command.expired")
"""Why a command is signed again: what another clock made of it, or another command just before."""
OWN = "sequence"
"""The field of a refusal for a newer command of the operator's own; else it names the subject that one is about."""


@dataclass(frozen=True)
class OperatorKey:
    """Who orders: a name, the key that signs, and whose answers are believed."""

    name: str
    signer: Signer
    managers: TrustedKeys

    @classmethod
    def of(cls, settings: OperatorFile, key: Ed25519PrivateKey) -> Self:
        """By an operator's file, and the key that it names."""
        return cls(settings.name, Signer(settings.trust_domain, key), settings.managers)


class Applied(NamedTuple):
    """The managers' answer to a command, and the SHA-256 of the command as it was signed and applied."""

    answer: Answer
    command: bytes


async def order(
    bus: Bus, operator: OperatorKey, action: Action, answer_s: float, seen: list[bytes] | None = None
) -> Applied:
    """Send a command and wait until it is applied. `seen` is as in `Command`.

    A command that is refused for its time is signed once more, by the manager's clock and above the newest command that
    its answer names; not if that one is about the same subject and came after it. Raises Refusal with the managers'
    reasons, or `command.unanswered` if none of them answered in `answer_s`.
    """
    now = time.time()
    command = Command(sequence=int(now * 1_000_000), expires_at=int(now) + VALID_S, action=action, seen=seen)
    answer, digest = await _ask(bus, operator, command, answer_s)
    if not answer.applied and answer.reasons[0].code in AGAIN and not _overtaken(answer, now, time.time()):
        log.info("signed again", reason=answer.reasons[0].sentence())
        above = max(answer.newest + 1, answer.at * 1_000_000)
        by_manager = {"sequence": above, "expires_at": answer.at + VALID_S}
        answer, digest = await _ask(bus, operator, command.model_copy(update=by_manager), answer_s)
    if not answer.applied:
        raise Refusal(*answer.reasons)
    return Applied(answer, digest)


def _overtaken(answer: Answer, signed_at: float, answered_at: float) -> bool:
    """Whether a command came too late: of its subject another is in force, signed after it by clocks that are right.

    Whoever signed that one may have known more, and the bus may have held ours back: an operator has to look first.
    """
    reason = answer.reasons[0]
    own_right = signed_at - SKEW_S <= answer.at <= answered_at + SKEW_S
    other_right = answer.newest <= (answer.at + SKEW_S) * 1_000_000
    return reason.code == OVERTAKEN and reason.field != OWN and own_right and other_right


async def _ask(bus: Bus, operator: OperatorKey, command: Command, answer_s: float) -> tuple[Answer, bytes]:
    data = pack(operator.signer.sign(COMMAND, commands_of(operator.name), command))
    digest = digest_of(data)
    answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    async def hear(message: Message) -> None:
        said = _answer(operator, digest, message)
        if said is not None and not answer.done():
            answer.set_result(said)

    subscription = await bus.listen(subjects.events_of("op", operator.name), hear)
    try:
        await bus.flush()
        await bus.publish(subjects.operator(operator.name, command.action.do), data)
        async with asyncio.timeout(answer_s):
            return await answer, digest
    except TimeoutError:
        raise Refusal.because(
            "command.unanswered",
            command.action.do,
            expected=f"an answer signed by a manager within {answer_s:g} s",
            found="no such answer",
            action="start a manager worker, and check manager_identity in your operator file; the command is valid for"
            " a minute, so check the events before repeating it",
        ) from None
    finally:
        await subscription.close()


def _answer(operator: OperatorKey, command: bytes, message: Message) -> Answer | None:
    """A manager's answer to this command; None for any other event, and for what no manager signed."""
    event = event_of(message.subject, message.data)
    text = event.data.get("answer") if event is not None and event.data.get("message") == command.hex() else None
    if not isinstance(text, str):
        return None
    try:
        signed = unpack(Signed, base64.b64decode(text, validate=True))
        # The event itself is nobody's word: with it alone the bus could drop a revocation, and say it was applied.
        return operator.managers.read(ANSWER, signed, commands_of(operator.name), command)
    except (Refusal, binascii.Error) as error:
        log.warning("an answer that no manager signed, ignored", error=str(error))
        return None
