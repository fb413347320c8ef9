"""One world for all tests, a deployment of its own for each."""

from __future__ import annotations

from tests.support.manager.fixtures import site, world

__all__ = ["site", "world"]
