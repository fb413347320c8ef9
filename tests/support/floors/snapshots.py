"""Copies of objects, and whether two are the same, for a search that looks at tens of thousands of them.

What never changes (models, frozen dataclasses) is shared by copies, and looked into once.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable
from typing import TypeVar

from pydantic import BaseModel

T = TypeVar("T")


def copied(value: T, shared: object) -> T:
    """A copy with all that may change; `shared` and what never changes is the same in both."""
    return _copied(value, {id(shared): shared})


def _copied(value: T, memo: dict[int, object]) -> T:
    if id(value) in memo:
        return memo[id(value)]  # type: ignore[return-value]  # what was made of this very value
    if _never_changes(value):
        return value
    new = memo[id(value)] = copy.copy(value)
    if isinstance(new, dict):
        new.update({key: _copied(one, memo) for key, one in new.items()})
    elif isinstance(new, list):
        new[:] = [_copied(one, memo) for one in new]
    elif hasattr(new, "__dict__"):
        vars(new).update(_copied(vars(new), memo))
    return new


def _never_changes(value: object) -> bool:
    frozen = getattr(type(value), "__dataclass_params__", None)
    return isinstance(value, BaseModel) or callable(value) or (frozen is not None and frozen.frozen)


class Identities:
    """Equal for two objects if all that they hold is equal; `shared` is left out."""

    def __init__(self, shared: object) -> None:
        self._shared = shared
        self._seen: dict[int, tuple[object, int]] = {}
        """By address, with the object, so that no other comes to have it."""
        self._numbers: dict[Hashable, int] = {}

    def of(self, value: object) -> Hashable:
        """What tells an object from others."""
        if value is self._shared or callable(value):
            return None
        if isinstance(value, dict):
            return frozenset((key, self.of(one)) for key, one in value.items())
        if isinstance(value, list | tuple):
            return tuple(self.of(one) for one in value)
        if isinstance(value, set | frozenset):
            return frozenset(self.of(one) for one in value)
        if not hasattr(value, "__dict__"):
            return value if isinstance(value, Hashable) else None
        if not _never_changes(value):
            return type(value), self.of(vars(value))
        if id(value) not in self._seen:
            parts = type(value), self.of(vars(value))
            self._seen[id(value)] = value, self._numbers.setdefault(parts, len(self._numbers))
        return self._seen[id(value)][1]
