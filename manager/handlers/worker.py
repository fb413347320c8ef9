"""The loop that connects the session machines to the bus. Any number of workers run it; each takes any message.

A message is settled in one of five ways. Handled: acknowledged. Repeated, by the bus or by an agent that has not seen
our acknowledgement: acknowledged and counted. Dropped, since it changes nothing (does not fit, does not decrypt, is a
replay): acknowledged, counted, reported as an event. Again, since the bus failed or its predecessor has not arrived:
redelivered. Fault, a bug of ours: redelivered a few times, then quarantined, so that it never blocks the others.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing

import structlog

from attestgate.bus import subjects
from attestgate.bus.api import Bus, BusError, Delivery
from attestgate.bus.crypto.channel import Duplicate, OutOfOrder, Replayed
from attestgate.manager.events.emitter import Emit, plain
from attestgate.manager.events.observer import Observer
from attestgate.manager.handlers.quarantine import Quarantine
from attestgate.manager.handlers.rate_limit import Limiter
from attestgate.manager.sessions.recheck import TooEarly
from attestgate.manager.sessions.states import InvalidTransition
from attestgate.schemas.base import Reason, Refusal
from attestgate.schemas.event_data import BY_NAME

log = structlog.get_logger(__name__)
AT_ONCE = 64
"""Messages in progress at the same time, per consumer."""
ATTEMPTS = 5
"""Deliveries of a message on which a worker fails, before it is quarantined."""
RATE, BURST = 20.0, 60
"""Messages per second, and at once, that a worker accepts from one sender. A host with 50 applications that start at
once answers 50 `deliver_key`s; a recheck is one message every few seconds."""
PATIENT = (f"{subjects.OPERATOR}.", f"{subjects.IN}.gateway.")
"""Senders that are slowed down, not dropped: one enrols a fleet, the other reports for it. The stream bounds both."""
TOO_FAST = "message.rate"
Handler = Callable[[str, bytes], Awaitable[None]]
"""Takes a subject and a message's bytes.

