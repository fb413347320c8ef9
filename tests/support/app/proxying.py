"""The same, but it says that it carries the requests of another program."""

from __future__ import annotations

from tests.support.app.program import main

__all__ = ["main"]
PROXY = True
