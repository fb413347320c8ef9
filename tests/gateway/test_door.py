"""How fast connections may come to the real nginx, and that the worker is told what was rejected before TLS.

An address floods from 127.0.0.2 or one of the next; the honest application is at 127.0.0.1.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import httpx
import pytest

from attestgate.compose.nginx import process
from attestgate.compose.nginx.process import free_port
from attestgate.manager.gateway.dictionary import Dictionary, NginxError, Rejection
from attestgate.manager.gateway.events import GatewayEvents
from attestgate.manager.gateway.lease_table import LeaseTable
from attestgate.manager.gateway.metrics import GatewayMetrics
from attestgate.manager.gateway.reports import Reporter
from attestgate.schemas.nginx import NginxConfig
from tests.support.gateway.deployment import GatewayDeployment, at_work
from tests.support.gateway.gate import Client, Gate, running, until
from tests.support.gateway.slow import Slow, all_held
from tests.support.gateway.statements import FloorsInMemory
from tests.support.threats import rows, threat

STRANGER = "127.0.0.2"
MANY = 100


def flood(port: int, count: int = MANY, source: str = STRANGER) -> list[Slow]:
    return [Slow("says nothing", port, source, None) for _ in range(count)]


async def nothing() -> None: ...


def served_anew(gate: Gate, client: Client, source: str = "127.0.0.1") -> Callable[[], Awaitable[None]]:
    async def check() -> None:
        transport = httpx.AsyncHTTPTransport(local_address=source, verify=client.context)
        async with httpx.AsyncClient(base_url=gate.url, transport=transport) as http:
            assert (await http.get("/x")).status_code == 200

    return check


async def rejections(gate: Gate) -> list[Rejection]:
    async with Dictionary(gate.config.admin) as dictionary:
        return await dictionary.rejections()


async def let_in(gate: Gate, source: str) -> None:
    """Wait until a new connection from this address comes as far as a refusal."""

    async def status() -> int:
        transport = httpx.AsyncHTTPTransport(local_address=source, verify=gate.context())
        async with httpx.AsyncClient(base_url=gate.url, transport=transport) as http:
            try:
                return (await http.get("/x")).status_code
            except httpx.TransportError:
                return 0

    await until(status, lambda found: found == 403)


@threat(rows.DOOR_RUSHED)
@pytest.mark.stack
async def test_an_address_connects_no_faster_than_its_rate_and_the_others_are_served(tmp_path: Path) -> None:
    async with running(Gate(tmp_path, time.time, connection_rate_per_address=1)) as gate:
        client = gate.client()
        await gate.admit(client)
        begun = time.monotonic()
        await all_held(flood(gate.config.port), served_anew(gate, client))
        passed = time.monotonic() - begun
        (found,) = await rejections(gate)
        assert (found.port, found.limit) == (gate.config.port, "rate of one address")
        # Five seconds' worth, the first one, and one for every second that it took.
        assert MANY - 7 - passed <= found.times <= MANY - 6
        assert await rejections(gate) == [], "each is told once"
        lines = [json.loads(line) for line in (gate.config.folder / "rejected.log").read_text().splitlines()]
        assert {(line["client"], line["limit"]) for line in lines} == {(STRANGER, "rate of one address")}
        await let_in(gate, STRANGER)  # a rejected connection does not count


@pytest.mark.stack
async def test_connections_over_the_rate_of_all_wait_for_their_turn(tmp_path: Path) -> None:
    async with running(Gate(tmp_path, time.time, connection_rate=2)) as gate:
        client = gate.client()
        await gate.admit(client)
        await asyncio.gather(*(served_anew(gate, client)() for _ in range(4)))
        assert await rejections(gate) == []


@threat(rows.DOOR_RUSHED)
@pytest.mark.stack
async def test_connections_far_over_the_rate_of_all_are_rejected_and_kept_ones_are_served(tmp_path: Path) -> None:
    """From so many addresses that the rate of each is not reached."""
    async with running(Gate(tmp_path, time.time, connection_rate=1)) as gate:
        client = gate.client()
        await gate.admit(client)
        kept = await client.http.get("/x")

        async def check() -> None:
            again = await client.http.get("/x")
            assert again.status_code == 200
            assert again.extensions["network_stream"] is kept.extensions["network_stream"]
            await gate.withdraw(client.key)
            assert (await client.http.get("/x")).status_code == 403

        begun = time.monotonic()
        await all_held([c for n in range(40) for c in flood(gate.config.port, 1, f"127.0.0.{2 + n}")], check)
        passed = time.monotonic() - begun
        (found,) = await rejections(gate)
        assert found.limit == "rate" and found.times >= 40 - 4 - passed
        await let_in(gate, "127.0.0.1")


@threat(rows.DOOR_RUSHED)
@pytest.mark.stack
async def test_addresses_that_connect_seldom_do_not_wait_behind_those_that_connect_often(tmp_path: Path) -> None:
    """Five of them use up their fifth of it: 20 a second of 16. Before they count as often, 25 get in."""

    async def again_and_again(source: str) -> None:
        while True:
            _, writer = await asyncio.open_connection("127.0.0.1", gate.config.port, local_addr=(source, 0))
            writer.transport.abort()
            await asyncio.sleep(0.05)

    async with running(Gate(tmp_path, time.time, connection_rate_per_address=4, connection_rate=80)) as gate:
        client = gate.client()
        await gate.admit(client)
        flooding = [asyncio.create_task(again_and_again(f"127.0.0.{2 + n}")) for n in range(5) for _ in range(2)]

        async def limits() -> set[str]:
            return {found.limit for found in await rejections(gate)}

        try:
            await until(limits, lambda found: "rate" in found)
            for n in range(5):
                await served_anew(gate, client, f"127.0.1.{1 + n}")()
        finally:
            for task in flooding:
                task.cancel()
            await asyncio.wait(flooding)


@pytest.mark.stack
async def test_a_clock_that_was_set_back_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the rates hold is then an hour ahead."""
    script, socket, render = tmp_path / "later.js", tmp_path / "later.sock", process.render
    script.write_text(
        "function later() { ['127.0.0.1', 'seldom'].forEach((key) => "
        "ngx.shared.rates.set(key, Date.now() + 3600000)); return 'done'; }\nexport default { later };\n"
    )

    def with_script(config: NginxConfig) -> str:
        more = f'js_import l from "{script}"; js_set $later l.later; server {{ listen unix:{socket}; return $later; }}'
        return render(config).replace("js_import door", f"{more}\n    js_import door", 1)

    monkeypatch.setattr(process, "render", with_script)
    async with running(Gate(tmp_path, time.time)) as gate:
        client = gate.client()
        await gate.admit(client)
        reader, writer = await asyncio.open_unix_connection(socket)
        assert await reader.read() == b"done"
        writer.transport.abort()
        await served_anew(gate, client)()


