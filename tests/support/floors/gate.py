"""Gateways with their real rules, as values: what a gateway holds after something has come to it.

A gateway that has come to the same by another way is the same one, so each change is worked out once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import NamedTuple

from pydantic import BaseModel

from attestgate.manager.gateway.floors import AnyLease, BelowFloor, Floors, Revocation
from attestgate.manager.gateway.lease_table import LeaseTable
from attestgate.schemas.admission import Statement, Tenure, Withdrawal
from attestgate.schemas.base import Refusal, pack

LEASE_S = 60
"""The longest lease, and what the managers give."""


class Clock:
    """A gateway's clock, which is right."""

    def __init__(self, at: int) -> None:
        self.at = at

    def steady(self) -> float:
        """The same, as the monotonic clock has it."""
        return float(self.at)


class Gate:
    """One gateway: its floors, its leases, and what nginx is told by them."""

    def __init__(self, floors: Floors, at: int) -> None:
        self._clock = Clock(at)
        self._leases = LeaseTable("sdn", longest_lease_s=LEASE_S, steady=self._clock.steady)
        self.floors = floors

    def take(self, statement: Statement, value: bytes) -> BelowFloor | None:
        """A statement of the bucket. Returns the refusal that is told to the managers."""
        at, steady = self._clock.at, self._clock.steady()
        with suppress(Refusal):
            if isinstance(statement, Withdrawal):
                self.floors.take(statement, value, at, steady)
                self._leases.take(statement, at)
                return None
            try:
                self.floors.check(statement, at, steady)
            except BelowFloor as refusal:
                return refusal
            if self._leases.take(statement, at):
                self.floors.take(statement, value, at, steady)
        return None

    def admitted(self) -> list[AnyLease]:
        """The leases that nginx holds."""
        return [
            statement
            for key, statement in self._leases.items()
            if not isinstance(statement, Withdrawal)
            and self._leases.entry(key, self._clock.at) is not None
            and self.floors.stands(statement)
        ]

    def pass_time(self, seconds: int) -> None:
        """Tombstones are forgotten, and leases run out."""
        self._clock.at += seconds
        self._leases.forget(self._clock.at)

    def restart(self, make: Callable[[Floors, float], Floors]) -> None:
        """Only its floors are left."""
        self.__init__(make(self.floors, self._clock.steady()), self._clock.at)  # type: ignore[misc]


class Change(NamedTuple):
    """A gateway after something has come to it; `taught` is the floor that its report encloses, if it refused."""

    gate: int
    taught: Statement | Revocation | None


class Gates:
    """All states of gateways that were met, by number. `operators` of a gateway are those of its settings."""

    def __init__(self, kind: type[Floors], operators: frozenset[bytes], at: int) -> None:
        self._kind = kind
        self._numbers: dict[Hashable, int] = {}
        self._gates: list[Gate] = []
        self._after: dict[tuple[int, Hashable], Change] = {}
        self._admitted: dict[int, tuple[AnyLease, ...]] = {}
        self._said: dict[bytes, Statement | Revocation] = {}
        self.new = self._number(Gate(kind(operators=operators, longest_lease_s=LEASE_S), at))

    def admitted(self, gate: int) -> tuple[AnyLease, ...]:
        """What nginx holds there."""
        if gate not in self._admitted:
            self._admitted[gate] = tuple(self._gates[gate].admitted())
        return self._admitted[gate]

    def take(self, gate: int, statement: Statement) -> Change:
        """A signed statement comes to a gateway."""
        value = pack(statement)
        self._said[value] = statement

        def change(one: Gate) -> bytes | None:
            refusal = one.take(statement, value)
            return None if refusal is None else refusal.source.value

        return self._change(gate, value, change)

    def revoke(self, gate: int, revocation: Revocation) -> Change:
        """An operator's Revoke comes to a gateway, by whichever way."""
        self._said[revocation.source.value] = revocation
        return self._change(gate, revocation.source.value, lambda one: _nothing(one.floors.take_revocation(revocation)))

    def pass_time(self, gate: int, seconds: int) -> int:
        """Time passes there."""
        return self._change(gate, ("time", seconds), lambda one: one.pass_time(seconds)).gate

    def restart(self, gate: int, operators: frozenset[bytes]) -> int:
        """It starts again from its disk, with these operators in its settings."""

        def reread(floors: Floors, steady: float) -> Floors:
            return self._kind(
                floors.rows(),
                operators=operators,
                longest_lease_s=LEASE_S,
                counter=floors.counter,
                steady=steady,
            )

        return self._change(gate, ("restart", operators), lambda one: one.restart(reread)).gate

    def _change(self, gate: int, name: Hashable, change: Callable[[Gate], bytes | None]) -> Change:
        if (gate, name) not in self._after:
            after = copy.deepcopy(self._gates[gate])
            enclosed = change(after)
            taught = None if enclosed is None else self._said[enclosed]
            self._after[gate, name] = Change(self._number(after), taught)
        return self._after[gate, name]

    def _number(self, gate: Gate) -> int:
        number = self._numbers.setdefault(frozen(gate), len(self._gates))
        if number == len(self._gates):
            self._gates.append(gate)
        return number


def _nothing(_: object) -> None:
    return None


def tenure_of(statement: Statement) -> Tenure | None:
    """The session that a statement is about, at its place."""
    return statement.ends if isinstance(statement, Withdrawal) else statement.tenure


def frozen(value: object) -> Hashable:
    """All that an object holds, to tell whether two are the same."""
    if isinstance(value, dict):
        return frozenset((key, frozen(one)) for key, one in value.items())
    if isinstance(value, set | frozenset):
        return frozenset(frozen(one) for one in value)
    if isinstance(value, list | tuple):
        return tuple(frozen(one) for one in value)
    if isinstance(value, BaseModel):
        return type(value), frozen(vars(value))
    if hasattr(value, "__dict__") and not callable(value):
        return type(value), frozen(vars(value))
    return value if isinstance(value, Hashable) and not callable(value) else None
