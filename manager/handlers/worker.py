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

from attestgate.bus import layout, subjects
from attestgate.bus.api import Bus, BusError, Delivery
from attestgate.bus.crypto.channel import Duplicate, OutOfOrder, Replayed
from attestgate.manager.events.emitter import Emit, plain
from attestgate.manager.events.observer import Observer
from attestgate.manager.handlers.quarantine import Quarantine
from attestgate.manager.handlers.rate_limit import Limiter
from attestgate.manager.local.slices import aside
from attestgate.manager.sessions.recheck import TooEarly
from attestgate.manager.sessions.states import InvalidTransition
from attestgate.schemas.base import Reason, Refusal

log = structlog.get_logger(__name__)
ATTEMPTS = 5
"""Deliveries of a message on which a worker fails, before it is quarantined."""
TOO_OFTEN = 10
"""Deliveries of a message from outside after which it is quarantined before it is parsed: whatever became of the
workers that had it, they did not settle it. Long before, its sender has sent it again or given up."""
RATE, BURST = 20.0, 60
"""Messages per second, and at once, that a worker accepts from one sender. A host with 50 applications that start at
once answers 50 `deliver_key`s; a recheck is one message every few seconds."""
BATCH = 16
"""Most messages that one request to the bus asks for."""
TOO_FAST = "message.rate"
Handler = Callable[[str, bytes], Awaitable[None]]
"""Takes a subject and a message's bytes.

Raises Refusal, InvalidTransition, Duplicate, OutOfOrder, TooEarly, BusError.
"""


class TooFast(Exception):
    """A sender is over its rate. Its message stays in the stream for a moment: meanwhile its subject is full there, so
    that the server refuses its sender, and nobody else waits, since no consumer limits what is delivered."""


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
            group.create_task(self._follow(layout.WORKERS, self._take))
            for consumer in layout.OUTSIDE:
                group.create_task(self._follow(consumer, self._from_outside))
            for task in self._background:
                group.create_task(_run(task))

    async def _follow(self, consumer: layout.Consumer, handle: Handler) -> None:
        room = asyncio.Semaphore(consumer.at_once)
        deliveries = self._bus.consume(consumer.name, batch=min(consumer.at_once, BATCH))
        async with asyncio.TaskGroup() as group, aclosing(deliveries):  # type: ignore[type-var]
            async for delivery in deliveries:
                await room.acquire()
                task = group.create_task(self._one(delivery, handle))
                task.add_done_callback(lambda _: room.release())

    async def _from_outside(self, subject: str, data: bytes) -> None:
        # The subject names the sender: the server lets a credential publish below its own name only
        # (bus/auth/permissions.py).
        if not self._limiter.take(subject.rsplit(".", 1)[0], time.monotonic()):
            raise TooFast
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
            if delivery.attempt > TOO_OFTEN and not subjects.is_internal(subject):
                await self._put_aside(subject, delivery.data, delivery.attempt, _often(delivery.attempt))
                await delivery.done()
                return "fault"
            await handle(subject, delivery.data)
        except Refusal as refusal:
            await self._dropped(subject, delivery.data, refusal.reasons)
        except (InvalidTransition, Duplicate) as unfit:
            result = await self._unfit(delivery, unfit)
        except TooFast:
            if delivery.attempt <= ATTEMPTS:
                await delivery.again(0.05 * 2 ** (delivery.attempt - 1))
                return "again"
            await self._dropped(subject, delivery.data, (_too_fast(subject),))
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
        kind, name_of, what = _who(subject)
        await self._emit(kind, name_of, "quarantined", step=what, message=name, reasons=plain((reason,)))

    async def _dropped(self, subject: str, data: bytes, reasons: tuple[Reason, ...]) -> None:
        """Count and report a message that changed nothing."""
        self.counts[f"dropped {reasons[0].code}"] += 1
        if reasons[0].code == TOO_FAST and not self._first_refusal(subject):
            return
        kind, name, what = _who(subject)
        log.warning("dropped", subject=subject, reasons=[reason.code for reason in reasons])
        await self._emit(
            kind,
            name,
            "dropped",
            step=what,
            size=len(data),
            message=await aside(len(data), _name, data),
            reasons=plain(reasons),
        )

    def _first_refusal(self, subject: str) -> bool:
        """Whether to report this rate-limit refusal: one in a hundred is enough."""
        return self.counts[f"dropped {TOO_FAST}"] % 100 == 1


def _name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def _run(task: Callable[[], Awaitable[None]]) -> None:
    await task()


def _too_fast(subject: str) -> Reason:
    return Reason(
        code=TOO_FAST,
        field="rate",
        expected=f"at most {RATE:g} messages per second from one sender, {BURST} at once",
        found=f"more from {subject.rsplit('.', 1)[0]}",
        action="find out what its credential is used for",
    )


def _often(attempts: int) -> Reason:
    return Reason(
        code="message.often",
        field="deliveries",
        expected=f"a message that is settled within {TOO_OFTEN} deliveries",
        found=f"delivery {attempts}",
        action="look for workers that ended or lost the bus while they had it; retry or drop it",
    )


def _who(subject: str) -> tuple[str, str, str]:
    """Kind, name and step of the sender, for the event; `unknown` where the subject does not say."""
    try:
        if subject.startswith(f"{subjects.OPERATOR}."):
            return "op", *subjects.parse_operator(subject)
        return subjects.parse_inbound(subject)
    except Refusal:
        return "unknown", "unknown", "unknown"


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
