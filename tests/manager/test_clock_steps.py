"""Steps of the wall clock, against the monotonic one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestgate.manager.local.clock_steps import STEP_S, ClockSteps
from attestgate.schemas.clocks import SKEW_S, stale
from tests.support.manager.wire import Clock
from tests.support.threats import rows, threat

MEMORY_S = 60


def watched() -> tuple[Clock, ClockSteps]:
    clock = Clock()
    return clock, ClockSteps(clock, clock.steady, MEMORY_S)


@threat(rows.CLOCK_SET)
@pytest.mark.parametrize("by_s", [STEP_S, -STEP_S, 4, -4, 3600, -3600, 10 * 365 * 86_400])
def test_a_step_is_noticed_once(by_s: float) -> None:
    clock, steps = watched()
    assert steps.look() == 0
    clock.set_by(by_s)
    assert steps.look() == by_s
    assert steps.look() == 0


def test_time_that_passes_is_no_step() -> None:
    clock, steps = watched()
    for seconds in (0.5, 1, 3600, 86_400):
        clock.at += seconds
        assert steps.look() == 0


def test_small_steps_add_up() -> None:
    clock, steps = watched()
    for _ in range(3):
        clock.set_by(0.4)
    assert steps.look() == pytest.approx(1.2)


def test_a_step_that_forgetting_came_upon_is_told_all_the_same() -> None:
    clock, steps = watched()
    clock.set_by(30)
    steps.passed()
    assert steps.look() == 30


def test_a_clock_ahead_makes_nobody_forget_until_that_time_has_passed() -> None:
    clock, steps = watched()
    begun = clock()
    clock.set_by(3600)
    assert steps.passed() == begun
    clock.at += MEMORY_S - 1
    assert steps.passed() == begun + MEMORY_S - 1
    clock.at += 1
    assert steps.passed() == clock() == begun + MEMORY_S + 3600


def test_a_clock_that_was_ahead_and_is_right_again_is_followed_at_once() -> None:
    clock, steps = watched()
    clock.set_by(3600)
    steps.look()
    clock.set_by(-3600)
    assert steps.passed() == clock()


def test_a_clock_that_was_set_back_and_ahead_again_is_followed_once_that_time_has_passed() -> None:
    """Nobody knows which of the two was right: behind it may have been."""
    clock, steps = watched()
    begun = clock()
    clock.set_by(-3600)
    steps.look()
    clock.set_by(3600)
    assert steps.passed() == begun - 3600
    clock.at += MEMORY_S
    assert steps.passed() == clock()


def test_a_clock_that_is_set_ahead_again_and_again_makes_nobody_forget() -> None:
    """For longer than one memory in all: the step back does not stand for the step ahead that comes after it."""
    clock, steps = watched()
    clock.set_by(3600)
    steps.look()
    clock.at += MEMORY_S - 10
    clock.set_by(-3600)
    steps.look()
    clock.at += 20
    right = clock()
    clock.set_by(3600)
    assert steps.passed() == right


@threat(rows.CLOCK_SET)
@given(moves=st.lists(st.tuples(st.integers(-4000, 4000), st.integers(0, 100)), max_size=20))
def test_nothing_is_forgotten_before_its_time_by_any_clock_within_memory(moves: list[tuple[int, int]]) -> None:
    clock, steps = watched()
    ahead, held = 0, [(0, -MEMORY_S)]
    """How far the wall clock was ahead, since which second of the monotonic clock."""
    start, now = clock(), 0
    for by_s, seconds in moves:
        clock.set_by(by_s)
        if by_s:
            ahead += by_s
            held.append((ahead, now))
        steps.look()
        clock.at += seconds
        now += seconds
        ends = [since for _, since in held[1:]] + [now + 1]
        within = [one for (one, _), end in zip(held, ends, strict=True) if end > now - MEMORY_S]
        assert steps.passed() == start + now + min(within)


def test_what_is_stale() -> None:
    assert not stale(100, 100) and not stale(100, 100 - SKEW_S) and not stale(100, 10_000)
    assert stale(100, 100 - SKEW_S - 1)
    assert not stale(160, 100, 5, span_s=60) and not stale(165, 100, 5, span_s=60)
    assert stale(166, 100, 5, span_s=60)
