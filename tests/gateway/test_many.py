"""Many at once, and more than one gateway: nobody passes later than the reports say, and nobody else is disturbed."""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from attestgate.bus.memory.server import MemoryServer
from attestgate.compose.nginx.process import Nginx
from attestgate.manager.gateway.dictionary import Dictionary
from attestgate.manager.gateway.entries import DictionaryEntry
from attestgate.schemas.admission import open_report, post
from attestgate.schemas.signing import TrustedKeys
from tests.support.gateway.deployment import HOST, TRUST_DOMAIN, GatewayDeployment, at_work, new_signer, status
from tests.support.gateway.gate import Client, Gate, host_lease, lease, running, until, withdrawal

pytestmark = pytest.mark.stack


class Application:
    """Asks without a pause, and keeps when each request began and what came of it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.answers: list[tuple[float, int]] = []
        self.failures: list[str] = []

    async def run(self, over: asyncio.Event) -> None:
        while not over.is_set():
            begun = time.monotonic()
            try:
                self.answers.append((begun, (await self.client.http.get("/x")).status_code))
            except httpx.HTTPError as error:
                self.failures.append(type(error).__name__)


async def test_fifty_under_way_and_ten_withdrawn(deployment: GatewayDeployment) -> None:
    applications = [Application(deployment.gate.client(app=f"a{i}")) for i in range(50)]
    gone, others = applications[::5], [a for i, a in enumerate(applications) if i % 5]
    over = asyncio.Event()
    async with at_work(deployment.worker()):
        await deployment.admit(*(a.client for a in applications))
        async with asyncio.TaskGroup() as tasks:
            for application in applications:
                tasks.create_task(application.run(over))
            reported: dict[str, float] = {}
            for application in gone:
                await deployment.withdraw(application.client.key)
                reported[application.client.key] = time.monotonic()
            last = max(reported.values())

            async def answered() -> bool:
                return all(a.answers and a.answers[-1][0] > last for a in applications)

            await until(answered, bool)
            over.set()
    for application in gone:
        later = [code for begun, code in application.answers if begun > reported[application.client.key]]
        assert set(later) == {403}
        # An answer that was on its way when the admission ended is cut; nothing else may fail.
        assert set(application.failures) <= {"RemoteProtocolError"}
    for application in others:
        assert application.failures == []
        assert {code for _, code in application.answers} == {200}


async def test_renewals_are_applied_in_batches_and_each_signature_is_checked(deployment: GatewayDeployment) -> None:
    """What has come while nginx was asked goes to it in one request; what the manager has not signed is left out."""
    puts: list[dict[str, DictionaryEntry]] = []
    gate, late = deployment.gate, asyncio.Event()

    class Counted(Dictionary):
        async def put(self, epoch: str, entries: Mapping[str, DictionaryEntry]) -> None:
            puts.append(dict(entries))
            await super().put(epoch, entries)
            if late.is_set():
                late.clear()
                await renew()

    clients = [gate.client(app=f"a{i}") for i in range(60)]
    forged, now = clients[30], int(time.time())

    async def renew() -> None:
        for client in clients:
            signer = new_signer() if client is forged else None
            await deployment.say(lease(client, now, sequence=3, lease_s=40), signer=signer)
        while deployment.bus.waiting():
            await asyncio.sleep(0)
        for _ in range(20):  # turns of the loop in which the worker takes the last one in
            await asyncio.sleep(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attestgate.manager.gateway.worker.Dictionary", Counted)
        async with at_work(deployment.worker()):
            await deployment.admit(*clients)
            late.set()
            await deployment.say(host_lease(now, sequence=2))
            for client in clients:
                if client is not forged:
                    await deployment.reported(client.key, "admitted", 3)
            refused = await deployment.told("refused")
    assert refused["key"] == forged.key
    renewals = [entries for entries in puts if any(e.sequence == 3 for e in entries.values())]
    assert [set(entries) for entries in renewals] == [{c.key for c in clients} - {forged.key}]
    assert {await status(client) for client in clients[::10]} == {200}


def beside(gate: Gate, folder: Path) -> Gate:
    """A second gateway of the same set: an nginx of its own, with the same CA and name."""
    other = Gate(folder, gate.now)
    names = ("certificate", "key", "client_ca")
    other.config = other.config.model_copy(update={name: getattr(gate.config, name) for name in names})
    other.nginx = Nginx(other.config)
    other.authority = gate.authority
    return other


async def test_two_gateways_agree(gate: Gate, tmp_path: Path) -> None:
    server = MemoryServer()
    manager = server.connect()
    async with AsyncExitStack() as stack:
        second = await stack.enter_async_context(running(beside(gate, tmp_path / "second")))
        one, two = GatewayDeployment(gate), GatewayDeployment(second)
        two.manager = one.manager
        for deployment in (one, two):
            await stack.enter_async_context(at_work(deployment.worker(server.connect())))
        client = gate.client()
        there = httpx.AsyncClient(base_url=second.url, verify=client.context)
        await stack.enter_async_context(there)
        bucket, now = manager.bucket("admissions"), int(time.time())
        for statement in (host_lease(now), lease(client, now)):
            await bucket.put(statement.key, post(one.manager, statement))
        heard: dict[bytes, set[str]] = {}

        async def reports() -> None:
            async for delivery in manager.consume("gateway-reports"):
                for identity in (one.identity, two.identity):
                    public = identity.public
                    if public in delivery.data:
                        said = open_report(
                            delivery.data, "g1", TrustedKeys(TRUST_DOMAIN, {"gateway": {public}})
                        ).applied
                        heard.setdefault(public, set()).update(f"{a.key} {a.state}" for a in said)
                await delivery.done()

        listening = asyncio.create_task(reports())

        async def reported() -> list[set[str]]:
            return list(heard.values())

        def both(what: str) -> Callable[[list[set[str]]], bool]:
            return lambda told: sum(what in said for said in told) == 2

        await until(reported, both(f"{client.key} admitted"))
        assert await status(client) == (await there.get("/x")).status_code == 200
        assert await gate.contents() == await second.contents()
        gone = withdrawal(HOST, now, reason="ima.unknown")
        await bucket.put(HOST, post(one.manager, gone))
        await until(reported, both(f"{HOST} withdrawn"))
        assert await status(client) == (await there.get("/x")).status_code == 403
        listening.cancel()
        await asyncio.wait([listening])
    await manager.close()


async def test_a_worker_stopped_longer_than_the_lease(deployment: GatewayDeployment) -> None:
    """Access ends by itself; when the worker is back, the lease that lapsed meanwhile does not come back with it."""
    client, other = deployment.gate.client(), deployment.gate.client(app="a2")
    async with at_work(deployment.worker()):
        await deployment.admit(client, lease_s=2)

    async def answer() -> int:
        return await status(client)

    await until(answer, lambda code: code == 403)
    async with at_work(deployment.worker()):
        await deployment.admit(other, lease_s=300, sequence=2)
        assert await status(other) == 200
        assert await status(client) == 403
