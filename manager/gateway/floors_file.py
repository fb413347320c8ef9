"""The file of a gateway's floors: without it, a worker does not start.

A worker without its floors would believe any older state that the bus shows it, so an empty file is made by hand once
(`attestgate gateway floors new`), and a file that is lost is replaced by another gateway's floors. What is on disk
when `write` returns stays there when the machine loses its power.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import weakref
import zlib
from contextlib import suppress
from pathlib import Path

from attestgate.manager.gateway.floors import Row
from attestgate.schemas.base import Model, Refusal, pack, unpack_own

_FORMAT = 1
"""SQLite's `user_version` of the file."""


class _Kept(Model):
    row: Row


class FloorsNotWritten(Exception):
    """The floors are as they were on disk: the change is there as a whole, or not at all."""


class FloorsFile:
    """One SQLite file, of one worker at a time. Raises Refusal (`floors.*`) if it is missing, damaged or not ours."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.is_file():
            raise _refused(
                path,
                "missing",
                "the file of this gateway's floors",
                "no such file",
                "if it has never had one: attestgate gateway floors new; if it was lost: also attestgate gateway"
                " floors import, with an export of another gateway of the set",
            )
        try:
            # Closed with its worker, which nobody closes, in whichever thread collects that.
            self._file = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, check_same_thread=False
            )
            weakref.finalize(self, self._file.close)
            self._file.execute("PRAGMA synchronous = FULL")
            self._check()
            self.counter = self._counter()
        except (sqlite3.Error, ValueError) as error:
            raise self._damaged(error) from None

    def _check(self) -> None:
        [[version]] = self._file.execute("PRAGMA user_version").fetchall()
        if version != _FORMAT:
            raise self._damaged(f"format {version}")
        [[found], *_] = self._file.execute("PRAGMA quick_check(1)").fetchall()
        if found != "ok":
            raise self._damaged(found)

    def _counter(self) -> int:
        [[counter]] = self._file.execute("SELECT changes FROM counter").fetchall()
        return int(counter)

    def rows(self) -> list[Row]:
        """Every floor. Raises Refusal `floors.damaged`."""
        try:
            kept = self._file.execute("SELECT name, row, checksum FROM floors").fetchall()
            return [_read(*one) for one in kept]
        except (sqlite3.Error, Refusal, ValueError, TypeError) as error:
            raise self._damaged(error) from None

    def write(self, rows: list[Row]) -> int:
        """Replace rows in one transaction. Returns the number of changes so far. Raises FloorsNotWritten."""
        values = [(row.name, packed := pack(_Kept(row=row)), zlib.crc32(packed)) for row in rows]
        counter = self.counter + len(values)
        try:
            with self._file:
                self._file.execute("BEGIN IMMEDIATE")
                changed = self._file.execute(
                    "UPDATE counter SET changes = ? WHERE changes = ?", (counter, self.counter)
                )
                if changed.rowcount != 1:
                    # Replacing by name must not lower what another has raised meanwhile.
                    raise FloorsNotWritten(f"{self._path}: another process has written to it; restart this worker")
                self._file.executemany(
                    "INSERT INTO floors VALUES (?, ?, ?) ON CONFLICT (name)"
                    " DO UPDATE SET row = excluded.row, checksum = excluded.checksum",
                    values,
                )
        except sqlite3.Error as error:
            raise FloorsNotWritten(f"{self._path}: {error}") from None
        self.counter = counter
        return counter

    def _damaged(self, problem: object) -> Refusal:
        return _refused(
            self._path,
            "damaged",
            "a file of floors, as this worker has written it",
            problem,
            "move it away, make a new one (attestgate gateway floors new), and import an export of another gateway"
            " of the set (attestgate gateway floors import)",
        )


def _read(name: str, packed: bytes, checksum: int) -> Row:
    # SQLite notices a damaged page where it cannot read it, but not a changed byte within a row.
    if zlib.crc32(packed) != checksum:
        raise ValueError(f"{name}: wrong checksum")
    return unpack_own(_Kept, packed).row


def create(path: Path) -> None:
    """Make an empty file. Raises Refusal `floors.exists` if there is one, and `file.access`."""
    try:
        with suppress(FileExistsError):  # what it is shows at once
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".floors-") as folder:
            empty = Path(folder) / "empty"
            _write_empty(empty)
            # A link and not a rename: it fails if there is a file, and what is there is whole.
            os.link(empty, path)
        _sync_folder(path.parent)
    except FileExistsError:
        raise _refused(
            path,
            "exists",
            "no file of floors yet",
            "there is one",
            "none, if it is this gateway's; floors are given up only by removing the file by hand",
        ) from None
    except (OSError, sqlite3.Error) as error:
        raise Refusal.because(
            "file.access",
            str(path),
            expected="a folder that this user can write to",
            found=getattr(error, "strerror", None) or str(error),
            action="check `floors` in the settings, the folder's owner, and the room on its disk",
        ) from None


def _write_empty(path: Path) -> None:
    file = sqlite3.connect(path, isolation_level=None)
    try:
        path.chmod(0o600)
        file.execute("PRAGMA synchronous = FULL")
        file.execute("BEGIN")
        file.execute(
            "CREATE TABLE floors (name TEXT PRIMARY KEY, row BLOB NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID"
        )
        file.execute("CREATE TABLE counter (changes INTEGER NOT NULL)")
        file.execute("INSERT INTO counter VALUES (0)")
        file.execute(f"PRAGMA user_version = {_FORMAT}")
        file.execute("COMMIT")
    finally:
        file.close()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(path: Path, what: str, expected: str, found: object, action: str) -> Refusal:
    return Refusal.because(f"floors.{what}", str(path), expected=expected, found=found, action=action)
