"""A gateway's floors as it knows them, and as far as they are on its disk.

What is known refuses and cuts at once. What admits waits for the disk: a lease counts only once the floors that it
raises are written, or a worker that is killed could come back and know less than it has acted on. No I/O: the rows to
write are handed out (`unwritten`), and `wrote` says that they are on disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable

from attestgate.manager.gateway.floors import AnyLease, Floors, Revocation, Row
from attestgate.schemas.admission import Statement, Withdrawal


class KeptFloors:
    """`known` is all that was taken; `written` is the part that is on disk. `operators`: whose Revokes count."""

    def __init__(
        self, *, operators: Collection[bytes], longest_lease_s: int, steady: Callable[[], float] = time.monotonic
    ) -> None:
        self._steady = steady
        self.known = Floors(operators=operators, longest_lease_s=longest_lease_s)
        self.written = Floors(operators=operators, longest_lease_s=longest_lease_s)
        self._unwritten: dict[str, Row] = {}

    def load(self, rows: Iterable[Row], counter: int) -> None:
        """Begin with what is on disk."""
        held, now = list(rows), self._steady()
        self.known.put(held, now)
        self.wrote(held, counter)

    def check(self, lease: AnyLease, at: int) -> None:
        """Raises BelowFloor for a lease that may not be taken at Unix second `at`."""
        self.known.check(lease, at, self._steady())

    def take(self, statement: Statement, value: bytes, at: int) -> list[Row]:
        """Raise the floors to a lease that has passed `check`, or to a withdrawal. Returns the rows that changed."""
        return self._to_write(self.known.take(statement, value, at, self._steady()))

    def take_revocation(self, revocation: Revocation) -> list[Row]:
        """Take an operator's Revoke. Returns the rows that changed."""
        return self._to_write(self.known.take_revocation(revocation))

    def _to_write(self, rows: list[Row]) -> list[Row]:
        self._unwritten |= {row.name: row for row in rows}
        return rows

    def unwritten(self) -> list[Row]:
        """The rows that are not on disk as they are known."""
        return list(self._unwritten.values())

    def wrote(self, rows: Iterable[Row], counter: int) -> None:
        """These rows are on disk, which has seen `counter` changes by now."""
        for row in rows:
            self.written.put([row])
            if self._unwritten.get(row.name) is row:
                del self._unwritten[row.name]
        self.written.counter = counter

    def policy_until(self, version: int) -> int | None:
        """When a lease with this policy version ends, in Unix seconds, whatever it says itself; None if at no time."""
        return self.known.policy_until(version, self._steady())

    def settled(self, statement: Statement) -> bool:
        """Whether all that is known about a statement is on disk: what it raises, and what cuts it."""
        if not self.written.cover(statement):
            return False
        return isinstance(statement, Withdrawal) or self.known.stands(statement) == self.written.stands(statement)

    def revoked(self, subject: str) -> bool:
        """Whether a Revoke of `host.<id>` or `app.<id>` is in force; a newer enrolment ends it once that is on disk."""
        return bool(self.known.in_force(subject) or self.written.in_force(subject))
