"""What a gateway worker measures of itself, for Prometheus. Names and labels: docs/metrics.md, made from here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LAG_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class GatewayMetrics:
    """One gateway's figures, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._heard: dict[str, float] = {}
        self._lag = Histogram(
            "attestgate_gateway_lag_seconds",
            "From hearing a statement on the bus to nginx holding what it says",
            buckets=LAG_BUCKETS,
            registry=self.registry,
        )
        self._waiting = Gauge(
            "attestgate_gateway_waiting_statements",
            "Statements heard that nginx does not hold yet",
            registry=self.registry,
        )
        self._waiting.set_function(lambda: len(self._heard))
        self._statements = Gauge(
            "attestgate_gateway_statements", "Statements in the ledger, withdrawn ones too", registry=self.registry
        )
        self._agreed = Gauge(
            "attestgate_gateway_agreed_timestamp_seconds",
            "When nginx last agreed with the ledger",
            registry=self.registry,
        )
        self._websockets = Gauge("attestgate_gateway_websockets", "WebSockets under way", registry=self.registry)
        self._refused = Counter(
            "attestgate_gateway_requests_refused",
            "Requests that nginx refused, by verdict",
            ["verdict"],
            registry=self.registry,
        )
        self._events = Counter(
            "attestgate_gateway_events", "Events of this gateway, by what happened", ["event"], registry=self.registry
        )

    def websockets(self, count: Callable[[], float]) -> None:
        """How many WebSockets are under way is asked of `count`."""
        self._websockets.set_function(count)

    def refused(self, verdict: str, times: int) -> None:
        """Requests that nginx refused; the rules at the end of a verdict are no label."""
        self._refused.labels(verdict.partition(":")[0]).inc(times)

    def heard(self, key: str) -> None:
        """A statement was taken into the ledger."""
        self._heard.setdefault(key, time.monotonic())

    def agreed(self, keys: Iterable[str], statements: int) -> None:
        """nginx holds what the ledger says of these keys."""
        now = time.monotonic()
        for key in keys:
            if (since := self._heard.pop(key, None)) is not None:
                self._lag.observe(now - since)
        self._statements.set(statements)
        self._agreed.set_to_current_time()

    def event(self, what: str) -> None:
        """An event of this gateway."""
        self._events.labels(what).inc()
