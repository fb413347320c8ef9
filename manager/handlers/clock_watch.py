"""Looks after sessions that no message comes to: after a step of the clock, and where a timer was lost.

Each load of a record compares its times with the clock, so a session that the wrong clock began ends with the next
message for it. After a step nobody may send one for as long as the clock was ahead. So each worker watches its own
clock, tells of a step, and judges everybody anew, spread over one recheck period. Every few minutes it also looks for
sessions whose timer is overdue: the bus's clock was set, and keeps it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

import structlog

from attestgate.bus.api import BusError
from attestgate.manager.events.emitter import Emit
from attestgate.manager.local.clock_steps import LOOK_S, ClockSteps
from attestgate.manager.records.session_store import R, SessionStore
from attestgate.manager.sessions.draft import Context
from attestgate.manager.sessions.recheck import TooEarly, judge_anew, on_timer
from attestgate.manager.sessions.record import AppRecord, HostRecord
from attestgate.manager.sessions.states import InvalidTransition
from attestgate.schemas.base import Refusal

log = structlog.get_logger(__name__)
LOOK_AFTER_S = 300
"""How often every session's times are looked at."""
AT_ONCE = 16
"""Sessions judged anew per second at least, however few there are."""


class ClockWatch:
    """One worker's. `run` is a background task of the worker."""

    def __init__(
        self,
        worker: str,
        steps: ClockSteps,
        store: SessionStore,
        policy: Callable[[], Awaitable[dict[str, str]]],
        context: Callable[[], Context],
        emit: Emit,
        stepped: Callable[[], None],
    ) -> None:
        """`stepped` is called after a step of the clock."""
        self._worker = worker
        self._steps = steps
        self._store = store
        self._policy = policy
        self._context = context
        self._emit = emit
        self._stepped = stepped

    async def run(self) -> None:
        """Watch until cancelled."""
        loop = asyncio.get_running_loop()
        # The worker before this one may have run by another clock.
        look_at = loop.time() + self._context().timing.recheck_s
        while True:
            await asyncio.sleep(LOOK_S)
            by_s = self._steps.look()
            if by_s or loop.time() >= look_at:
                look_at = loop.time() + LOOK_AFTER_S
                await self._look_after(by_s)

    async def _look_after(self, by_s: float) -> None:
        """Every session once, hosts first. What fails now is looked at the next time."""
        since = self._context().now if by_s else None
        try:
            if by_s:
                self._stepped()
                await self._tell(by_s)
            policy = await self._policy()
            await self._all(HostRecord, since, policy)
            await self._all(AppRecord, since, policy)
        except BusError as error:
            log.warning("sessions not looked after, retrying later", error=str(error))

    async def _all(self, kind: type[R], since: int | None, policy: dict[str, str]) -> None:
        sessions = await self._store.sessions(kind)
        for number, session in enumerate(sessions, 1):
            await self._one(kind, session, since, policy)
            if since is not None and number % self._a_second(len(sessions)) == 0:
                await asyncio.sleep(1)

    def _a_second(self, sessions: int) -> int:
        return max(AT_ONCE, math.ceil(sessions / self._context().timing.recheck_s))

    async def _tell(self, by_s: float) -> None:
        log.warning("the clock was set", by_s=by_s)
        await self._emit("manager", self._worker, "clock-stepped", by_s=round(by_s, 3))

    async def _one(self, kind: type[R], session: str, since: int | None, policy: dict[str, str]) -> None:
        async def looked_at(record: R) -> R:
            context = self._context()
            if since is not None:
                return judge_anew(record, context, policy, since)
            # What has just come due has its timer on its way.
            overdue = record.next_timer + context.timing.skew_s < context.now
            return on_timer(record, context, policy) if overdue else record

        try:
            await self._store.change(kind, session, looked_at)
        except TooEarly:
            return
        except (Refusal, InvalidTransition) as unfit:
            log.info("session not looked after", session=session, why=str(unfit))
