"""The way without njs: a map file and reloads, on the same nginx with its njs left alone."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestgate.manager.gateway.map_file import MapFile, expression
from attestgate.manager.pki import crl
from tests.support.gateway.deployment import HOST, GatewayDeployment, at_work, status
from tests.support.gateway.gate import Client, Gate, host_lease, lease, running, until, withdrawal
from tests.support.gateway.rules import ALLOWED, ONE_SUBTREE, REFUSED, send
from tests.support.gateway.slow import SAYS, Slow, all_held
from tests.support.threats import rows, threat


@pytest.fixture
async def stock(tmp_path: Path) -> AsyncIterator[GatewayDeployment]:
    async with running(Gate(tmp_path, time.time, mode="stock")) as gate:
        yield GatewayDeployment(gate)


async def admit(stock: GatewayDeployment, *clients: Client, allow: tuple[str, ...], lease_s: int = 30) -> None:
    now = int(time.time())
    await stock.say(host_lease(now), *(lease(c, now, lease_s=lease_s, allow=list(allow)) for c in clients))
    for client in clients:
        await stock.reported(client.key, "admitted", 1)


@pytest.mark.stack
async def test_admitted_by_rule_and_withdrawn_on_the_open_connection(stock: GatewayDeployment) -> None:
    client, other = stock.gate.client(), stock.gate.client(app="a2")
    assert await status(client) == 403
    async with at_work(stock.worker(nginx_map=stock.gate.config.map)):
        await admit(stock, client, other, allow=("GET /x",))
        assert await status(client) == await status(other) == 200
        assert (await client.http.post("/x")).status_code == 403
        answer = await client.http.get("/x", headers={"X-Attestgate-Identity": "spoofed"})
        assert client.issued is not None
        assert dict(answer.json()["headers"])["x-attestgate-identity"] == client.issued.identity
        await stock.withdraw(client.key)
        assert await status(client) == 403
        assert await status(other) == 200
        now = int(time.time())
        await stock.say(withdrawal(HOST, now, reason="ima.unknown"))
        await stock.reported(HOST, "withdrawn", 2)
        assert await status(other) == 403


@pytest.mark.stack
async def test_a_certificate_on_the_revocation_list_is_refused_though_the_map_has_it(tmp_path: Path) -> None:
    gate = Gate(tmp_path, time.time, mode="stock", crl=tmp_path / "crl.pem")
    revoked, other = gate.client(), gate.client(app="a2")
    assert revoked.issued is not None
    entry = crl.Revocation(int(revoked.issued.serial, 16), int(time.time()), x509.ReasonFlags.privilege_withdrawn)
    der = crl.extend(gate.authority, [], [entry], at=int(time.time()), longest_s=3600)
    (tmp_path / "crl.pem").write_bytes(
        x509.load_der_x509_crl(der).public_bytes(Encoding.PEM) + (tmp_path / "ca" / "root-ca.crl.pem").read_bytes()
    )
    async with running(gate):
        stock = GatewayDeployment(gate)
        async with at_work(stock.worker(nginx_map=gate.config.map)):
            await admit(stock, revoked, other, allow=("GET /x",))
            assert await status(revoked) == 403
            assert await status(other) == 200


@threat(rows.RULES)
@pytest.mark.stack
async def test_every_spelling_is_judged_as_with_njs(stock: GatewayDeployment) -> None:
    client = stock.gate.client()
    async with at_work(stock.worker(nginx_map=stock.gate.config.map)):
        await admit(stock, client, allow=ONE_SUBTREE)
        passed = [(m, t) for m, t in REFUSED if await send(client, stock.gate, m, t) not in {400, 403, 405}]
        assert passed == [] == stock.gate.upstream.requests
        for method, target in ALLOWED:
            assert await send(client, stock.gate, method, target) == 200, (method, target)


@pytest.mark.stack
async def test_a_lapsed_lease_goes_and_a_new_worker_goes_on(stock: GatewayDeployment) -> None:
    client, brief = stock.gate.client(), stock.gate.client(app="a2")
    path = stock.gate.config.map
    async with at_work(stock.worker(nginx_map=path)):
        await admit(stock, client, allow=("GET /x",))
        await admit(stock, brief, allow=("GET /x",), lease_s=2)

        async def answer() -> int:
            return await status(brief)

        await until(answer, lambda code: code == 403)
        assert await status(client) == 200
    before = set((await MapFile(path).contents()).entries)
    assert before == {client.key, HOST}
    async with at_work(stock.worker(nginx_map=path)):
        await stock.told("admitted", lambda data: data["key"] == client.key)
        assert await status(client) == 200
    assert set((await MapFile(path).contents()).entries) == before


@pytest.mark.stack
async def test_slow_clients_without_a_certificate_keep_nobody_out_and_end(tmp_path: Path) -> None:
    """All kinds at once, each from an address of its own."""
    limits = {"connections": 80, "connections_per_address": 8}
    async with running(Gate(tmp_path, time.time, mode="stock", **limits)) as gate:
        stock, client = GatewayDeployment(gate), gate.client()
        async with at_work(stock.worker(nginx_map=gate.config.map)):
            await admit(stock, client, allow=("GET /x",))

            async def check() -> None:
                async with httpx.AsyncClient(base_url=gate.url, verify=client.context) as http:
                    assert (await http.get("/x")).status_code == 200

            clients = [
                Slow(kind, gate.config.port, f"127.0.0.{2 + number}", gate.context())
                for number, kind in enumerate(SAYS)
                for _ in range(20)
            ]
            async with asyncio.timeout(60):
                answers = await all_held(clients, check)
        refused = {c.kind for c, answer in zip(clients, answers, strict=True) if answer.endswith(b"\r\n\r\nrefused\n")}
        assert refused == {"slow body", "slow chunks", "websocket"}
        assert len(gate.upstream.requests) == 1


@pytest.mark.parametrize("rule", ["GET /a+b$c", "* /a.b/**", "GET,PUT /"])
def test_a_rule_as_an_expression_means_what_it_says(rule: str) -> None:
    methods, path = rule.split(" ")
    method = "GET" if methods == "*" else methods.split(",")[-1]
    found = re.compile(f"^{expression(rule)}")
    assert found.search(f"{method} {path.removesuffix('/**')}")
    assert not found.search(f"{method} {path.removesuffix('/**').replace('+', 'aa').replace('.', 'x')}y/..")
    assert not found.search(f"{method} {path.removesuffix('/**')}//x")
