"""Prometheus metrics of a manager worker. docs/metrics.md is generated from here.

Every label has a bounded set of values: steps that the code knows, states, reason codes; never an id that an agent
chooses. Sessions are counted for the fleet, the same in every worker; all else is this worker's own.
"""

from __future__ import annotations

import asyncio
from collections import Counter as Tally
from collections.abc import Callable, Iterable

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from attestgate.bus import subjects
from attestgate.bus.api import Bus, BusError
from attestgate.bus.client.depth import waiting
from attestgate.bus.client.nats import NatsBus
from attestgate.manager.audit.log import Status
from attestgate.manager.events.observer import Observer
from attestgate.schemas.base import Refusal
from attestgate.schemas.events import read_event
from attestgate.schemas.summary import summary_of

log = structlog.get_logger(__name__)

STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
DEPTH_S = 5.0
"""How often the queue depth is polled."""
RETRY_S = 5.0
GOOD = frozenset({("host", "granted"), ("app", "waiting-for-key"), ("host", "rechecked"), ("app", "rechecked")})
"""Events that report accepted evidence."""
BAD = frozenset({"refused", "untrusted", "evidence-rejected"})
"""Events that report refused evidence or proofs."""
NOT_DELIVERED = "key.not-delivered"
"""The reason that is counted where a host could not deliver an application's key."""

Expiries = Callable[[], dict[str, int]]
"""Points in time, Unix seconds, by name."""


class ManagerMetrics(Observer):
    """The metrics of one worker, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.sessions = SessionCount()
        self._steps = Histogram(
            "attestgate_step_duration_seconds",
            "How long a message took to be settled, by who sent it and its step",
            ["role", "step"],
            buckets=STEP_BUCKETS,
            registry=self.registry,
        )
        self._messages = Counter(
            "attestgate_messages",
            "Messages settled: handled, repeated (by bus or agent), dropped (changed nothing), "
            "again (to be retried), fault (of this worker)",
            ["result"],
            registry=self.registry,
        )
        self._verdicts = Counter(
            "attestgate_verdicts",
            "Evidence appraised, by result and, if it was refused, the first reason's code",
            ["role", "result", "reason"],
            registry=self.registry,
        )
        self._events = Counter(
            "attestgate_events",
            "Events published, by kind of subject and what happened",
            ["kind", "event"],
            registry=self.registry,
        )
        self._queue = Gauge(
            "attestgate_queue_messages",
            "Messages waiting for a worker or in progress, by consumer",
            ["consumer"],
            registry=self.registry,
        )
        self._answered = Gauge(
            "attestgate_bus_answered_timestamp_seconds",
            "When this worker last read the queue depth from the bus, polled every 5 s",
            registry=self.registry,
        )
        self.registry.register(self.sessions)

    def certificates(self, expiries: Expiries) -> None:
        """Export the expiry of certificates."""
        self.registry.register(
            Times(
                "attestgate_certificate_expiry_timestamp_seconds",
                "When a certificate of the manager's PKI expires",
                "certificate",
                expiries,
            )
        )

    def collateral(self, heard: Expiries) -> None:
        """Export when collateral was last fetched from the attestation service."""
        self.registry.register(
            Times(
                "attestgate_collateral_fetched_timestamp_seconds",
                "When the collateral of a platform model was last fetched from the attestation service",
                "platform",
                heard,
            )
        )

    def decision_log(self, status: Callable[[], Status]) -> None:
        """Export the state of the decision log as this worker sees it."""
        self.registry.register(LogStatus(status))

    def handled(self, subject: str, seconds: float, result: str) -> None:
        """See Observer."""
        self._steps.labels(*_step(subject)).observe(seconds)
        self._messages.labels(result).inc()

    def published(self, subject: str, data: bytes) -> None:
        """See Observer."""
        if not subject.startswith(f"{subjects.EVENTS}."):
            return
        kind, _, what = subjects.parse_event(subject)
        self._events.labels(kind, what).inc()
        if kind not in ("host", "app"):
            return
        if (kind, what) in GOOD:
            self._verdicts.labels(kind, "good", "").inc()
        elif what in BAD:
            self._verdicts.labels(kind, "bad", _first_reason(data)).inc()

    async def follow(self, bus: NatsBus) -> None:
        """Follow the summaries and the queues on the bus, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.sessions.follow(bus))
            tasks.create_task(self._follow_queues(bus))

    async def _follow_queues(self, bus: NatsBus) -> None:
        while True:
            try:
                for consumer, count in (await waiting(bus)).items():
                    self._queue.labels(consumer).set(count)
                self._answered.set_to_current_time()
            except BusError as error:
                log.warning("queue depth unknown, retrying", error=str(error))
            await asyncio.sleep(DEPTH_S)


