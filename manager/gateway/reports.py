"""What a gateway worker tells: signed reports of what nginx now holds, and events for people.

Both wait here until the bus takes them, so that a slow bus holds up nothing at nginx. Reports are kept by key, the
newest only; events beyond a bound are dropped and that is logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice
from secrets import token_hex
from typing import TypeAlias

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential_jitter

from attestgate.bus import subjects
from attestgate.bus.api import Bus, BusError
from attestgate.schemas.admission import MAX_APPLIED, MAX_GLASS, AppliedStatement, GatewayReport, sign_report
from attestgate.schemas.event_data import GatewayWhat
from attestgate.schemas.signing import Signed

Emit: TypeAlias = Callable[[str, str, str, dict[str, object]], Awaitable[None]]
"""`emit(kind, id, what, data)`: publish an event. May raise BusError: that event is lost, and logged."""

_MAX_EVENTS = 4096
_log = structlog.get_logger()


class Telling:
    """The mouth of one gateway. `reports` and `events` run as tasks for as long as the worker does."""

    def __init__(self, gateway: str, *, bus: Bus, identity: Ed25519PrivateKey, emit: Emit) -> None:
        self._gateway = gateway
        self._bus = bus
        self._identity = identity
        self._emit = emit
        self._untold: dict[str, AppliedStatement] = {}
        self._glass: list[Signed] = []
        self._epoch, self._at = "", 0
        self._something = asyncio.Event()
        self._events: asyncio.Queue[tuple[str, dict[str, object]]] = asyncio.Queue(_MAX_EVENTS)

    def report(self, applied: Iterable[AppliedStatement], epoch: str, at: int) -> None:
        """Have it reported that nginx holds this, in an epoch of its memory, since Unix second `at`."""
        self._untold |= {item.key: item for item in applied}
        self._epoch, self._at = epoch, at
        if self._untold or self._glass:
            self._something.set()

    def glass(self, signed: Signed) -> None:
        """Have an operator's own word, which is followed here, told with the next report."""
        self._glass.append(signed)

    def event(self, what: GatewayWhat, data: dict[str, object], session: str | None = None) -> None:
        """Have an event of this gateway published; the log also names the session that it is about."""
        _log.info(what, gateway=self._gateway, **data, **({"session": session} if session else {}))
        try:
            self._events.put_nowait((what, data))
        except asyncio.QueueFull:
            _log.warning("an event was dropped: the bus is too slow", what=what)

    async def reports(self) -> None:
        """Sign and publish reports, for ever; each is tried until the bus has it."""
        subject = subjects.inbound("gateway", self._gateway, "report")
        while True:
            await self._something.wait()
            applied = list(islice(self._untold.values(), MAX_APPLIED))
            for item in applied:
                del self._untold[item.key]
            glass, self._glass = self._glass[:MAX_GLASS], self._glass[MAX_GLASS:]
            if not self._untold and not self._glass:
                self._something.clear()
            report = GatewayReport(gateway=self._gateway, epoch=self._epoch, applied=applied, at=self._at, glass=glass)
            signed, message_id = sign_report(self._identity, report), token_hex(16)
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(BusError),
                wait=wait_exponential_jitter(multiplier=0.1, max=5),
                before_sleep=complain("a report is not taken"),
            ):
                with attempt:
                    await self._bus.publish(subject, signed, message_id=message_id)

    async def events(self) -> None:
        """Publish events, for ever."""
        while True:
            what, data = await self._events.get()
            try:
                await self._emit("gateway", self._gateway, what, data)
            except BusError as error:
                _log.warning("an event was not taken", what=what, problem=str(error))


def complain(what: str) -> Callable[[RetryCallState], None]:
    """A `before_sleep` for tenacity: the first failure in a row is logged, and then every tenth."""

    def before_sleep(state: RetryCallState) -> None:
        if state.attempt_number % 10 == 1:
            _log.warning(what, attempt=state.attempt_number, problem=str(state.outcome and state.outcome.exception()))

    return before_sleep
