"""A worker's own memory of what only rises, or ends for good: which session is current, which has ended, and the like.

The bus can show a worker what it has replaced; this is what the worker holds against it, as a gateway does with its
floors. Losing the file, or a row for which there is no room, loses only that protection, not correctness. So a disk
that is full holds up nobody (what cannot be written is kept in memory meanwhile), and no write waits for the disk: what
a crash of the machine can lose is the last rows, and a worker that is killed loses none.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import structlog

from attestgate.manager.local.sqlite_file import inaccessible, opened
from attestgate.schemas.admission import Tenure

log = structlog.get_logger(__name__)
MOST = 100_000
"""Rows of a kind, about 150 bytes each; beyond it those of the lowest numbers go, which are the oldest."""
ENDED_FOR_S = 24 * 3600
"""How long a session that has ended is remembered: its record is deleted after an hour (`sessions.draft.KEPT_S`)."""
PRUNE_EVERY = 1000
"""Writes after which what is too old, or too much, is removed."""
CURRENT, ENDED, ENROLLED, HELD, POLICY, FLOORS = "current", "ended", "enrolled", "held", "policy", "floors"


class Mark(NamedTuple):
    """A number, and what goes with it; of two the greater counts."""

    number: int = 0
    detail: str = ""


class Marks:
    """One SQLite file. `now` is the clock by which an ended session is forgotten. Raises Refusal `file.access`."""

    def __init__(self, path: Path, now: Callable[[], float]) -> None:
        self._path = path
        self._now = now
        self._writes = 0
        self._unwritten: dict[tuple[str, str], Mark] = {}
        """What the disk did not take."""
        self._file = opened(
            self,
            path,
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = NORMAL",
            "CREATE TABLE IF NOT EXISTS marks"
            " (kind TEXT, name TEXT, number INTEGER, detail TEXT, PRIMARY KEY (kind, name)) WITHOUT ROWID",
            "SELECT count(*) FROM marks WHERE kind = ''",
        )

    def current(self, place: str) -> tuple[int, str]:
        """The highest (rank, session) known of a place; (0, "") for none."""
        return self._get(CURRENT, place)

    def was_current(self, tenure: Tenure) -> None:
        """A session is, or was, the current one of its place."""
        self._raise(CURRENT, tenure.place, Mark(tenure.rank, tenure.session))

    def has_ended(self, session: str) -> bool:
        """Whether a session that was current is known to have ended."""
        return self._get(ENDED, session) != Mark()

    def ended(self, session: str) -> None:
        """A session that was current has ended."""
        if not self.has_ended(session):
            self._raise(ENDED, session, Mark(max(int(self._now()), 1)))

    def held(self, host: str) -> int:
        """The order of the Enrol that a host has to be enrolled after; 0 if it is not held."""
        return self._get(HELD, host).number

    def hold(self, host: str, enrolled: int) -> None:
        """A host has no session until it is enrolled after this."""
        self._raise(HELD, host, Mark(enrolled))

    def enrolled(self, subject: str) -> int:
        """The highest order of an Enrol of a subject (`host.<id>`, `app.<id>`) on which a lease is known to rest."""
        return self._get(ENROLLED, subject).number

    def policy(self) -> int:
        """The highest version of a policy manifest on which a lease is known to rest."""
        return self._get(POLICY, "").number

    def rests_on(self, subject: str, enrolled: int, policy: int) -> None:
        """A manager has leased something to a subject by this enrolment and this policy manifest."""
        self._raise(ENROLLED, subject, Mark(enrolled))
        self._raise(POLICY, "", Mark(policy))

    def floors_lost(self, gateway: str, count: int, at: int) -> int | None:
        """The count of changes of its floors that a gateway had before it had `count` of them, if that was higher.

        `at` is when it says so, Unix seconds by its clock. Reports come in any order, and again: one that is not of a
        later second says nothing.
        """
        before = self._get(FLOORS, gateway)
        return before.number if count < before.number and at > int(before.detail or 0) else None

    def floors(self, gateway: str, count: int, at: int) -> None:
        """A gateway has counted so many changes: the highest, or fewer, once it is told that it has lost some."""
        if count > self._get(FLOORS, gateway).number or self.floors_lost(gateway, count, at) is not None:
            self._put(FLOORS, gateway, Mark(count, str(at)))

    def _get(self, kind: str, name: str) -> Mark:
        if (kind, name) in self._unwritten:
            return self._unwritten[kind, name]
        try:
            row = self._file.execute(
                "SELECT number, detail FROM marks WHERE kind = ? AND name = ?", (kind, name)
            ).fetchone()
        except sqlite3.Error as error:
            raise inaccessible(self._path, error) from None
        return Mark(*row) if row else Mark()

    def _raise(self, kind: str, name: str, mark: Mark) -> None:
        if mark > self._get(kind, name):
            self._put(kind, name, mark)

    def _put(self, kind: str, name: str, mark: Mark) -> None:
        self._unwritten[kind, name] = mark
        try:
            self._write()
        except sqlite3.Error as error:
            log.error("marks not written, kept in memory", path=str(self._path), error=str(error))
            if len(self._unwritten) > MOST:
                del self._unwritten[next(iter(self._unwritten))]
        else:
            self._unwritten.clear()

    def _write(self) -> None:
        rows = [(kind, name, *mark) for (kind, name), mark in self._unwritten.items()]
        with self._file:  # one transaction, whole or not at all
            self._file.execute("BEGIN")
            self._file.executemany("INSERT OR REPLACE INTO marks VALUES (?, ?, ?, ?)", rows)
            if self._writes % PRUNE_EVERY == 0:
                self._prune()
        self._writes += 1

    def _prune(self) -> None:
        self._file.execute("DELETE FROM marks WHERE kind = ? AND number < ?", (ENDED, int(self._now()) - ENDED_FOR_S))
        for kind in (CURRENT, ENDED, ENROLLED, HELD, FLOORS):
            self._file.execute(
                "DELETE FROM marks WHERE kind = ?1 AND name IN"
                " (SELECT name FROM marks WHERE kind = ?1 ORDER BY number DESC LIMIT -1 OFFSET ?2)",
                (kind, MOST),
            )
