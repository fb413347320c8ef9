"""The recorded measurement lists for the demo's host kernel: a real Debian 12 guest's, clean and drifted.

debian12/README.md describes where they are from, and what else was recorded with them.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).with_name("debian12")
CLEAN = FOLDER / "clean.bin"
DRIFT = FOLDER / "drift.bin"
CLEAN_ENTRIES = 448
"""Entries of the clean list, as the kernel wrote them."""
