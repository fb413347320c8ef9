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
        self._recent: deque[tuple[float, float]] = deque()
        """Monotonic time and size of each step within `memory_s`."""

    def look(self) -> float:
        """By how many seconds the wall clock was set since the last look: above 0 ahead, below 0 back, 0 if not."""
        self._compare()
        step, self._untold = self._untold, 0.0
        return step

    def passed(self) -> float:
        """The wall clock, as whatever forgets has to see it: it follows a step forward `memory_s` later.

        So a clock that is ahead for a moment makes nobody forget.
        """
        self._compare()
        while self._recent and self._recent[0][0] + self._memory_s <= self._steady():
            self._recent.popleft()
        return self._wall() - max(sum(step for _, step in self._recent), 0.0)

    def _compare(self) -> None:
        steady = self._steady()
        apart = self._wall() - steady
        step = apart - self._apart
        if abs(step) >= STEP_S:
            self._apart = apart
            self._untold += step
            self._recent.append((steady, step))
