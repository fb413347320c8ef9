"""The deployment in one process of tests/support/manager, and the real nginx."""

from __future__ import annotations

from tests.support.gateway.fixtures import gate
from tests.support.manager.fixtures import site, world

__all__ = ["gate", "site", "world"]
