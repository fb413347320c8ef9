"""The world of tests/sessions, for the agents' side alone."""

from __future__ import annotations

from tests.sessions.conftest import site, world

__all__ = ["site", "world"]
