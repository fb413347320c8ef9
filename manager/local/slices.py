"""Long work on the event loop, in slices: whatever else the loop has to do has its turn after each.

A thread would not do for Python code: the interpreter runs one at a time, and a thread that computes keeps the loop's
waiting for milliseconds whenever the loop has something to do. Work is a generator that yields where it can be
interrupted. One slice is run in a turn of the loop, however many pieces of work are in progress, and each has the next
in order: a short piece of work is done after a few slices of the long ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import closing
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
IN_PLACE = 128 * 1024
"""Fewer bytes are hashed in less time than a thread takes to start: half a millisecond."""


class Slices:
    """The pieces of work of one event loop."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def finish(self, work: Generator[None, None, T]) -> T:
        """Do the work, and return its result. Raises what it raises."""
        with closing(work):
            while True:
                async with self._turn:  # first come, first served, so each has one slice in its turn
                    try:
                        next(work)
                    except StopIteration as done:
                        result: T = done.value
                        await asyncio.sleep(0)  # what follows is in a turn of its own
                        return result
                    await asyncio.sleep(0)


async def aside(size: int, call: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """A call whose time goes to hashing or deciphering `size` bytes: in a thread, where they are many.

    That is C code, which lets the loop go on beside it, but for a few ms while it copies or deciphers 8 MiB.
    """
    if size <= IN_PLACE:
        return call(*given, **named)
    return await asyncio.to_thread(call, *given, **named)
