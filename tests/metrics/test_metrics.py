"""What is measured, compared with what docs/metrics.md says and with what really happened."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from attestgate.bus import subjects
from attestgate.bus.api import Entry
from attestgate.cli.reference import DOCS, families, metrics_page
from attestgate.manager.assembly import assemble
from attestgate.manager.gateway.metrics import GatewayMetrics
from attestgate.manager.metrics.http import DEADLINE_S, MOST, served
from attestgate.manager.metrics.manager import ManagerMetrics
from attestgate.schemas.base import Reason, Refusal
from attestgate.schemas.enrolment import Revoke
from attestgate.schemas.events import Event
from tests.support.manager import deployment as manager
from tests.support.manager.deployment import Deployment, deployed
from tests.support.manager.world import OTHER_ENCLAVE, World
from tests.support.threats import rows, threat

ROW = re.compile(r"^\| `(attestgate_[a-z_]+)` \| (\w+) \| ([a-z_, ]+) \| .+ \|$", re.MULTILINE)


@pytest.fixture
def metrics() -> ManagerMetrics:
    return ManagerMetrics()


@pytest.fixture
async def site(
    metrics: ManagerMetrics, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Deployment]:
    monkeypatch.setattr(manager, "assemble", partial(assemble, metrics=metrics))
    async with deployed(World(tmp_path_factory.mktemp("world")), tmp_path) as deployment:
        yield deployment


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return registry.get_sample_value(name, labels) or 0.0


def documented(registry: CollectorRegistry) -> set[str]:
    return {row[0].strip("`") for row in families(registry)}


async def emitted(registry: CollectorRegistry) -> set[str]:
    """The names that a scrape gives, as Prometheus reads them."""
    with served("127.0.0.1:0", registry) as url:
        assert url is not None
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await http.get(url)
    assert answer.status_code == 200
    found = set()
    for family in text_string_to_metric_families(answer.text):
        if family.samples and not family.name.endswith("_created"):
            found.add(f"{family.name}_total" if family.type == "counter" else family.name)
    return found


def test_the_page_says_what_the_code_says() -> None:
    assert (DOCS / "metrics.md").read_text(encoding="utf-8") == metrics_page(), "python -m attestgate.cli.reference"


def test_names_follow_prometheus_conventions() -> None:
    rows = ROW.findall(metrics_page())
    assert len(rows) >= 12
    for name, kind, _ in rows:
        assert (kind == "counter") == name.endswith("_total"), name
        if kind == "histogram":
            assert name.endswith("_seconds"), name
        if "timestamp" in name:
            assert name.endswith("_timestamp_seconds"), name


async def test_an_enrolment_shows_in_every_metric_of_a_manager(site: Deployment, metrics: ManagerMetrics) -> None:
    await site.admitted()
    registry = metrics.registry
    assert value(registry, "attestgate_verdicts_total", role="host", result="good", reason="") == 1
    assert value(registry, "attestgate_verdicts_total", role="app", result="good", reason="") == 1
    assert value(registry, "attestgate_events_total", kind="app", event="admitted") == 1
    assert value(registry, "attestgate_step_duration_seconds_count", role="app", step="colocation_proof") == 1
    assert value(registry, "attestgate_messages_total", result="handled") > 5
    assert value(registry, "attestgate_certificate_expiry_timestamp_seconds", certificate="issuing-ca") > 0
    fetched = {"attestgate_collateral_fetched_timestamp_seconds"}
    only_followed = {"attestgate_sessions", "attestgate_queue_messages"}
    assert fetched <= (found := await emitted(registry))
    assert (
        documented(registry) - only_followed
        <= found
        <= documented(registry)
        <= {name for name, _, _ in ROW.findall(metrics_page())}
    )


async def test_bad_evidence_is_counted_by_its_reason(site: Deployment, metrics: ManagerMetrics) -> None:
    await site.enrol_host()
    await site.host(identity=OTHER_ENCLAVE)
    await site.until("host", "h1", "evidence-rejected")
    bad = [
        sample.labels["reason"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "attestgate_verdicts_total" and sample.labels["result"] == "bad"
    ]
    assert bad == ["sgx.mrenclave"]


async def test_a_message_that_changes_nothing_is_counted_as_dropped(site: Deployment, metrics: ManagerMetrics) -> None:
    site.wire.inject("attest.v1.in.host.h1.hello", b"rubbish")
    await site.dropped(1)
    assert value(metrics.registry, "attestgate_messages_total", result="dropped") == 1


async def test_a_refused_command_and_a_revocation_are_events_that_are_counted(
    site: Deployment, metrics: ManagerMetrics
) -> None:
    await site.admitted()
    await site.order(Revoke(kind="app", id="a1", reason="test"))
    await site.until("app", "a1", "revoked")
    assert value(metrics.registry, "attestgate_events_total", kind="app", event="revoked") == 1
    assert value(metrics.registry, "attestgate_events_total", kind="op", event="applied") >= 1


@threat(rows.LOG_SPOILED)
@pytest.mark.parametrize(
    ("subject", "role", "step"),
    [
        ("attest.v1.in.host.h1.hello", "host", "hello"),
        ("attest.v1.in.host.h1.whatever", "unknown", "unknown"),
        ("attest.v1.in.nobody.h1.hello", "unknown", "unknown"),
        ("attest.v1.op.alice.enrol", "operator", "command"),
        ("attest.v1.due.0011", "manager", "deadline"),
        ("attest.v1.work.host.0011.deliver", "manager", "deliver"),
    ],
)
def test_labels_are_bounded_whatever_an_agent_sends(
    metrics: ManagerMetrics, subject: str, role: str, step: str
) -> None:
    metrics.handled(subject, 0.5, "handled")
    assert value(metrics.registry, "attestgate_step_duration_seconds_count", role=role, step=step) == 1


class Summaries:
    """A bus with one bucket, of which a watch ends."""

    def __init__(self, *entries: Entry | None) -> None:
        self._entries = entries

    def bucket(self, _name: str) -> Summaries:
        return self

    async def watch(self, _pattern: str = ">") -> AsyncIterator[Entry | None]:
        for entry in self._entries:
            yield entry
        raise EndOfWatch


class EndOfWatch(Exception):
    pass


@threat(rows.LOG_SPOILED)
def test_the_words_of_a_hosts_agent_are_no_label(metrics: ManagerMetrics) -> None:
    """A host says why it did not deliver a key: any code that it likes, a new one each time."""
    for number in range(20):
        own = Reason(code=f"mine.{number}", field="x", expected="x", found="x", action="x")
        data: dict[str, Any] = {"step": "deliver_key", "reasons": [own.model_dump()]}
        event = Event(
            id=f"{number}", kind="app", subject="a1", host="h1", what="refused", at=1, source="manager", data=data
        )
        metrics.published(subjects.event("app", "h1.a1", "refused"), event.body())
    reasons = [
        sample.labels["reason"]
        for family in metrics.registry.collect()
        if family.name == "attestgate_verdicts"
        for sample in family.samples
        if sample.name.endswith("_total")
    ]
    assert reasons == ["key.not-delivered"]


async def test_sessions_are_counted_by_state_as_they_move_and_go(metrics: ManagerMetrics) -> None:
    def line(id: str, state: str, revision: int) -> Entry:
        session = id * 32
        text = f'{{"role":"host","id":"{id}","host":"{id}","session":"{session}","state":"{state}","created_at":1}}'
        return Entry(f"host.{id}.{session}", text.encode(), revision)

    entries = (line("a", "CHALLENGED", 1), line("b", "TRUSTED", 2), None, line("a", "TRUSTED", 3), line("c", "NEW", 4))
    gone = Entry(entries[4].key, None, 5) if entries[4] else None
    with pytest.raises(EndOfWatch):
        await metrics.sessions.follow(Summaries(*entries, gone))  # type: ignore[arg-type]
    assert value(metrics.registry, "attestgate_sessions", role="host", state="TRUSTED") == 2
    assert value(metrics.registry, "attestgate_sessions", role="host", state="NEW") == 0


async def test_a_gateway_emits_what_is_documented() -> None:
    gateway = GatewayMetrics()
    gateway.received("cert.00")
    assert value(gateway.registry, "attestgate_gateway_waiting_statements") == 1
    gateway.agreed(["cert.00", "cert.01"], 2)
    gateway.event("admitted")
    gateway.refused("no lease: none", 3)
    gateway.rejected(8443, "address", 2)
    assert value(gateway.registry, "attestgate_gateway_waiting_statements") == 0
    assert value(gateway.registry, "attestgate_gateway_lag_seconds_count") == 1
    assert await emitted(gateway.registry) == documented(gateway.registry)


def test_without_an_address_nothing_listens() -> None:
    with served(None, CollectorRegistry()) as url:
        assert url is None


def test_a_busy_port_is_one_refusal_that_names_it() -> None:
    with served("127.0.0.1:0", CollectorRegistry()) as url:
        assert url is not None
        address = url.removeprefix("http://").removesuffix("/metrics")
        with pytest.raises(Refusal) as refused, served(address, CollectorRegistry()):
            pass
    (reason,) = refused.value.reasons
    assert (reason.code, reason.field) == ("metrics.address", address)
    assert "in use" in reason.found


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "203.0.113.1:0", "999.9.9.9:1"])
def test_an_address_that_cannot_be_is_refused(address: str) -> None:
    with pytest.raises(Refusal, match=r"metrics\.address"), served(address, CollectorRegistry()):
        pass


def ask(address: tuple[str, int], request: bytes) -> bytes:
    """The whole answer on a connection of its own."""
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.fixture
def scraped() -> Iterator[tuple[str, int]]:
    with served("127.0.0.1:0", GatewayMetrics().registry) as url:
        assert url is not None
        host, _, port = url.removeprefix("http://").removesuffix("/metrics").partition(":")
        yield host, int(port)


@threat(rows.METRICS_HELD)
def test_silent_connections_take_no_thread_and_lock_nobody_out(
    scraped: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than the address serves at once: the oldest are closed, and a scrape among them has its answer."""
    monkeypatch.setattr("attestgate.manager.metrics.http.DEADLINE_S", 3600.0)  # none ends by that
    threads = threading.active_count()
    silent = [socket.create_connection(scraped, timeout=30) for _ in range(3 * MOST)]
    assert ask(scraped, SCRAPE).startswith(b"HTTP/1.1 200 OK\r\n")
    assert threading.active_count() == threads
    for connection in silent[:MOST]:
        assert ended(connection)
    for connection in silent:
        connection.close()


def ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@threat(rows.METRICS_HELD)
@pytest.mark.parametrize("sent", [b"", b"GET /metrics HTTP/1.1\r\n", b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 70_000])
def test_a_connection_without_a_whole_request_ends_at_its_deadline(scraped: tuple[str, int], sent: bytes) -> None:
    with socket.create_connection(scraped, timeout=DEADLINE_S + 25) as connection:
        connection.sendall(sent)
        assert ended(connection)


SCRAPE = b"GET /metrics?x=1 HTTP/1.1\r\nHost: m\r\nAccept: application/openmetrics-text;version=1.0.0\r\n\r\n"


@threat(rows.METRICS_HELD)
def test_prometheus_gets_the_format_that_it_asks_for_and_nothing_else_is_served(scraped: tuple[str, int]) -> None:
    head, _, body = ask(scraped, SCRAPE).partition(b"\r\n\r\n")
    assert b"Content-Type: application/openmetrics-text; version=1.0.0" in head
    assert body.endswith(b"# EOF\n")
    for request, status in ((b"GET / HTTP/1.1\r\n\r\n", b"404"), (b"POST /metrics HTTP/1.1\r\n\r\n", b"405")):
        assert ask(scraped, request).split(b" ")[1] == status
