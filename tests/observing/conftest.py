"""The deployment in one process of tests/support/manager, for what it publishes."""

from __future__ import annotations

from tests.support.manager.fixtures import site, world

__all__ = ["site", "world"]
