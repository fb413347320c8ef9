"""The hooks for a worker's metrics: no-ops unless metrics are enabled (manager/metrics/manager.py)."""

from __future__ import annotations


class Observer:
    """Observes a worker. It is passed no secret, and cannot change what the worker does."""

    def handled(self, subject: str, seconds: float, result: str) -> None:
        """A message was settled, after `seconds`; `result` is handled, repeated, dropped, again or fault."""

    def published(self, subject: str, data: bytes) -> None:
        """An event, or a statement for the gateways, is to be published; called once for each, not for repeats."""
