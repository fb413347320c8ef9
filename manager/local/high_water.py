"""A worker's own memory of the highest version seen of what comes with a number of its own.

The bus may show older collateral, and a machine an older boot of its TPM, than before. A small local file, written
whole and in one move, is what remembers; losing it loses only that protection, not correctness.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from attestgate.manager.local.atomic_file import atomic_write
from attestgate.schemas.base import Refusal


@dataclass
class PolicyFloors:
    """What collateral must not be below, by the manifest in force; the collateral client keeps its own marks beside.

    Not a mark: they are the manifest's, and go with it when its author is taken out of the settings.
    """

    tcb_evaluation: int = 0
    crl_number: int = 0


class HighWater:
    """Names to numbers that only rise, kept in one JSON file. Raises Refusal where they cannot be read and written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._marks = self._read()
        try:
            self._write(self._marks)
        except OSError as error:
            raise Refusal.because(
                "file.write",
                str(path),
                expected="a file that this worker can write",
                found=error.strerror,
                action="check state_dir, its permissions and the room on its disk",
            ) from None

    def get(self, name: str) -> int:
        """The highest number seen, 0 if none."""
        return self._marks.get(name, 0)

    def raise_to(self, name: str, number: int) -> None:
        """Remember `number` if it is higher than before; on disk when this returns."""
        if number > self.get(name):
            self._write(self._marks | {name: number})

    def check(self, name: str, number: int) -> None:
        """Raises Refusal `rollback` if `number` is lower than one seen before; otherwise remembers it."""
        if number < self.get(name):
            raise Refusal.because(
                "rollback",
                name,
                expected=f"version {self.get(name)} or newer",
                found=f"version {number}",
                action="this worker has seen a newer one: restore it, or find out who rolled the bus back",
            )
        self.raise_to(name, number)

    def _read(self) -> dict[str, int]:
        try:
            marks = json.loads(self._path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError) as error:
            raise self._bad(type(error).__name__) from None
        if not isinstance(marks, dict) or not all(isinstance(v, int) and v >= 0 for v in marks.values()):
            raise self._bad("another JSON document")
        return marks

    def _bad(self, found: str) -> Refusal:
        return Refusal.because(
            "high-water.file",
            str(self._path),
            expected="a JSON object of names to numbers",
            found=found,
            action="restore the file; removing it gives up protection against a rollback of the bus",
        )

    def _write(self, marks: dict[str, int]) -> None:
        atomic_write(self._path, json.dumps(marks, indent=1, sort_keys=True).encode())
        self._marks = marks
