"""How much of a worker's time one sender may have: a bucket of tokens each, filled at a steady rate.

The bus already bounds what one credential can leave waiting (bus/layout.py). This bounds what is taken up: honest
agents are far below it, and whoever is above it only fills its own bucket's absence.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

SENDERS = 65_536
"""Senders remembered; the one heard from longest ago is forgotten first."""


@dataclass
class _Level:
    tokens: float
    at: float
    refused: int = 0


class Limiter:
    """`burst` messages at once and `rate` a second from each sender."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._levels: OrderedDict[str, _Level] = OrderedDict()

    def take(self, sender: str, now: float) -> bool:
        """Whether one more message of `sender` is taken up at `now` (seconds, any steady clock)."""
        level = self._levels.pop(sender, None) or _Level(float(self._burst), now)
        level.tokens = min(level.tokens + max(now - level.at, 0.0) * self._rate, float(self._burst))
        level.at = now
        self._levels[sender] = level
        while len(self._levels) > SENDERS:
            self._levels.popitem(last=False)
        if level.tokens < 1.0:
            level.refused += 1
            return False
        level.tokens -= 1.0
        return True

    def refused(self, sender: str) -> int:
        """How many were refused since this was last asked."""
        level = self._levels.get(sender)
        if level is None:
            return 0
        count, level.refused = level.refused, 0
        return count
