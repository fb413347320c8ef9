"""Which credentials were issued: the public keys by which they are revoked. Nothing in it is secret."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from attestgate.bus.auth.keys_folder import replace
from attestgate.schemas.base import Label, Model, Seconds, read_json

LEDGER_FILE = "issued.json"


class Issued(Model):
    """A credential: whose, its public key, and when it was issued (Unix seconds, as in its JWT)."""

    role: Label
    name: Annotated[str, Field(max_length=127)]
    """As in its subjects: an id, or two with a dot between."""
    key: Label
    at: Seconds


class Ledger(Model):
    """All credentials that were issued since it began. `complete`: it began with the folder."""

    complete: bool
    issued: Annotated[list[Issued], Field(max_length=100_000)]

    def of(self, role: str, name: str | None = None) -> list[Issued]:
        """The credentials of a role, or of one name in it."""
        return [entry for entry in self.issued if entry.role == role and name in (None, entry.name)]


def begin(folder: Path) -> None:
    """Begin it in a new folder."""
    _write(folder, Ledger(complete=True, issued=[]))


def read(folder: Path) -> Ledger:
    """The ledger; of a folder that was made before there was one, an empty one. Raises Refusal."""
    if not (folder / LEDGER_FILE).exists():
        return Ledger(complete=False, issued=[])
    return read_json(Ledger, folder / LEDGER_FILE)


def add(folder: Path, entry: Issued) -> None:
    """Write down a credential. The folder is locked. Raises Refusal, OSError."""
    known = read(folder)
    _write(folder, Ledger(complete=known.complete, issued=[*known.issued, entry]))


def _write(folder: Path, ledger: Ledger) -> None:
    replace(folder / LEDGER_FILE, ledger.model_dump_json() + "\n", mode=0o600)
