"""The rank of a session at its place: given once, when its record is made, above every rank known there.

So every state of a record that the bus can show has the same rank, and a session that has ended never gets another: one
that would become current below what is known of its place by then ends instead.
"""

from __future__ import annotations


def next_rank(now_us: int, known: int) -> int:
    """The rank of a session that is opened at Unix microsecond `now_us`, where `known` is the highest of its place."""
    # `known` alone is what the bus shows. A counter on the bus would be no better: set back, it gives an honest session
    # a rank that gateways have passed.
    return max(now_us, known + 1)
