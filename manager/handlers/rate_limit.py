"""The rate limit of each sender: a token bucket, refilled at a steady rate.

The bus already bounds the messages that one credential can leave waiting (bus/layout.py); this bounds how many a worker
processes. Honest agents are far below it, and a sender above it slows down only itself.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

SENDERS = 65_536
"""Senders remembered, least recently seen forgotten first. A forgotten one starts with a full bucket again."""


@dataclass
class _Level:
    tokens: float
    at: float
    refused: int = 0


class Limiter:
    """Allows each sender `burst` messages at once and `rate` per second."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._levels: OrderedDict[str, _Level] = OrderedDict()

    def take(self, sender: str, now: float) -> bool:
        """Whether one more message of `sender` is accepted at `now` (seconds, any monotonic clock)."""
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
        """How many of its messages were refused since the last call."""
        level = self._levels.get(sender)
        if level is None:
            return 0
        count, level.refused = level.refused, 0
        return count
