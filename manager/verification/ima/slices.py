"""Work in slices, where nobody waits for a turn in between."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")


def finish(work: Generator[None, None, T]) -> T:
    """Do work that yields after each slice in one go, and return its result. Raises what it raises."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            result: T = done.value
            return result
