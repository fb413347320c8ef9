"""A worker is killed with SIGKILL before each of its operations on the real bus: the same end as without.

One operation a run is slow, since the bus waits a second before it delivers again. Every sixteenth is taken here;
all of them with ATTESTGATE_CRASH=all.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from attestgate.app_agent.main import AppAgent
from attestgate.bus import layout, subjects
from attestgate.bus.agent.link import Link
from attestgate.bus.api import Message
from attestgate.bus.auth import credentials
from attestgate.bus.client.nats import NatsBus, connect
from attestgate.bus.client.setup import ensure
from attestgate.bus.operator import order
from attestgate.bus.server.embedded import EmbeddedServer
from attestgate.enclave.simulated import pccs
from attestgate.host_agent.main import HostAgent
from attestgate.schemas.base import parse_json
from attestgate.schemas.enrolment import Action, AppEnrolment, Enrol, GatewayEnrolment, HostEnrolment, Placement
from attestgate.schemas.events import Event
from attestgate.schemas.settings import AppSettings, BusSettings, HostSettings
from tests.support.audit.decisions import decided, said
from tests.support.manager.gateway import Gateway
from tests.support.manager.world import APP_ENCLAVE, GATEWAY, HOST_ENCLAVE, LISTS, LONG, OPERATOR, World
from tests.support.threats import rows, threat

pytestmark = pytest.mark.stack
OPERATIONS = 110
"""A little more than one enrolment of a host and an application takes."""
STEP = 1 if os.environ.get("ATTESTGATE_CRASH") == "all" else 16
WITHIN_S = 40.0


class Killable:
    """The real bus, one world, and a worker at a time."""

    def __init__(self, world: World, folder: Path, server: EmbeddedServer, pccs_url: str, operator: NatsBus) -> None:
        self.world = world
        self.folder = folder
        self.server = server
        self.pccs_url = pccs_url
        self.bus = operator
        self.events: list[Event] = []
        self._news = asyncio.Event()

    async def hear(self, message: Message) -> None:
        event = parse_json(Event, message.data, source=message.subject)
        if event.id not in {seen.id for seen in self.events}:
            self.events.append(event)
            self._news.set()

    async def until(self, kind: str, id: str, what: str) -> Event:
        try:
            async with asyncio.timeout(WITHIN_S):
                while True:
                    for event in self.events:
                        if (event.kind, event.subject, event.what) == (kind, id, what):
                            return event
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            told = [f"{e.kind} {e.subject} {e.what} {e.data.get('reasons', '')}" for e in self.events[-20:]]
            raise AssertionError(f"no {kind} {id} {what} among:\n" + "\n".join(told)) from None

    def happened(self, kind: str, id: str) -> list[str]:
        return [event.what for event in self.events if (event.kind, event.subject) == (kind, id)]

    async def order(self, action: Action) -> None:
        await order(self.bus, self.world.operator_key, action, WITHIN_S)

    def settings(self) -> Path:
        settings = self.world.manager_settings(self.folder / "state", "manager", LONG, "mlkem768-x25519")
        table = settings.model_dump(mode="json")
        table["bus"] = {"url": self.server.url, "credentials": str(self.credentials("manager", "manager"))}
        table["attestation"]["pccs_url"] = self.pccs_url
        path = self.folder / "manager.toml"
        path.write_text(tomli_w.dumps(_without_none(table)))
        return path

    def credentials(self, role: str, name: str) -> Path:
        path = self.folder / f"{role}-{name}.creds"
        if not path.exists():
            credentials.issue(self.world.keys / "bus", role, name, path)
        return path

    @contextlib.asynccontextmanager
    async def worker(self, die_at: int) -> AsyncIterator[asyncio.subprocess.Process]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.crash.worker",
            str(self.settings()),
            str(die_at),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"working\n"
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    @contextlib.asynccontextmanager
    async def agents(self, host: str, app: str) -> AsyncIterator[None]:
        volume = self.folder / host
        volume.mkdir()
        listed = self.folder / f"{host}.list"
        listed.write_bytes((LISTS / "clean.bin").read_bytes())
        common: dict[str, Any] = {"profile": "development", "measured": Path("none"), "retry_s": 1}
        nowhere = BusSettings(url="given", credentials=Path("none"))
        host_settings = HostSettings(bus=nowhere, id=host, measurement_list=listed, volumes=[volume], **common)
        app_settings = AppSettings(bus=nowhere, id=app, host=host, volume=volume, **common)
        async with contextlib.AsyncExitStack() as stack:
            tasks = []
            for role, id in (("host", host), ("app", app)):
                name = id if role == "host" else subjects.app_name(host, app)
                bus = await connect([self.server.url], self.credentials(role, name))
                stack.push_async_callback(bus.close)
                link = Link(bus, "host", id) if role == "host" else Link(bus, "app", id, host)
                await link.listen()
                agent: HostAgent | AppAgent
                if role == "host":
                    enclave = self.world.enclave("machine-a", HOST_ENCLAVE)
                    agent = HostAgent(enclave, link, host_settings, self.world.measured)
                else:
                    enclave = self.world.enclave("machine-a", APP_ENCLAVE)
                    agent = AppAgent(enclave, link, app_settings, self.world.measured)
                tasks.append(asyncio.create_task(agent.run()))
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


def _without_none(table: Any) -> Any:
    if isinstance(table, dict):
        return {key: _without_none(value) for key, value in table.items() if value is not None}
    return [_without_none(item) for item in table] if isinstance(table, list) else table


@pytest.fixture
async def killable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Killable]:
    for name, consumer in list(layout.CONSUMERS.items()):
        monkeypatch.setitem(layout.CONSUMERS, name, dataclasses.replace(consumer, ack_wait_s=1))
    world = World(tmp_path / "world")
    async with contextlib.AsyncExitStack() as stack:
        server = EmbeddedServer(tmp_path / "nats", credentials.load(world.keys / "bus"))
        await stack.enter_async_context(server)
        manager = tmp_path / "setup.creds"
        credentials.issue(world.keys / "bus", "manager", "manager", manager)
        bus = await connect([server.url], manager)
        await ensure(bus)
        await bus.close()
        url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        service = asyncio.create_task(pccs.serve(world.authority, ready=url.set_result))
        stack.push_async_callback(_end, service)
        credentials.issue(world.keys / "bus", "operator", OPERATOR, tmp_path / "operator.creds")
        operator = await connect([server.url], tmp_path / "operator.creds")
        stack.push_async_callback(operator.close)
        killable = Killable(world, tmp_path, server, await url, operator)
        await operator.listen(f"{subjects.EVENTS}.>", killable.hear)
        credentials.issue(world.keys / "bus", "gateway", GATEWAY, tmp_path / "gateway.creds")
        gateway_bus: Any = await connect([server.url], tmp_path / "gateway.creds")
        stack.push_async_callback(gateway_bus.close)
        clock: Any = time.time
        gateway = Gateway(gateway_bus, clock, world.gateway, world.managers)
        stack.push_async_callback(_end, asyncio.create_task(gateway.run()))
        yield killable


async def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@threat(rows.WORKER_KILLED)
async def test_killed_before_every_operation(killable: Killable) -> None:
    world = killable.world
    public = world.gateway.public
    points = range(1, OPERATIONS, STEP)
    async with killable.worker(0):
        await killable.order(world.policies.command(world.author, version=1))
        await killable.order(Enrol(subject=GatewayEnrolment(id=GATEWAY, identity=public)))
        for point in points:
            host, app = f"h{point}", f"a{point}"
            enrolled = HostEnrolment(
                id=host, mrenclaves=[HOST_ENCLAVE.mrenclave.hex()], platform=world.ppid("machine-a")
            )
            await killable.order(Enrol(subject=enrolled))
            placed = AppEnrolment(
                id=app, mrenclaves=[APP_ENCLAVE.mrenclave.hex()], placements=[Placement(host=host, volume=0)]
            )
            await killable.order(Enrol(subject=placed))
    died: list[int] = []
    for point in points:
        host, app = f"h{point}", f"a{point}"
        async with killable.worker(point) as doomed, killable.agents(host, app):
            admitted = asyncio.create_task(killable.until("app", app, "admitted"))
            death = asyncio.create_task(doomed.wait())
            await asyncio.wait({admitted, death}, return_when=asyncio.FIRST_COMPLETED, timeout=WITHIN_S)
            if death.done():
                died.append(point)
                async with killable.worker(0):
                    await admitted
            await admitted
            death.cancel()
        _same_end(killable, point, host, app)
    await _log_has_all(killable, [f"a{point}" for point in points])
    assert len(died) >= len(points) * 2 // 3, f"died only at {died}: OPERATIONS is too high"


async def _log_has_all(killable: Killable, apps: list[str]) -> None:
    """The decision log verifies, and has what each application's session was granted, once and in order."""
    credentials.issue(killable.world.keys / "bus", "manager", "auditor", killable.folder / "auditor.creds")
    bus = await connect([killable.server.url], killable.folder / "auditor.creds")
    try:
        decisions = await decided(bus, killable.world, int(time.time()))
    finally:
        await bus.close()
    for app in apps:
        session = next(e.session for e in killable.events if (e.subject, e.what) == (app, "admitted"))
        assert session is not None
        assert said(decisions, session)[:3] == ["accepted", "issued", "admitted"], app
    assert len({decision.id for decision in decisions}) == len(decisions)


def _same_end(killable: Killable, point: int, host: str, app: str) -> None:
    """Every step of the sessions that got there happened, in order, and once."""
    session = next(e.session for e in killable.events if (e.subject, e.what) == (app, "admitted"))
    steps = [e.what for e in killable.events if e.session == session]
    expected = ["challenged", "waiting-for-key", "granted", "proven", "certified", "admitted"]
    assert [what for what in steps if what in expected] == expected, f"point {point}: {steps}"
    assert "trusted" in killable.happened("host", host), f"point {point}"
    serials = {e.data["serial"] for e in killable.events if e.session == session and "serial" in e.data}
    assert len(serials) == 1, f"point {point}: issued {serials}"
