"""An event loop that runs until nothing is left to do but wait, and does alike each time: for tests that take turns."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
Ready = list[tuple[selectors.SelectorKey, int]]


class QuietLoop(asyncio.SelectorEventLoop):
    """What is handed to threads is done at once, so no run depends on which of two is faster."""

    def __init__(self) -> None:
        super().__init__(_Selector(self.stop))
        self.set_default_executor(_AtOnce())

    def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Run until everything waits; the result of `work`, which must have ended by then."""
        task = self.create_task(work)
        self.run_forever()
        if not task.done():
            stack = task.get_stack()
            task.cancel()
            self.run_forever()
            raise AssertionError(f"it waits for what does not come: {stack[-1]}")
        return task.result()


class _Selector(selectors.DefaultSelector):
    """A loop that would sleep is idle."""

    def __init__(self, idle: Callable[[], None]) -> None:
        super().__init__()
        self._idle = idle

    def select(self, timeout: float | None = None) -> Ready:
        ready = super().select(0)
        if not ready and (timeout is None or timeout > 0):
            self._idle()
        return ready


class _AtOnce(ThreadPoolExecutor):
    """Calls in place of threads."""

    def submit(self, call: Callable[..., T], /, *arguments: Any, **named: Any) -> Future[T]:
        done: Future[T] = Future()
        try:
            done.set_result(call(*arguments, **named))
        except Exception as error:  # noqa: BLE001  it is handed on, as a thread would
            done.set_exception(error)
        return done
