"""What nginx must hold: the manager's leases, and break-glass entries for keys that no statement is known about.

Rules:
  - The manager has the last word: a break-glass entry counts only while the lease table has no statement about its key,
    and while no operator's Revoke of its application or host is in force.
  - What was taken away goes to nginx at once, and is reported once it is also on disk (`Round.owed`).
  - A key whose entry may have changed is dirty until a round of the reconciler has applied it.
  - A round works on a snapshot (`Round`), so that statements can arrive while nginx is being written.
No I/O: the time is an argument, and the only thing awaited is the next change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from attestgate.manager.gateway.entries import DictionaryChanges, DictionaryEntry, difference
from attestgate.manager.gateway.floors import Revocation
from attestgate.manager.gateway.kept_floors import KeptFloors
from attestgate.manager.gateway.lease_table import LeaseTable
from attestgate.schemas.admission import AppliedStatement, Lease, Statement


@dataclass(frozen=True)
class Round:
    """The keys of one round of reconciliation, and what stood under them when it began."""

    keys: Collection[str]
    entries: Mapping[str, DictionaryEntry]
    """What nginx must hold; a key of `keys` that is missing here must go, unless it waits."""
    waiting: Collection[str]
    """The keys of leases whose floors are not on disk: what nginx holds under them stays as it is."""
    statements: Mapping[str, Statement]
    """Of these keys, the statements that are all on disk."""
    owed: Collection[str]
    """The keys to report on even if nginx needs no change."""
    revoked: Collection[str]
    """The subjects of the Revokes that are in force and not confirmed yet."""
    revocations: Collection[Revocation]
    """The Revokes not confirmed yet that are on disk."""
    floors: int
    """How many changes of the floors were on disk."""

    def changes(self) -> DictionaryChanges:
        """What to write, without knowing what nginx holds."""
        remove = [key for key in self.keys if key not in self.entries and key not in self.waiting]
        return DictionaryChanges(remove=remove, put=dict(self.entries))

    def changes_of(self, present: Mapping[str, str]) -> DictionaryChanges:
        """What to write where nginx holds `present`, JSON text by key."""
        return difference(
            self.entries, {key: text for key, text in present.items() if key in self.entries or key not in self.waiting}
        )

    def applied(self, keys: Iterable[str]) -> list[AppliedStatement]:
        """The report on these keys: what was asked for, whatever has arrived since."""
        return [self._applied(self.statements[key]) for key in keys if key in self.statements]

    def _applied(self, statement: Statement) -> AppliedStatement:
        return AppliedStatement(
            key=statement.key,
            state="admitted" if statement.key in self.entries else "withdrawn",
            sequence=statement.sequence,
            app_session=statement.app_session if isinstance(statement, Lease) else None,
        )


class DesiredState:
    """What one nginx must hold, and which keys may have changed since it was last written."""

    def __init__(self, leases: LeaseTable, floors: KeptFloors) -> None:
        self.leases = leases
        self.floors = floors
        self.complete = False
        """Whether every statement of the bucket has been read once since the start."""
        self._break_glass: dict[str, DictionaryEntry] = {}
        self._dirty: set[str] = set()
        self._unsettled: set[str] = set()
        """The keys that nginx agrees with, as far as the disk does: to be reported on once it has the rest."""
        self._unconfirmed: dict[str, Revocation] = {}
        self._wake = asyncio.Event()
        self._listeners: list[Callable[[str], None]] = []

    def on_change(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with each key whose entry may have changed."""
        self._listeners.append(listener)

    def take(self, statement: Statement, value: bytes, at: int) -> bool:
        """Accept a statement; `value` is as the bucket has it. True if it changes something.

        Raises Refusal (`admission.*`).
        """
        changed = self.leases.take(statement, value, at)
        for key in changed:
            self._changed(key)
        if changed:
            self.wake()
        return bool(changed)

    def revoke(self, revocation: Revocation) -> bool:
        """Take an operator's Revoke; False if it, or a newer one by the same key, is known."""
        rows = self.floors.take_revocation(revocation)
        if rows:
            self._unconfirmed[revocation.name] = revocation
            for key in self.leases.of_subject(revocation.subject):
                self._changed(key)
            self.set_break_glass_entries(self._break_glass)
            self.wake()
        return bool(rows)

    def all_read(self) -> None:
        """Every statement of the bucket has been read."""
        self.complete = True
        self.wake()

    def set_break_glass_entries(self, entries: dict[str, DictionaryEntry]) -> None:
        """Replace the break-glass entries, by those of them whose subjects no operator has revoked."""
        before, self._break_glass = (
            self._break_glass,
            {key: entry for key, entry in entries.items() if not any(map(self.floors.revoked, entry.subjects))},
        )
        for key in {*before, *entries}:
            if before.get(key) != self._break_glass.get(key):
                self._changed(key)

    def forget(self, at: int) -> dict[str, str | None]:
        """Drop statements that no longer matter. Returns the keys whose lease expired, with their sessions."""
        lapsed = self.leases.forget(at)
        for key in lapsed.keys() & self._break_glass.keys():
            self._changed(key)  # the operator's admission may outlive the lease
        return lapsed

    def entry(self, key: str, at: int) -> DictionaryEntry | None:
        """What nginx must hold under a key at Unix second `at`; None for nothing."""
        if key in self.leases:
            return self.leases.entry(key, at)
        return self._break_glass.get(key)

    def until(self, key: str, at: int) -> int:
        """When the admission under a key ends, in Unix seconds; 0 if there is none."""
        entry = self.entry(key, at)
        return entry.until if entry else 0

    def begin_round(self, at: int, *, everything: bool) -> Round:
        """Take the dirty keys, or all keys; they are clean from here on unless they change or come back by `undo`."""
        settled = {key for key in self._unsettled if self.leases.settled(key)}
        owed = self._dirty | settled
        keys = owed | {*self.leases, *self._break_glass} if everything else owed
        entries = {key: entry for key in keys if (entry := self.entry(key, at)) is not None}
        unsettled = {key for key in keys if not self.leases.settled(key)}
        self._dirty, self._unsettled = set(), (self._unsettled - settled) | unsettled
        unconfirmed = self._unconfirmed.values()
        return Round(
            keys=keys,
            entries=entries,
            waiting={key for key in unsettled if key not in entries and self.leases.waits(key)},
            statements={key: self.leases[key] for key in keys if key in self.leases and key not in unsettled},
            owed=owed,
            revoked={revocation.subject for revocation in unconfirmed if self.floors.revoked(revocation.subject)},
            revocations=[revocation for revocation in unconfirmed if self.floors.written.holds(revocation)],
            floors=self.floors.written.counter,
        )

    def undo(self, failed: Round) -> None:
        """A round did not reach its end: its keys are dirty again."""
        self._dirty |= set(failed.keys)

    def confirm(self, done: Round) -> list[Revocation]:
        """A round has reached its end: nginx holds nothing that these Revokes cut, and they are on disk."""
        for revocation in done.revocations:
            if self._unconfirmed.get(revocation.name) is revocation:
                del self._unconfirmed[revocation.name]
        return list(done.revocations)

    def look_again(self) -> None:
        """The clock was set: any entry may have come to its end, or be stale."""
        for key in {*self.leases, *self._break_glass}:
            self._changed(key)

    def repeat(self) -> None:
        """nginx may have lost its memory, or hold what it should not: without waiting for the bus, write the
        break-glass entries again, and look for what was revoked."""
        self._dirty |= self._break_glass.keys()
        self._unconfirmed |= {revocation.name: revocation for revocation in self.floors.known.all_in_force()}

    def wake(self) -> None:
        """End the present pause, or the next one."""
        self._wake.set()

    def reset_wake(self) -> None:
        """Whatever has changed so far is about to be looked at."""
        self._wake.clear()

    async def pause(self, seconds: float) -> None:
        """Wait for the next change, for `seconds` at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    def _changed(self, key: str) -> None:
        self._dirty.add(key)
        for listener in self._listeners:
            listener(key)
