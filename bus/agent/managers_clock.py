"""The manager's clock as an agent knows it: from what the manager said last, counted on by the monotonic clock.

An agent compares times of the manager's only, so its own wall clock does not matter, whoever sets it. While the machine
is suspended the monotonic clock stands still: an agent that wakes up takes its lease to last on, asks its manager after
its usual silence, and hears that the session has ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class ManagersClock:
    """The manager's clock, behind by as long as its last challenge was on its way."""

    def __init__(self, issued_at: int, steady: Callable[[], float] = time.monotonic) -> None:
        self._steady = steady
        self.heard(issued_at)

    def heard(self, issued_at: int) -> None:
        """The manager has issued something just now, at this Unix second of its own."""
        self._ahead_s = issued_at - self._steady()

    def __call__(self) -> float:
        """Unix seconds."""
        return self._steady() + self._ahead_s
