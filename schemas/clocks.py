"""When a time that grants something lies too far ahead: one rule, for everything that is looked at by the wall clock.

A lease, a record, a break-glass file or a cached document counts from when it was issued. If the clock that it was
issued by was ahead and is right again (or the clock here was set back), it would count for as much longer as the
difference. So what was issued in the future is stale now, wherever it is looked at. What takes away (a withdrawal, a
revocation, a high-water mark) never is.
"""

from __future__ import annotations

SKEW_S = 5
"""Allowance between two clocks, in seconds, where no setting names one."""


def stale(at: float, now: float, skew_s: float = SKEW_S, *, span_s: float = 0) -> bool:
    """Whether a time lies further ahead of `now` than its span allows: 0 for a time of issue, and for an end the
    longest time from issue to end. Unix seconds."""
    return at > now + span_s + skew_s
