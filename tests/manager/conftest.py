"""The deployment of tests/sessions, for what a manager keeps and who may order it."""

from __future__ import annotations

from tests.sessions.conftest import site, world

__all__ = ["site", "world"]
