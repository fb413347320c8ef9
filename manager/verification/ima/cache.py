"""The fleet's cache: entries judged good under one policy, so that no other host and no recheck judges them again.

Keyed by an entry's bytes as the kernel wrote them, so that a hit is the very same entry. The byte order need not be in
the key: a template name's length of 1 to 255 is one in a single byte order only. Bounded: only long entries are left
out, and the oldest go first. It belongs to one loaded policy and goes with it.
"""

from __future__ import annotations

from threading import Lock

MAX_KEPT = 1024
"""Longest entry kept, in bytes: a file's is about 150, one with a signature 700."""

TRIM_EVERY = 16_384
"""Entries after which a reader trims what it added: a list longer than all of the memory is not held whole."""


class VerdictCache:
    """What entries extend PCR 10 of one bank with: those known good in `known`, those excluded by it in `excluded`.

    Lists are judged in several threads at once. Looking up and adding are single operations on a dictionary; each
    reader trims what it adds.
    """

    __slots__ = ("_limit", "_lock", "excluded", "known")

    def __init__(self, limit: int = 65_536) -> None:
        self.known: dict[bytes, bytes] = {}
        self.excluded: dict[bytes, bytes] = {}
        self._limit = limit
        self._lock = Lock()

    def trim(self) -> None:
        """Evict the oldest entries where there are too many."""
        with self._lock:
            for kept in (self.known, self.excluded):
                surplus = len(kept) - self._limit
                if surplus > 0:
                    # some more than need be, so that a full memory is not shifted by one again and again
                    for frame in list(kept)[: surplus + self._limit // 8]:
                        del kept[frame]

    def __len__(self) -> int:
        return len(self.known) + len(self.excluded)
