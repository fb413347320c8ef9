"""Long work on the event loop, in slices: whatever else the loop has to do has its turn after each.

A thread would not do: the interpreter runs one at a time, and a thread that computes keeps the loop's waiting for
milliseconds whenever the loop has something to do. Work is a generator that yields where it can be interrupted. One
slice is run in a turn of the loop, however many pieces of work are in progress, and each has the next in order: a
short piece of work is done after a few slices of the long ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import closing
from typing import TypeVar

T = TypeVar("T")


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
                        return result
                    await asyncio.sleep(0)
