"""A breadth-first search over all that may happen: the first fault that it finds has the fewest steps before it."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

S = TypeVar("S", bound=Hashable)


class World(Protocol[S]):
    """What may happen from a state, and what must hold in each."""

    def start(self) -> S:
        """The state in which it begins."""

    def steps(self, state: S) -> Iterable[tuple[str, S]]:
        """Everything that may happen next, in words, and the state after it."""

    def key(self, state: S) -> Hashable:
        """What a state has in common with those that are like it but for the names of its parts."""

    def fault(self, state: S) -> str | None:
        """What does not hold in a state; None where all does."""


@dataclass(frozen=True)
class Explored:
    """How many states were looked at, whether that was all of them, and the shortest way to a fault, if there is."""

    states: int
    whole: bool
    fault: str | None = None
    trace: tuple[str, ...] = ()

    def told(self) -> str:
        """The fault and the way to it, a step a line."""
        return "\n".join([self.fault or "no fault", *self.trace])


def explore(world: World[S], most: int) -> Explored:
    """Look at the states nearest to the start, `most` of them at most, until one has a fault."""
    start = world.start()
    met = {world.key(start)}
    came: dict[S, tuple[S, str] | None] = {start: None}
    waiting = deque([start])
    while waiting:
        state = waiting.popleft()
        if (fault := world.fault(state)) is not None:
            return Explored(len(came), False, fault, _trace(came, state))
        if len(came) >= most:
            continue  # no room for more: what was reached already is still looked at
        for label, after in world.steps(state):
            if (key := world.key(after)) not in met:
                met.add(key)
                came[after] = (state, label)
                waiting.append(after)
    return Explored(len(came), len(came) < most)


def _trace(came: dict[S, tuple[S, str] | None], state: S) -> tuple[str, ...]:
    steps: list[str] = []
    while (before := came[state]) is not None:
        state, label = before
        steps.append(label)
    return tuple(reversed(steps))
