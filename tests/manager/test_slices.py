"""Long work in slices: who has the next one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator

import pytest

from attestgate.manager.local.slices import IN_PLACE, Slices, aside


def work(name: str, slices: int, done: list[str]) -> Generator[None, None, str]:
    """So many slices, each of which is noted."""
    for _ in range(slices - 1):
        done.append(name)
        yield
    done.append(name)
    return name.upper()


async def test_each_has_a_slice_in_its_turn_and_the_short_one_ends_first() -> None:
    slices, done = Slices(), list[str]()
    long = asyncio.create_task(slices.finish(work("a", 6, done)))
    assert await slices.finish(work("b", 2, done)) == "B"
    assert not long.done()
    assert await long == "A"
    assert "".join(done) in ("ababaaaa", "babaaaaa")


async def test_the_loop_has_a_turn_between_two_slices_however_many_there_are() -> None:
    slices, done = Slices(), list[str]()
    tasks = [asyncio.create_task(slices.finish(work(name, 10, done))) for name in "abcd"]
    before = 0
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        assert len(done) - before <= 1
        before = len(done)
    assert sorted(await asyncio.gather(*tasks)) == ["A", "B", "C", "D"]


async def test_work_that_fails_or_is_given_up_lets_the_next_one_go_on() -> None:
    slices, done, closed = Slices(), list[str](), asyncio.Event()

    def fails() -> Generator[None, None, str]:
        yield
        raise ValueError("no")

    def given_up() -> Generator[None, None, str]:
        try:
            while True:
                yield
        finally:
            closed.set()

    endless = asyncio.create_task(slices.finish(given_up()))
    with pytest.raises(ValueError, match="no"):
        await slices.finish(fails())
    endless.cancel()
    with pytest.raises(asyncio.CancelledError):
        await endless
    assert closed.is_set()
    assert await slices.finish(work("a", 3, done)) == "A"


async def test_what_is_long_is_hashed_in_a_thread_and_what_is_short_in_place() -> None:
    here = threading.get_ident()
    assert await aside(IN_PLACE, threading.get_ident) == here
    assert await aside(IN_PLACE + 1, threading.get_ident) != here


async def test_what_fails_in_a_thread_fails_here() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        await aside(IN_PLACE + 1, int, "x")
