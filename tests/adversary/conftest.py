"""A real server and connections to it."""

from __future__ import annotations

from tests.support.bus.fixtures import join, keys, server, trust

__all__ = ["join", "keys", "server", "trust"]
