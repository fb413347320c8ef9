"""What nginx must hold: the manager's leases, and break-glass entries for keys that no statement is known about.

Rules:
  - The manager has the last word: a break-glass entry counts only while the lease table has no statement about its key.
  - A key whose entry may have changed is dirty until a round of the reconciler has applied it.
  - A round works on a snapshot (`Round`), so that statements can arrive while nginx is being written.
No I/O: the time is an argument, and the only thing awaited is the next change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from attestgate.manager.gateway.entries import DictionaryChanges, DictionaryEntry
from attestgate.manager.gateway.lease_table import LeaseTable
from attestgate.schemas.admission import AppliedStatement, Lease, Statement


@dataclass(frozen=True)
class Round:
    """The keys of one round of reconciliation, and what stood under them when it began."""

    keys: Collection[str]
    entries: Mapping[str, DictionaryEntry]
    """What nginx must hold; a key of `keys` that is missing here must go."""
    statements: Mapping[str, Statement]

    def changes(self) -> DictionaryChanges:
        """What to write, without knowing what nginx holds."""
        return DictionaryChanges(remove=[key for key in self.keys if key not in self.entries], put=dict(self.entries))

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

    def __init__(self, leases: LeaseTable) -> None:
        self.leases = leases
        self.complete = False
        """Whether every statement of the bucket has been read once since the start."""
        self._break_glass: dict[str, DictionaryEntry] = {}
        self._dirty: set[str] = set()
        self._wake = asyncio.Event()
        self._listeners: list[Callable[[str], None]] = []

    def on_change(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with each key whose entry may have changed."""
        self._listeners.append(listener)

    def take(self, statement: Statement, at: int) -> bool:
        """Accept a statement; True if it changes something. Raises Refusal (`admission.*`)."""
        changed = self.leases.take(statement, at)
        if changed:
            self._changed(statement.key)
            self.wake()
        return changed

    def all_read(self) -> None:
        """Every statement of the bucket has been read."""
        self.complete = True
        self.wake()

    def set_break_glass_entries(self, entries: dict[str, DictionaryEntry]) -> None:
        """Replace the break-glass entries."""
        before, self._break_glass = self._break_glass, entries
        for key in {*before, *entries}:
            if before.get(key) != entries.get(key):
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
        keys = {*self.leases, *self._break_glass} if everything else self._dirty
        self._dirty = set()
        return Round(
            keys=keys,
            entries={key: entry for key in keys if (entry := self.entry(key, at)) is not None},
            statements={key: self.leases[key] for key in keys if key in self.leases},
        )

    def undo(self, failed: Round) -> None:
        """A round did not reach its end: its keys are dirty again."""
        self._dirty |= set(failed.keys)

    def look_again(self) -> None:
        """The clock was set: any entry may have come to its end, or be stale."""
        for key in {*self.leases, *self._break_glass}:
            self._changed(key)

    def repeat_break_glass(self) -> None:
        """nginx has lost its memory: write the break-glass entries again, without waiting for the bus."""
        self._dirty |= self._break_glass.keys()

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
