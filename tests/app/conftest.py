"""The deployment in one process of tests/sessions, for the application's side."""

from tests.sessions.conftest import site, world

__all__ = ["site", "world"]
