"""A cached value of a bucket, for a key that is read far more often than it changes.

What was read is valid until the bucket's watch reports a change, and never longer than `KEPT_S`. So a watch that is
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
    """Caches one key. `clock` is in seconds and monotonic."""

    def __init__(self, bucket: Bucket, key: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._bucket = bucket
        self._key = key
        self._clock = clock
        self._asked_at = float("-inf")
        self._entry: Entry | None = None
        self._changes = 0

    async def get(self) -> Entry | None:
        """The value, at most `KEPT_S` old, or None if there was none. Raises BusError."""
        now, changes = self._clock(), self._changes
        if now - self._asked_at < KEPT_S:
            return self._entry
        entry = await self._bucket.get(self._key)
        if changes == self._changes:  # else it may have been read before a change that the watch reported meanwhile
            self._asked_at, self._entry = now, entry
        return entry

    async def follow(self) -> None:
        """Watch for changes until cancelled."""
        while True:
            try:
                async for entry in self._bucket.watch(self._key):
                    if entry is not None:
                        self._changes += 1
                        self._asked_at = float("-inf")
            except BusError as error:
                log.warning("watch failed", key=self._key, error=str(error))
            await asyncio.sleep(RETRY_S)
