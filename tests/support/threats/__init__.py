"""The tables of docs/threats.md: rows.py has their words, and a test says with `@threat(rows.X)` which row it shows."""

from tests.support.threats import rows
from tests.support.threats.row import threat

__all__ = ["rows", "threat"]
