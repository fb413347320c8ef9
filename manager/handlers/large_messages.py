"""Large messages are few at a time: each takes three times its size in memory while it is decrypted and judged.

Small ones do not wait behind them, and nobody's large messages take the place of another's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from attestgate.manager.sessions.recheck import TooEarly

LARGE = 1024 * 1024
"""Bytes from which on a message is large: evidence with a measurement list of some 15,000 entries."""
AT_ONCE = 2
"""Large messages that a worker handles at the same time."""
AGAIN_S = 5
"""After how long a sender's second one is delivered again: so long that the first is judged before the second has been
delivered too often (`worker.TOO_OFTEN`)."""


class LargeMessages:
    """The large messages that one worker has in hand."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(AT_ONCE)
        self._senders: set[str] = set()

    @asynccontextmanager
    async def room(self, sender: str, size: int) -> AsyncIterator[None]:
        """Room for one message, which is waited for in order. Raises TooEarly while its sender has another in hand."""
        if size < LARGE:
            yield
            return
        if sender in self._senders:
            raise TooEarly(AGAIN_S)
        self._senders.add(sender)
        try:
            async with self._room:
                yield
        finally:
            self._senders.discard(sender)
