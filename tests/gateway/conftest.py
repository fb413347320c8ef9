"""The real nginx for each test, in a folder of its own."""

from __future__ import annotations

from tests.support.gateway.fixtures import deployment, gate, working

__all__ = ["deployment", "gate", "working"]