Raises Refusal, InvalidTransition, Duplicate, OutOfOrder, TooEarly, BusError.
"""


class Worker:
    """One manager worker."""

    def __init__(
        self,
        bus: Bus,
        take: Handler,
        background: Sequence[Callable[[], Awaitable[None]]],
        emit: Emit,
        quarantine: Quarantine,
        now: Callable[[], float],
        observer: Observer | None = None,
    ) -> None:
        """`take` handles a message; `background` are tasks that no message triggers, run until cancelled."""
        self._bus = bus
        self._take = take
        self._background = background
        self._emit = emit
        self._quarantine = quarantine
        self._now = now
        self._observer = observer or Observer()
        self._limiter = Limiter(RATE, BURST)
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        """Take messages until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow("managers", self._from_outside))
            group.create_task(self._follow("workers", self._take))
            for task in self._background:
                group.create_task(_run(task))

    async def _follow(self, consumer: str, handle: Handler) -> None:
        room = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as group, aclosing(self._bus.consume(consumer)) as deliveries:  # type: ignore[type-var]
            async for delivery in deliveries:
                await room.acquire()
                task = group.create_task(self._one(delivery, handle))
                task.add_done_callback(lambda _: room.release())

    async def _from_outside(self, subject: str, data: bytes) -> None:
        # The subject names the sender: the server lets a credential publish below its own id only
        # (bus/auth/permissions.py).
        sender = subject.rsplit(".", 1)[0]
        if not self._limiter.take(sender, time.monotonic()):
            if sender.startswith(PATIENT):
                raise BusError(f"more than {RATE:g} messages per second from {sender}")
            raise Refusal(_too_fast(sender))
        await self._take(subject, data)

    async def _one(self, delivery: Delivery, handle: Handler) -> None:
        """Handle one delivery and settle it. Never raises: a worker outlives every message."""
        started, result = time.monotonic(), "again"
        try:
            result = await self._settle(delivery, handle)
        except BusError as error:
            log.warning("bus error, to be redelivered", subject=delivery.subject, error=str(error))
        self._observer.handled(delivery.subject, time.monotonic() - started, result)

    async def _settle(self, delivery: Delivery, handle: Handler) -> str:
        """The result: handled, repeated, dropped, again or fault."""
        subject, result = delivery.subject, "dropped"
        try:
            await handle(subject, delivery.data)
        except Refusal as refusal:
            await self._dropped(subject, delivery.data, refusal.reasons)
        except (InvalidTransition, Duplicate) as unfit:
            result = await self._unfit(delivery, unfit)
        except TooEarly as early:
            await delivery.again(early.delay_s)
            return "again"
        except OutOfOrder:
            if delivery.attempt <= ATTEMPTS:
                await delivery.again(0.05 * delivery.attempt)
                return "again"
            await self._dropped(subject, delivery.data, (_early(),))
        except BusError as error:
            log.warning("bus error, retrying", subject=subject, attempt=delivery.attempt, error=str(error))
            await delivery.again(min(0.1 * 2 ** min(delivery.attempt, 6), 5.0))
            return "again"
        except Exception as error:  # a bug must neither end the worker nor admit anyone
            log.exception("fault", subject=subject, attempt=delivery.attempt)
            if delivery.attempt < ATTEMPTS:
                await delivery.again(0.2 * delivery.attempt)
                return "fault"
            result = "fault"
            await self._put_aside(subject, delivery.data, delivery.attempt, _fault(error))
        else:
            self.counts["handled"] += 1
            result = "handled"
        await delivery.done()
        return result

    async def _unfit(self, delivery: Delivery, unfit: InvalidTransition | Duplicate) -> str:
        """A message whose step was taken already: redelivered by the bus or resent by an agent, it is no event."""
        agents_own = isinstance(unfit, Duplicate) and not isinstance(unfit, Replayed)
        if delivery.attempt > 1 or agents_own:
            log.info("repeated", subject=delivery.subject, attempt=delivery.attempt)
            self.counts["repeated"] += 1
            return "repeated"
        reason = _no_move(unfit) if isinstance(unfit, InvalidTransition) else _replay()
        await self._dropped(delivery.subject, delivery.data, (reason,))
        return "dropped"

    async def _put_aside(self, subject: str, data: bytes, attempts: int, reason: Reason) -> None:
        """Quarantine a message, with an event that names it."""
        name = await self._quarantine.put(subject, data, attempts, reason, int(self._now()))
        self.counts["quarantined"] += 1
        kind, id, what = _who(subject)
        await self._emit(kind, id, "quarantined", step=what, message=name, reasons=plain((reason,)))

    async def _dropped(self, subject: str, data: bytes, reasons: tuple[Reason, ...]) -> None:
        """Count and report a message that changed nothing."""
        self.counts[f"dropped {reasons[0].code}"] += 1
        if reasons[0].code == TOO_FAST and not self._first_refusal(subject):
            return
        kind, id, what = _who(subject)
        log.warning("dropped", subject=subject, reasons=[reason.code for reason in reasons])
        await self._emit(
            kind,
            id,
            "dropped",
            step=what,
            size=len(data),
            message=hashlib.sha256(data).hexdigest(),
            reasons=plain(reasons),
        )

    def _first_refusal(self, subject: str) -> bool:
        """Whether to report this rate-limit refusal: one in a hundred is enough."""
        return self.counts[f"dropped {TOO_FAST}"] % 100 == 1


async def _run(task: Callable[[], Awaitable[None]]) -> None:
    await task()


def _too_fast(sender: str) -> Reason:
    return Reason(
        code=TOO_FAST,
        field="rate",
        expected=f"at most {RATE:g} messages per second from one sender, {BURST} at once",
        found=f"more from {sender}",
        action="find out what its credential is used for",
    )


def _who(subject: str) -> tuple[str, str, str]:
    """Kind, id and step of the sender, for the event: the last three tokens, if each is valid in a subject."""
    tokens = ["unknown", "unknown", *subject.split(".")[2:]]
    kind, id, what = (token if subjects.is_token(token) else "unknown" for token in tokens[-3:])
    return kind if (kind, "dropped") in BY_NAME else "unknown", id, what


def _no_move(none: InvalidTransition) -> Reason:
    return Reason(
        code="session.move",
        field="session",
        expected=f"a message that fits the state {none.state}",
        found=f"a message for {none.given}",
        action="nothing, if the session ended meanwhile; otherwise find out who replays this subject's messages",
    )


def _replay() -> Reason:
    return Reason(
        code="channel.repeat",
        field="counter",
        expected="a message that was not opened before",
        found="an old counter: acknowledged before, or with other bytes",
        action="find out who else uses this subject's credential, or writes to the bus",
    )


def _early() -> Reason:
    return Reason(
        code="channel.order",
        field="counter",
        expected="the next message of the channel",
        found="a later message, without the ones in between",
        action="the agent resumes automatically; if not, restart it",
    )


def _fault(error: Exception) -> Reason:
    return Reason(
        code="worker.fault",
        field="message",
        expected="a message that this worker can handle",
        found=type(error).__name__,
        action="see the worker's log; report it",
    )
