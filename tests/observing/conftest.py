"""The harness's deployment, here too."""

from __future__ import annotations

from tests.sessions.conftest import site, world

__all__ = ["site", "world"]
