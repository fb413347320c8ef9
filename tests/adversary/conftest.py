"""A real server and connections to it; what every deployment may share."""

from __future__ import annotations

from tests.support.bus.fixtures import join, keys, server, trust
from tests.support.manager.fixtures import world

__all__ = ["join", "keys", "server", "trust", "world"]
