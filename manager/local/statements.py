"""A worker's own copies of the newest signed statement of each author: what the bus may not set back.

They are kept as they were signed, so that what counts is decided anew at each use, by who is in the settings then: what
a key that was taken out has said binds nobody any more. Losing the file loses protection against a rollback of the bus,
not correctness. So a disk that is full holds up nobody: what cannot be written is kept in memory meanwhile.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import NamedTuple

import structlog

from attestgate.manager.local.sqlite_file import inaccessible, opened

log = structlog.get_logger(__name__)


class Kept(NamedTuple):
    """An author's newest statement under one key, as the bus holds it."""

    order: int
    value: bytes


class Statements:
    """One SQLite file: only the row that changes is written, also of 10,000. Raises Refusal `file.access`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unwritten: dict[str, dict[bytes, Kept]] = {}
        """What has not reached the disk yet, by key, then author."""
        self._file = opened(
            self,
            path,
            # On disk when a write returns: a worker acts on what it has kept, and may be killed then.
            "PRAGMA synchronous = FULL",
            "CREATE TABLE IF NOT EXISTS kept"
            " (key TEXT, author BLOB, position INTEGER, value BLOB, PRIMARY KEY (key, author)) WITHOUT ROWID",
        )

    def of(self, key: str) -> dict[bytes, Kept]:
        """What is kept under a key, by author. Raises Refusal."""
        try:
            rows = self._file.execute("SELECT author, position, value FROM kept WHERE key = ?", (key,)).fetchall()
        except sqlite3.Error as error:
            raise inaccessible(self._path, error) from None
        kept = {author: Kept(order, value) for author, order, value in rows}
        for author, one in self._unwritten.get(key, {}).items():
            kept[author] = max(one, kept.get(author, one))
        return kept

    def keep(self, key: str, author: bytes, order: int, value: bytes) -> None:
        """Keep an author's statement unless a newer one is kept; on disk when this returns, if the disk takes it."""
        unwritten, one = self._unwritten.setdefault(key, {}), Kept(order, value)
        unwritten[author] = max(one, unwritten.get(author, one))
        try:
            self._write()
        except sqlite3.Error as error:
            log.error("statements not written, kept in memory", path=str(self._path), error=str(error))
        else:
            self._unwritten.clear()

    def _write(self) -> None:
        rows = [(key, author, *one) for key, kept in self._unwritten.items() for author, one in kept.items()]
        with self._file:  # one transaction, whole or not at all
            self._file.execute("BEGIN")
            self._file.executemany(
                "INSERT INTO kept VALUES (?, ?, ?, ?) ON CONFLICT (key, author)"
                " DO UPDATE SET position = excluded.position, value = excluded.value"
                " WHERE excluded.position > kept.position",
                rows,
            )
