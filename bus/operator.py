"""An operator's side: sign a command, publish it, wait for the event that answers it."""

from __future__ import annotations

import asyncio
import hashlib
import time

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestgate.bus import subjects
from attestgate.bus.api import Bus, BusError, Message
from attestgate.bus.forward import event_of
from attestgate.schemas.base import Refusal, pack
from attestgate.schemas.enrolment import Action, Command
from attestgate.schemas.events import Event, reasons_of
from attestgate.schemas.signing import sign

VALID_S = 60
"""How long a command may take to be applied."""


async def order(bus: Bus, name: str, key: Ed25519PrivateKey, action: Action, answer_s: float) -> Event:
    """Send a command and wait until it is applied. Returns the event that says so.

    Raises Refusal with the managers' reasons, or `command.unanswered` if no manager answered in `answer_s`.
    """
    now = time.time()
    command = Command(operator=name, sequence=int(now * 1_000_000), expires_at=int(now) + VALID_S, action=action)
    data = pack(sign(key, "command", command))
    wanted = hashlib.sha256(data).hexdigest()
    answer: asyncio.Future[Event] = asyncio.get_running_loop().create_future()

    async def hear(message: Message) -> None:
        event = event_of(message.subject, message.data)
        if event is not None and event.data.get("message") == wanted and not answer.done():
            answer.set_result(event)

    subscription = await bus.listen(subjects.events_of("op", name), hear)
    try:
        await bus.flush()
        await bus.publish(subjects.operator(name, action.do), data)
        async with asyncio.timeout(answer_s):
            event = await answer
    except TimeoutError:
        raise Refusal.because(
            "command.unanswered",
            action.do,
            expected=f"a manager's answer within {answer_s:g} s",
            found="no answer",
            action="start a manager worker; the command is valid for a minute, so check the events before repeating it",
        ) from None
    finally:
        await subscription.close()
    if event.what == "refused":
        found = reasons_of(event)
        if not found:
            raise BusError("a refusal without reasons")
        raise Refusal(*found)
    return event
