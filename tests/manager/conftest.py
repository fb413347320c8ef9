"""The deployment of tests/support/manager, for what a manager keeps and who may order it."""

from __future__ import annotations

from tests.support.manager.fixtures import site, world

__all__ = ["site", "world"]
