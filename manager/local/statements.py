"""A worker's own copies of the newest signed statement of each author: what the bus may not set back.

They are kept as they were signed, so that what counts is decided anew at each use, by who is in the settings then: what
a key that was taken out has said binds nobody any more. Losing the file loses protection against a rollback of the bus,
not correctness.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import NamedTuple

from attestgate.schemas.base import Refusal


class Kept(NamedTuple):
    """An author's newest statement under one key, as the bus holds it."""

    order: int
    value: bytes


class Statements:
    """One SQLite file: only the row that changes is written, also of 10,000. Raises Refusal `file.access`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = sqlite3.connect(path, isolation_level=None)
            path.chmod(0o600)
            # On disk when a write returns: a worker acts on what it has kept.
            self._file.execute("PRAGMA synchronous = FULL")
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS kept"
                " (key TEXT, author BLOB, position INTEGER, value BLOB, PRIMARY KEY (key, author)) WITHOUT ROWID"
            )
        except (OSError, sqlite3.Error) as error:
            raise self._inaccessible(error) from None

    def of(self, key: str) -> dict[bytes, Kept]:
        """What is kept under a key, by author. Raises Refusal."""
        try:
            rows = self._file.execute("SELECT author, position, value FROM kept WHERE key = ?", (key,)).fetchall()
        except sqlite3.Error as error:
            raise self._inaccessible(error) from None
        return {author: Kept(order, value) for author, order, value in rows}

    def keep(self, key: str, author: bytes, order: int, value: bytes) -> None:
        """Keep an author's statement unless a newer one is kept; on disk when this returns. Raises Refusal."""
        try:
            self._file.execute(
                "INSERT INTO kept VALUES (?, ?, ?, ?) ON CONFLICT (key, author)"
                " DO UPDATE SET position = excluded.position, value = excluded.value"
                " WHERE excluded.position > kept.position",
                (key, author, order, value),
            )
        except sqlite3.Error as error:
            raise self._inaccessible(error) from None

    def _inaccessible(self, error: Exception) -> Refusal:
        return Refusal.because(
            "file.access",
            str(self._path),
            expected="a file that this worker can read and write",
            found=getattr(error, "strerror", None) or str(error),
            action="check state_dir, its permissions and the room on its disk;"
            " removing the file gives up protection against a rollback of the bus",
        )
