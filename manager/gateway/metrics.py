"""Prometheus metrics of a gateway worker. docs/metrics.md is generated from here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LAG_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class GatewayMetrics:
    """The metrics of one gateway, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._received: dict[str, float] = {}
        self._lag = Histogram(
            "attestgate_gateway_lag_seconds",
            "From receiving a statement to nginx holding it",
            buckets=LAG_BUCKETS,
            registry=self.registry,
        )
        self._waiting = Gauge(
            "attestgate_gateway_waiting_statements",
            "Statements received that nginx does not hold yet",
            registry=self.registry,
        )
        self._waiting.set_function(lambda: len(self._received))
        self._statements = Gauge(
            "attestgate_gateway_statements",
            "Statements in the lease table, withdrawals included",
            registry=self.registry,
        )
        self._agreed = Gauge(
            "attestgate_gateway_agreed_timestamp_seconds",
            "When nginx last matched the lease table",
            registry=self.registry,
        )
        self._websockets = Gauge("attestgate_gateway_websockets", "Open WebSockets", registry=self.registry)
        self._refused = Counter(
            "attestgate_gateway_requests_refused",
            "Requests that nginx refused, by verdict",
            ["verdict"],
            registry=self.registry,
        )
        self._rejected = Counter(
            "attestgate_gateway_rejected_connections",
            "Connections that nginx closed before TLS, by port and limit",
            ["port", "limit"],
            registry=self.registry,
        )
        self._events = Counter(
            "attestgate_gateway_events", "Events of this gateway, by what happened", ["event"], registry=self.registry
        )

    def websockets(self, count: Callable[[], float]) -> None:
        """Use `count` to get the number of open WebSockets."""
        self._websockets.set_function(count)

    def refused(self, verdict: str, times: int) -> None:
        """Requests that nginx refused; the rules at the end of a verdict do not become part of the label."""
        self._refused.labels(verdict.partition(":")[0]).inc(times)

    def rejected(self, port: int, limit: str, times: int) -> None:
        """Connections that nginx closed before TLS."""
        self._rejected.labels(str(port), limit).inc(times)

    def received(self, key: str) -> None:
        """A statement was accepted into the lease table."""
        self._received.setdefault(key, time.monotonic())

    def agreed(self, keys: Iterable[str], statements: int) -> None:
        """nginx now holds what the lease table says about these keys."""
        now = time.monotonic()
        for key in keys:
            if (since := self._received.pop(key, None)) is not None:
                self._lag.observe(now - since)
        self._statements.set(statements)
        self._agreed.set_to_current_time()

    def event(self, what: str) -> None:
        """An event of this gateway."""
        self._events.labels(what).inc()
