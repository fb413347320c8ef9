"""The recorded measurement lists that the demo plays a host's kernel with: a real Debian 12 guest's, clean and drifted.

They stand in the repository under tests/vectors/ima; where they are from is said there.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).resolve().parent.parent / "tests" / "vectors" / "ima" / "debian12"
CLEAN = _FOLDER / "clean.bin"
DRIFT = _FOLDER / "drift.bin"
CLEAN_ENTRIES = 448
"""Entries of the clean list, as the kernel wrote them."""
