"""What a worker lets be counted of its work: nothing, unless somebody counts (manager/metrics/manager.py)."""

from __future__ import annotations


class Observer:
    """Hears what a worker does. Nothing it is told holds a secret, and nothing it does changes what is done."""

    def handled(self, subject: str, seconds: float, result: str) -> None:
        """A message was settled: handled, repeated, dropped, again, fault; `seconds` is how long that took."""

    def published(self, subject: str, data: bytes) -> None:
        """Something is to be stored on the bus, once: an event, or a statement for the gateways."""
