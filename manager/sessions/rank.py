"""The rank of a session at its place: given once, when it becomes current, above every rank known there."""

from __future__ import annotations


def next_rank(now_us: int, known: int) -> int:
    """The rank of a session that becomes current at Unix microsecond `now_us`, where `known` is the highest so far."""
    # The clock alone would do between workers that see one another's pointers late; `known` alone is what a bus shows.
    # A counter on the bus would be neither: set back, it gives an honest session a rank that a gateway has passed.
    return max(now_us, known + 1)
