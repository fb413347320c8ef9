"""The world of tests/support/manager, for the agents' side alone."""

from __future__ import annotations

from tests.support.manager.fixtures import site, world

__all__ = ["site", "world"]