class SessionCount(Collector):
    """The number of sessions in each state, from the summaries on the bus."""

    def __init__(self) -> None:
        self._states: dict[str, tuple[str, str]] = {}

    async def follow(self, bus: Bus) -> None:
        """Follow the summaries until cancelled; retry when the bus is lost."""
        while True:
            try:
                async for entry in bus.bucket("summaries").watch():
                    if entry is None:
                        continue
                    if entry.value is None:
                        self._states.pop(entry.key, None)
                    else:
                        line = summary_of(entry.key, entry.value)
                        if line is not None:
                            self._states[entry.key] = (line.role, line.state)
            except (BusError, Refusal) as error:
                log.warning("watch of session summaries failed, retrying", error=str(error))
            await asyncio.sleep(RETRY_S)

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client's Collector."""
        family = GaugeMetricFamily("attestgate_sessions", "Sessions on the bus, by state", labels=["role", "state"])
        for (role, state), count in sorted(Tally(list(self._states.values())).items()):
            family.add_metric([role, state], count)
        yield family


class LogStatus(Collector):
    """The state of the decision log, read at each scrape."""

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client's Collector."""
        status = self._status()
        yield GaugeMetricFamily(
            "attestgate_decision_log_entries",
            "Decisions in the log, in all its trees, up to the head that this worker has checked",
            status.size,
        )
        yield GaugeMetricFamily(
            "attestgate_decision_log_pending_seconds",
            "Age of this worker's oldest decision that is not in the tree yet; 0 if there is none",
            status.pending_s,
        )
        yield GaugeMetricFamily(
            "attestgate_decision_log_consistent",
            "1 while the head on the bus extends the one seen before, else 0",
            float(status.consistent),
        )


class Times(Collector):
    """Points in time under one metric name, read at each scrape."""

    def __init__(self, name: str, meaning: str, label: str, read: Expiries) -> None:
        self._name, self._meaning, self._label, self._read = name, meaning, label, read

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client's Collector."""
        family = GaugeMetricFamily(self._name, self._meaning, labels=[self._label])
        for which, at in self._read().items():
            family.add_metric([which], at)
        yield family


def _step(subject: str) -> tuple[str, str]:
    """Role and step of a message; an agent may publish any step, so all unknown ones share one label."""
    if subject.startswith(f"{subjects.OPERATOR}."):
        return "operator", "command"
    if subject.startswith(f"{subjects.DUE}."):
        return "manager", "deadline"
    if subject.startswith(f"{subjects.WORK}."):
        return "manager", subject.rsplit(".", 1)[1]
    try:
        address = subjects.parse_inbound(subject)
    except Refusal:
        return "unknown", "unknown"
    return address.role, address.step


def _first_reason(data: bytes) -> str:
    event = read_event(data, source="event")
    # Why a key was not delivered, the host's agent says in its own words: each would be a new time series.
    if event.data.get("step") == "deliver_key":
        return NOT_DELIVERED
    reasons = event.data.get("reasons")
    if isinstance(reasons, list) and reasons and isinstance(reasons[0], dict):
        return str(reasons[0].get("code", ""))
    return ""
