"""What a worker's own SQLite files have in common: how one is opened, and what is said of one that cannot be."""

from __future__ import annotations

import sqlite3
import weakref
from pathlib import Path

from attestgate.schemas.base import Refusal


def opened(owner: object, path: Path, *statements: str) -> sqlite3.Connection:
    """A file for this user alone, made if there is none, and closed with its owner. Raises Refusal `file.access`.

    `statements` are its pragmas and tables.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Closed with its worker, which nobody closes, in whichever thread collects that.
        file = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        weakref.finalize(owner, file.close)
        path.chmod(0o600)
        for statement in statements:
            file.execute(statement).fetchall()
    except (OSError, sqlite3.Error) as error:
        raise inaccessible(path, error) from None
    return file


def inaccessible(path: Path, error: Exception) -> Refusal:
    """Why a worker's memory cannot be read, or made."""
    return Refusal.because(
        "file.access",
        str(path),
        expected="a file that this worker can read and write",
        found=getattr(error, "strerror", None) or str(error),
        action="check state_dir, its permissions and the room on its disk;"
        " removing the file gives up protection against a rollback of the bus",
    )
