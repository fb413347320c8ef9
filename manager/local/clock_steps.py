"""Steps of the wall clock, seen against the monotonic one.

CLOCK_MONOTONIC is slewed as the wall clock is, but never set, and stands still while the machine is suspended. The two
are apart by a constant, until somebody sets the wall clock, or the machine wakes up.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

STEP_S = 1.0
"""The least difference that is a step: far above the noise of reading two clocks one after the other."""
LOOK_S = 1.0
"""How often to look for a step."""


class ClockSteps:
    """Notices steps of `wall`. `memory_s`: how long what is remembered must outlast a step forward."""

    def __init__(
        self, wall: Callable[[], float], steady: Callable[[], float] = time.monotonic, memory_s: float = 0
    ) -> None:
        self._wall = wall
        self._steady = steady
        self._memory_s = memory_s
        self._apart = wall() - steady()
        self._untold = 0.0
        self._before: deque[tuple[float, float]] = deque()
        """How far the two were apart before each step within `memory_s`, with the monotonic time of the step: the least
        first. One that came before a lesser one decides nothing any more."""

    def look(self) -> float:
        """By how many seconds the wall clock was set since the last look: above 0 ahead, below 0 back, 0 if not."""
        self._compare()
        step, self._untold = self._untold, 0.0
        return step

    def passed(self) -> float:
        """The wall clock, as whatever forgets has to see it: it follows a step forward `memory_s` later.

        So a clock that is ahead for a moment makes nobody forget, however often it is set there and back: the least
        that it has been ahead within `memory_s` counts.
        """
        self._compare()
        while self._before and self._before[0][0] + self._memory_s <= self._steady():
            self._before.popleft()
        ahead_s = self._apart - self._before[0][1] if self._before else 0.0
        return self._wall() - max(ahead_s, 0.0)

    def _compare(self) -> None:
        steady = self._steady()
        apart = self._wall() - steady
        step = apart - self._apart
        if abs(step) >= STEP_S:
            while self._before and self._before[-1][1] >= self._apart:
                self._before.pop()
            self._before.append((steady, self._apart))
            self._apart = apart
            self._untold += step
