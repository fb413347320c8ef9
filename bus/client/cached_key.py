"""A value of a bucket that is asked for far more often than it changes: read once, and again when it may have changed.

What was read stands until the bucket's watch tells of a change, and never longer than `KEPT_S`. So a watch that is
behind, cut off or held back by the bus costs at most that, and a bus that does not answer is noticed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from attestgate.bus.api import Bucket, BusError, Entry

log = structlog.get_logger(__name__)
KEPT_S = 1.0
RETRY_S = 1.0


class CachedKey:
    """Reads one key. `clock` is in seconds, and never goes back."""

    def __init__(self, bucket: Bucket, key: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._bucket = bucket
        self._key = key
        self._clock = clock
        self._asked_at = float("-inf")
        self._entry: Entry | None = None
        self._changes = 0

    async def get(self) -> Entry | None:
        """The value as it stood at most `KEPT_S` ago, or None if there was none. Raises BusError."""
        now, changes = self._clock(), self._changes
        if now - self._asked_at < KEPT_S:
            return self._entry
        entry = await self._bucket.get(self._key)
        if changes == self._changes:  # else it may have been read before the change that was told meanwhile
            self._asked_at, self._entry = now, entry
        return entry

    async def follow(self) -> None:
        """Hear of changes, for ever."""
        while True:
            try:
                async for entry in self._bucket.watch(self._key):
                    if entry is not None:
                        self._changes += 1
                        self._asked_at = float("-inf")
            except BusError as error:
                log.warning("a value is not followed", key=self._key, error=str(error))
            await asyncio.sleep(RETRY_S)
