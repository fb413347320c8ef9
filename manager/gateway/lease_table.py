"""The newest signed statement about each key, and from it what the manager wants nginx to hold under that key.

Rules:
  - A lease counts from its issue to its expiry, but never for more than `longest_lease_s`, nor for longer than it had
    left when it came, by the monotonic clock.
  - A lease that was issued in the future, has expired, or is for another set of gateways is refused. One that is in the
    future because the clock was set back admits nobody (`schemas.clocks.stale`).
  - The sequence of each key rises: an older statement, or a different one with the same number, is refused.
  - A withdrawal is final and beats every sequence. It is remembered until every lease signed before it has expired, so
    that a bus which replays an old lease gains nothing, and for at least `remember_s`, so that it also outlasts any
    break-glass file that it must overrule. Whatever the clock says, it is taken where something is held to withdraw.
  - Beyond that, the floors decide (floors.py): what was superseded, ended or revoked is out at once, and a lease counts
    only once the floors that it raises are on disk. Until then the one that it renews goes on.
No I/O: statements arrive with their signatures verified, and the time is an argument; only spans are the monotonic
clock's.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from attestgate.manager.gateway.entries import CertificateEntry, DictionaryEntry, HostEntry
from attestgate.manager.gateway.floors import PlaceFloor, PolicyFloor, Row
from attestgate.manager.gateway.kept_floors import KeptFloors
from attestgate.schemas.admission import HostLease, Lease, Statement, Withdrawal
from attestgate.schemas.base import Refusal
from attestgate.schemas.clocks import SKEW_S, stale


@dataclass(frozen=True)
class _Record:
    statement: Statement
    ends: int
    """When the lease ends at this gateway; for a withdrawal, when it is forgotten."""
    forget_at: int
    """From here on no statement about this key that was accepted so far can be valid."""
    session: str | None
    """The session that the lease is or was for; a withdrawal does not name one."""
    over: float = 0.0
    """When the lease ends by the monotonic clock, which nobody can set."""
    before: _Record | None = None
    """The lease that counts until the floors of this one are on disk."""


class LeaseTable(Mapping[str, Statement]):
    """The newest statement of each key, for one gateway. Times are Unix seconds."""

    def __init__(
        self,
        gateway_set: str,
        *,
        floors: KeptFloors,
        longest_lease_s: int,
        remember_s: int = 0,
        skew_s: int = SKEW_S,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._set = gateway_set
        self._steady = steady
        self._longest_s = longest_lease_s
        self._remember_s = max(longest_lease_s, remember_s)
        self._skew_s = skew_s
        self._floors = floors
        self._records: dict[str, _Record] = {}
        self._places: defaultdict[str, set[str]] = defaultdict(set)
        """The keys of the leases of each place."""

    @property
    def memory_s(self) -> int:
        """How long after a statement another may come that was signed before it, and must not count."""
        return self._remember_s + self._skew_s

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, key: str) -> Statement:
        return self._records[key].statement

    def take(self, statement: Statement, value: bytes, at: int) -> Collection[str]:
        """Accept a statement; `value` is as the bucket has it. Returns the keys whose entries may have changed.

        Raises Refusal (`admission.*`).
        """
        held = self._records.get(statement.key)
        if held is not None and held.statement == statement:
            return ()
        if isinstance(statement, Withdrawal):
            return self._take_withdrawal(statement, value, held, at)
        record = self._leased(statement, held, at)
        if record.ends <= at:
            raise _expired(statement, record.ends, at)
        self._floors.check(statement, at)
        changed = self._fallen(self._floors.take(statement, value, at))
        self._keep(record)
        return {statement.key, *changed}

    def _take_withdrawal(self, withdrawal: Withdrawal, value: bytes, held: _Record | None, at: int) -> Collection[str]:
        # That a session has ended stays true, however old the withdrawal is.
        changed = self._fallen(self._floors.take(withdrawal, value, at))
        record = self._withdrawn(withdrawal, held)
        # By a clock that is ahead a withdrawal is over; once it is right again the lease would count. So it is taken.
        if record.ends <= at and held is None:
            if not changed:
                raise _expired(withdrawal, record.ends, at)
            return changed
        self._keep(record)
        return {withdrawal.key, *changed}

    def _fallen(self, rows: list[Row]) -> set[str]:
        """The leases that a new floor may end, or end earlier."""
        fallen = {key for row in rows if isinstance(row, PlaceFloor) for key in self._places.get(row.place, ())}
        if any(isinstance(row, PolicyFloor) for row in rows):
            fallen |= {key for key, r in self._records.items() if self._policy_until(r) < r.ends}
        return fallen

    def _policy_until(self, record: _Record) -> int:
        """When a lease ends at this gateway, by its own end and by the policy that it rests on."""
        if isinstance(record.statement, Withdrawal):
            return record.ends
        until = self._floors.policy_until(record.statement.policy)
        return record.ends if until is None else min(record.ends, until)

    def _keep(self, record: _Record) -> None:
        statement = record.statement
        self._drop(statement.key)
        self._records[statement.key] = record
        if not isinstance(statement, Withdrawal):
            self._places[statement.tenure.place].add(statement.key)

    def _drop(self, key: str) -> None:
        record = self._records.pop(key, None)
        if record is None or isinstance(record.statement, Withdrawal):
            return
        place = record.statement.tenure.place
        self._places[place].discard(key)
        if not self._places[place]:
            del self._places[place]

    def _withdrawn(self, withdrawal: Withdrawal, held: _Record | None) -> _Record:
        # By then every lease signed before the withdrawal has ended, including one that this gateway has not seen.
        ends = max(
            withdrawal.until,
            withdrawal.issued_at + self.memory_s,
            held.forget_at if held else 0,
        )
        return _Record(withdrawal, ends, ends, held.session if held else None)

    def _leased(self, lease: Lease | HostLease, held: _Record | None, at: int) -> _Record:
        if isinstance(lease, Lease) and lease.gateways != self._set:
            raise _refused("set", lease, self._set, lease.gateways, "none: the lease is for other gateways")
        if stale(lease.issued_at, at, self._skew_s):
            expected = f"an issue time of at most {at + self._skew_s}"
            raise _refused("future", lease, expected, lease.issued_at, "synchronize the clocks of manager and gateway")
        if held is not None and isinstance(held.statement, Withdrawal):
            raise _refused("withdrawn", lease, "no lease after a withdrawal", lease.sequence, "attest again")
        if held is not None and lease.sequence <= held.statement.sequence:
            expected = f"a sequence above {held.statement.sequence}"
            raise _refused("sequence", lease, expected, lease.sequence, "find out who replays old statements")
        # Whatever the manager's key signs, no lease is longer here than this gateway's own bound.
        ends = min(lease.expires_at, lease.issued_at + self._longest_s)
        session = lease.app_session if isinstance(lease, Lease) else lease.host_session
        # A renewal may end before the lease it replaces: the record outlives both, or the bus could replay the longer.
        over = self._steady() + min(ends - at, self._longest_s)
        before = self._settled(held)
        before = replace(before, before=None) if before else None
        return _Record(lease, ends, max(ends, held.forget_at if held else 0), session, over, before)

    def _settled(self, record: _Record | None) -> _Record | None:
        """The newest record under its key that is all on disk: this one, or the one before it."""
        if record is None:
            return None
        return record if self._floors.settled(record.statement) else record.before

    def entry(self, key: str, at: int) -> DictionaryEntry | None:
        """What nginx must hold under a key at Unix second `at`; None for nothing."""
        newest = self._records.get(key)
        if newest is None or isinstance(newest.statement, Withdrawal):
            return None
        record = self._settled(newest)
        if record is None or isinstance(record.statement, Withdrawal):
            return None
        lease, known = record.statement, self._floors.known
        if not known.stands(newest.statement) or (record is not newest and not known.stands(lease)):
            return None
        until = self._policy_until(record)
        if until <= at or stale(lease.issued_at, at, self._skew_s) or record.over <= self._steady():
            return None
        if isinstance(lease, Lease):
            return CertificateEntry(
                sequence=lease.sequence,
                since=lease.issued_at,
                until=until,
                sha256=lease.certificate,
                identity=lease.identity,
                host_key=f"host.{lease.host_session}",
                integrity=lease.integrity,
                marks=", ".join(lease.marks),
                allow=lease.allow,
            )
        return HostEntry(sequence=lease.sequence, since=lease.issued_at, until=until, host=lease.host)

    def settled(self, key: str) -> bool:
        """Whether all that is known of a key's statement is on disk."""
        record = self._records.get(key)
        return record is None or self._floors.settled(record.statement)

    def waits(self, key: str) -> bool:
        """Whether a key has a lease that may count once the floors that it raises are on disk."""
        return isinstance(self.get(key), (Lease, HostLease)) and not self.settled(key) and self.fault(key) is None

    def of_subject(self, subject: str) -> list[str]:
        """The keys of the leases of `host.<id>` or `app.<id>`."""
        return [
            key
            for key, record in self._records.items()
            if not isinstance(record.statement, Withdrawal) and record.statement.subject == subject
        ]

    def fault(self, key: str) -> Refusal | None:
        """Why a lease that is held under a key may not stay."""
        held = self.get(key)
        return None if held is None or isinstance(held, Withdrawal) else self._floors.known.fault(held)

    def session(self, key: str) -> str | None:
        """The session that a key's lease is or was for, if this gateway has seen a lease."""
        record = self._records.get(key)
        return record.session if record else None

    def forget(self, at: int) -> dict[str, str | None]:
        """Drop records that no longer matter. Returns the keys whose lease has just run out, with their sessions."""
        over = {key: record for key, record in self._records.items() if record.forget_at <= at}
        lapsed = {key: r.session for key, r in over.items() if not isinstance(r.statement, Withdrawal)}
        fallen = {key for key in lapsed if self.fault(key) is not None}
        for key in over:
            self._drop(key)
        return {key: session for key, session in lapsed.items() if key not in fallen}


def _expired(statement: Statement, ends: int, at: int) -> Refusal:
    return _refused("expired", statement, f"an end after {at}", ends, "none: the statement has expired")


def _refused(what: str, statement: Statement, expected: object, found: object, action: str) -> Refusal:
    return Refusal.because(f"admission.{what}", statement.key, expected=expected, found=found, action=action)
