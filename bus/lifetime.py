"""A process's lifetime: until its work ends, or a signal stops it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import structlog


def until_told(work: Coroutine[Any, Any, None], reload: Callable[[], None] | None = None) -> None:
    """Run a server until it ends, or SIGTERM or SIGINT shuts it down cleanly. SIGHUP calls `reload`."""

    async def guarded() -> None:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()
        if reload is not None:
            loop.add_signal_handler(signal.SIGHUP, reload)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            structlog.get_logger(__name__).info("stopped")

    asyncio.run(guarded())
