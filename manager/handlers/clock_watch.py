"""Looks after sessions that no message comes to: after a step of the clock, and where a timer was lost.

Each load of a record compares its times with the clock, so a session that the wrong clock began ends with the next
message for it. After a step nobody may send one for as long as the clock was ahead. So each worker watches its own
clock, tells of a step, and judges everybody anew, spread over one recheck period. And it wakes sessions that the bus
has not woken: the bus's clock was set, and its timers and what was put back come later by as much. It looks at those
that it stored itself every second, and at all of them every few minutes.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

import structlog

from attestgate.bus.api import BusError
from attestgate.manager.events.emitter import Emit
from attestgate.manager.local.clock_steps import LOOK_S, ClockSteps
from attestgate.manager.records.session_store import Kind, R, SessionStore
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
        self._untold_s = 0.0
        """Steps that no event has told of yet."""
        self._since: int | None = None
        """When the clock was set, if not everybody has been judged anew since."""

    async def run(self) -> None:
        """Watch until cancelled."""
        loop = asyncio.get_running_loop()
        # The worker before this one may have run by another clock.
        look_at = loop.time() + self._context().timing.recheck_s
        while True:
            await asyncio.sleep(LOOK_S)
            self._notice_step()
            try:
                await self._wake_overdue()
                if self._since is not None or loop.time() >= look_at:
                    await self._look_after()
                    look_at = loop.time() + LOOK_AFTER_S
            except BusError as error:
                log.warning("sessions not looked after, retrying", error=str(error))

    def _notice_step(self) -> None:
        by_s = self._steps.look()
        if by_s:
            log.warning("the clock was set", by_s=by_s)
            self._untold_s += by_s
            self._since = self._context().now
            self._stepped()

    async def _wake_overdue(self) -> None:
        context = self._context()
        late = self._store.overdue(context.now - context.timing.skew_s)
        policy = await self._policy() if late else {}
        while late:
            kind, session = late[-1]
            try:
                await self._look_at(kind, session, None, policy)
            except BusError:
                self._store.still_due(late, context.now)
                raise
            late.pop()

    async def _look_after(self) -> None:
        """Every session once, hosts first. Raises BusError: then all over again."""
        if self._untold_s:
            await self._emit("manager", self._worker, "clock-stepped", by_s=round(self._untold_s, 3))
            self._untold_s = 0.0
        since, policy = self._since, await self._policy()
        sessions = await self._store.sessions()
        a_second = max(AT_ONCE, math.ceil(len(sessions) / self._context().timing.recheck_s))
        for number, (kind, session) in enumerate(sessions, 1):
            await self._look_at(kind, session, since, policy)
            if since is not None and number % a_second == 0:
                await asyncio.sleep(1)
        self._since = None

    async def _look_at(self, kind: Kind, session: str, since: int | None, policy: dict[str, str]) -> None:
        if kind is HostRecord:
            await self._one(HostRecord, session, since, policy)
        else:
            await self._one(AppRecord, session, since, policy)

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
