"""The deployment in one process of tests/support/manager, for the policies that it judges lists by."""

from __future__ import annotations

from tests.support.manager.fixtures import site, world

__all__ = ["site", "world"]