@pytest.mark.stack
async def test_the_worker_counts_and_reports_rejected_connections(tmp_path: Path) -> None:
    """For both ports and limits."""
    port = free_port()
    limits = {"connections_per_address": 20, "connection_rate_per_address": 1, "public_port": port}
    async with running(Gate(tmp_path, time.time, **limits)) as gate:
        deployment, metrics = GatewayDeployment(gate), GatewayMetrics()
        await all_held([*flood(gate.config.port), *flood(port)], nothing)
        async with at_work(deployment.worker(metrics=metrics)):
            for at, limit, most in ((gate.config.port, "rate of one address", MANY - 6), (port, "at once", MANY - 32)):
                told = await deployment.told("connections-rejected", lambda data, at=at: data["port"] == at)  # type: ignore[misc]
                name, labels = "attestgate_gateway_rejected_connections_total", {"port": str(at), "limit": limit}
                assert told["limit"] == limit
                assert 0 < cast(int, told["times"]) <= most
                assert metrics.registry.get_sample_value(name, labels) == told["times"]


@pytest.mark.stack
async def test_the_socket_is_the_workers_alone(tmp_path: Path) -> None:
    async with running(Gate(tmp_path, time.time)) as gate:
        assert gate.config.rejections_socket.stat().st_mode & 0o777 == 0o600
    with pytest.raises(NginxError, match=r"rejections\.sock"):
        await rejections(gate)


def test_a_flood_is_one_event_a_minute_for_each_port_and_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[object, object, object]] = []
    now = 1000.0

    class Collected:
        def event(self, what: str, data: dict[str, object]) -> None:
            assert what == "connections-rejected"
            told.append((data["port"], data["limit"], data["times"]))

    monkeypatch.setattr(time, "monotonic", lambda: now)
    leases = LeaseTable("sdn", floors=FloorsInMemory(), longest_lease_s=60, remember_s=0)
    gateway = GatewayEvents(cast(Reporter, Collected()), leases, time.time)
    for second in range(121):
        now = 1000.0 + second
        gateway.connections_rejected([Rejection(port=1, limit="rate", times=5)] if second < 70 else [])
        if second == 30:
            gateway.connections_rejected([Rejection(port=2, limit="rate", times=7)])
    assert told == [(1, "rate", 5), (2, "rate", 7), (1, "rate", 300), (1, "rate", 45)]


def test_a_stock_nginx_runs_no_script(tmp_path: Path) -> None:
    assert "js_access door.access" in process.render(Gate(tmp_path / "a", time.time).config)
    assert "js_" not in process.render(Gate(tmp_path / "b", time.time, mode="stock").config)
