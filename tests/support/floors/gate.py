"""Gateways with their real rules, as values: what a gateway holds after something has come to it.

A gateway that has come to the same by another way is the same one, so each change is worked out once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

from attestgate.manager.gateway.floors import AnyLease, BelowFloor, Floors, Revocation, Row
from attestgate.manager.gateway.kept_floors import KeptFloors
from attestgate.manager.gateway.lease_table import LeaseTable
from attestgate.schemas.admission import Statement, Tenure, Withdrawal
from attestgate.schemas.base import Refusal, pack
from tests.support.floors.snapshots import Identities, copied

LEASE_S = 60
"""The longest lease, and what the managers give."""


class Clock:
    """The gateways' clock, which is right: it shows the time of the gateway that is being looked at."""

    at = 0

    def steady(self) -> float:
        """The same, as the monotonic clock has it."""
        return float(self.at)


class Gate:
    """One gateway: its floors, as it knows them and as far as they are on disk, and its leases."""

    def __init__(
        self, kind: type[Floors], operators: frozenset[bytes], clock: Clock, at: int, rows: Iterable[Row] = ()
    ) -> None:
        self.at = clock.at = at
        self._clock = clock
        steady = clock.steady
        self._kept = KeptFloors(operators=operators, longest_lease_s=LEASE_S, steady=steady)
        self._kept.known = kind(operators=operators, longest_lease_s=LEASE_S)
        self._kept.written = kind(operators=operators, longest_lease_s=LEASE_S)
        self._kept.load(rows, 0)
        self._leases = LeaseTable("sdn", floors=self._kept, longest_lease_s=LEASE_S, steady=steady)
        self._renewed: dict[str, list[AnyLease]] = {}
        """Leases that were renewed since the disk was last written: they may still be what counts."""

    def take(self, statement: Statement, value: bytes) -> BelowFloor | None:
        """A statement of the bucket. Returns the refusal that is told to the managers."""
        held = self._leases.get(statement.key)
        try:
            self._leases.take(statement, value, self.at)
        except BelowFloor as refusal:
            return refusal
        except Refusal:
            return None  # for another reason than a floor
        if held is not None and not isinstance(held, Withdrawal) and held != statement:
            self._renewed.setdefault(held.key, []).append(held)
        return None

    def revoke(self, revocation: Revocation) -> None:
        """An operator's Revoke."""
        self._kept.take_revocation(revocation)

    def held(self) -> list[AnyLease]:
        """The leases that it has taken, and nothing taken since has cut."""
        leases = (statement for statement in self._leases.values() if not isinstance(statement, Withdrawal))
        return [lease for lease in leases if self._leases.fault(lease.key) is None]

    def admitted(self) -> list[AnyLease]:
        """The leases by which nginx holds its entries."""
        found = []
        for key, held in self._leases.items():
            entry = self._leases.entry(key, self.at)
            if entry is not None and not isinstance(held, Withdrawal):
                renewed = self._renewed.get(key, ())
                found.append(next(one for one in (held, *renewed) if one.sequence == entry.sequence))
        return found

    def write(self) -> None:
        """All that it knows is on disk."""
        self._kept.wrote(self._kept.unwritten(), 0)
        self._renewed.clear()

    def pass_time(self, seconds: int) -> None:
        """Tombstones are forgotten, and leases run out."""
        self.at = self._clock.at = self.at + seconds
        self._leases.forget(self.at)

    def rows(self) -> list[Row]:
        """What is on its disk."""
        return list(self._kept.written.rows())

    def restarted(self, kind: type[Floors], operators: frozenset[bytes], imported: Iterable[Row] = ()) -> Gate:
        """Only what is on its disk is left, and what was imported there meanwhile."""
        floors = kind(self.rows(), operators=operators, longest_lease_s=LEASE_S)
        floors.merge(imported)
        return Gate(kind, operators, self._clock, self.at, floors.rows())


class Change(NamedTuple):
    """A gateway after something has come to it; `taught` is the floor that its report encloses, if it refused."""

    gate: int
    taught: Statement | Revocation | None


class Gates:
    """All states of gateways that were met, by number. `operators` of a gateway are those of its settings."""

    def __init__(self, kind: type[Floors], operators: frozenset[bytes], at: int) -> None:
        self._kind = kind
        self._clock = Clock()
        self._identities = Identities(self._clock)
        self._numbers: dict[Hashable, int] = {}
        self._gates: list[Gate] = []
        self._after: dict[tuple[int, Hashable], Change] = {}
        self._admitted: dict[int, tuple[AnyLease, ...]] = {}
        self._held: dict[int, tuple[AnyLease, ...]] = {}
        self._said: dict[bytes, Statement | Revocation] = {}
        self.new = self._number(Gate(kind, operators, self._clock, at))

    def admitted(self, gate: int) -> tuple[AnyLease, ...]:
        """The leases by which nginx holds its entries there."""
        if gate not in self._admitted:
            self._admitted[gate] = tuple(self._at(gate).admitted())
        return self._admitted[gate]

    def held(self, gate: int) -> tuple[AnyLease, ...]:
        """The leases that it has taken, and nothing taken since has cut."""
        if gate not in self._held:
            self._held[gate] = tuple(self._at(gate).held())
        return self._held[gate]

    def take(self, gate: int, statement: Statement) -> Change:
        """A signed statement comes to a gateway."""
        value = pack(statement)
        self._said[value] = statement

        def change(one: Gate) -> tuple[Gate, bytes | None]:
            refusal = one.take(statement, value)
            return one, None if refusal is None else refusal.source.value

        return self._change(gate, value, change)

    def revoke(self, gate: int, revocation: Revocation) -> int:
        """An operator's Revoke comes to a gateway, by whichever way."""
        self._said[revocation.source.value] = revocation
        return self._only(gate, revocation.source.value, lambda one: one.revoke(revocation))

    def write(self, gate: int) -> int:
        """Its floors are on its disk."""
        return self._only(gate, "write", Gate.write)

    def pass_time(self, gate: int, seconds: int) -> int:
        """Time passes there."""
        return self._only(gate, ("time", seconds), lambda one: one.pass_time(seconds))

    def restart(self, gate: int, operators: frozenset[bytes], imports: int | None = None) -> int:
        """It starts again from its disk, with these operators in its settings, and the floors of another imported."""
        rows = [] if imports is None else self._gates[imports].rows()
        return self._change(
            gate,
            ("restart", operators, imports),
            lambda one: (one.restarted(self._kind, operators, rows), None),
        ).gate

    def _only(self, gate: int, name: Hashable, change: Callable[[Gate], None]) -> int:
        def changed(one: Gate) -> tuple[Gate, None]:
            change(one)
            return one, None

        return self._change(gate, name, changed).gate

    def _change(self, gate: int, name: Hashable, change: Callable[[Gate], tuple[Gate, bytes | None]]) -> Change:
        if (gate, name) not in self._after:
            after, enclosed = change(copied(self._at(gate), self._clock))
            taught = None if enclosed is None else self._said[enclosed]
            self._after[gate, name] = Change(self._number(after), taught)
        return self._after[gate, name]

    def _at(self, gate: int) -> Gate:
        one = self._gates[gate]
        self._clock.at = one.at
        return one

    def _number(self, gate: Gate) -> int:
        number = self._numbers.setdefault(self._identities.of(gate), len(self._gates))
        if number == len(self._gates):
            self._gates.append(gate)
        return number


def tenure_of(statement: Statement) -> Tenure | None:
    """The session that a statement is about, at its place."""
    return statement.ends if isinstance(statement, Withdrawal) else statement.tenure
