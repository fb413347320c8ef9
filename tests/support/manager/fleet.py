"""A fleet on a real bus: many hosts and applications in this process, with the real agents, workers and quotes.

Only what needs a machine of its own is simulated: enclaves (quotes are those of a simulated machine), the attestation
service (answered in the process) and nginx (the real lease table and reports, no nginx behind them).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import httpx

from attestgate.app_agent.main import AppAgent
from attestgate.bus import layout, subjects
from attestgate.bus.agent.link import Link
from attestgate.bus.api import BusError, Message
from attestgate.bus.auth import credentials
from attestgate.bus.client.nats import NatsBus, connect
from attestgate.bus.client.setup import ensure
from attestgate.bus.forward import event_of
from attestgate.bus.operator import order
from attestgate.enclave.simulated import pccs
from attestgate.host_agent.main import HostAgent
from attestgate.manager.assembly import assemble
from attestgate.manager.gateway.lease_table import LeaseTable
from attestgate.manager.gateway.reports import Reporter
from attestgate.manager.handlers.worker import Worker
from attestgate.schemas.admission import BUCKET, CRL, REVOKE, AppliedStatement, Lease, open_posted
from attestgate.schemas.enrolment import Action, AppEnrolment, Enrol, GatewayEnrolment, HostEnrolment, Placement
from attestgate.schemas.events import Event
from attestgate.schemas.settings import AppSettings, BusSettings, HostSettings, Timing
from tests.support.gateway.statements import FloorsInMemory
from tests.support.manager.world import APP_ENCLAVE, GATEWAY, HOST_ENCLAVE, LISTS, OPERATOR, World

MACHINE = "machine-a"
LOOK_S = 1.0
RETRY_S = 10
"""Long enough that agents on a slow machine do not resume needlessly."""
CALM = Timing(lease_s=600, recheck_s=300, evidence_window_s=120, skew_s=5, certificate_s=3600)
"""Windows that a busy machine can meet."""


class Fleet:
    """Use as an async context manager. `url` is the bus's; its keys are the world's."""

    def __init__(
        self,
        world: World,
        url: str,
        folder: Path,
        timing: Timing = CALM,
        replicas: int = 1,
        watched: Sequence[str] = (">",),
    ) -> None:
        """`watched` are the events that it hears: below `attest.v1.events`, patterns that do not overlap."""
        self.world = world
        self.url = url
        self.folder = folder
        self.timing = timing
        self.replicas = replicas
        self.watched = [f"{subjects.EVENTS}.{pattern}" for pattern in watched]
        self.events: list[Event] = []
        self.seen_at: dict[tuple[str, str, str], float] = {}
        """When (monotonic) an event of a kind, subject and name was first heard."""
        self._heard: set[str] = set()
        self.operator: NatsBus
        self._news: dict[tuple[str, str, str], asyncio.Event] = defaultdict(asyncio.Event)
        self._tasks: set[asyncio.Task[None]] = set()
        self._exit = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._exit.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exit.aclose()

    async def join(self, role: str, name: str) -> NatsBus:
        """A connection to the bus."""
        path = self.folder / "credentials" / f"{role}-{name}.creds"
        path.parent.mkdir(parents=True, exist_ok=True)
        credentials.issue(self.world.keys / "bus", role, name, path)
        bus = await connect([self.url], path)
        self._exit.push_async_callback(bus.close)
        return bus

    async def _start(self) -> None:
        self.list = LISTS / "clean.bin"
        manager = await self.join("manager", "setup")
        await ensure(manager, self.replicas)
        self.operator = await self.join("operator", OPERATOR)
        for pattern in self.watched:
            await self.operator.listen(pattern, self._hear)
        await self.operator.flush()
        for pattern in self.watched:
            self.spawn(self._look(pattern))
        transport = httpx.ASGITransport(app=pccs.application(self.world.authority))
        self._http = await self._exit.enter_async_context(httpx.AsyncClient(transport=transport, trust_env=False))
        self._exit.push_async_callback(self._stop)

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def worker(self, name: str) -> Worker:
        """Start a manager worker in this process."""
        bus = await self.join("manager", name)
        settings = self.world.manager_settings(self.folder / name, name, self.timing, "mlkem768-x25519")
        worker = assemble(settings, bus, self._http)
        self.spawn(worker.run())
        return worker

    async def gateway(self) -> None:
        """Start the gateway, enrol it, and put a policy in force; needs a worker."""
        bus = await self.join("gateway", GATEWAY)
        reporter = Reporter(GATEWAY, bus=bus, identity=self.world.gateway, emit=_nothing)
        self.spawn(reporter.publish_reports())
        self.spawn(self._admit(bus, reporter))
        await self.order(self.world.policies.command(self.world.author, version=1))
        await self.order(Enrol(subject=GatewayEnrolment(id=GATEWAY, identity=self._gateway_identity())))

    async def _admit(self, bus: NatsBus, reporter: Reporter) -> None:
        """A gateway worker's part without an nginx: believe statements, report what they let pass."""
        floors = FloorsInMemory()
        leases = LeaseTable("gateways", floors=floors, longest_lease_s=3600)
        async for entry in bus.bucket(BUCKET).watch():
            if entry is None or entry.value is None or entry.key.startswith((CRL, REVOKE)):
                continue
            statement, now = open_posted(entry.key, entry.value, self.world.managers), int(time.time())
            if leases.take(statement, entry.value, now) and isinstance(statement, Lease):
                applied = AppliedStatement(
                    key=statement.key,
                    state="admitted",
                    sequence=statement.sequence,
                    app_session=statement.app_session,
                )
                reporter.report([applied], "ab" * 16, now, floors=floors.written.counter)

    def _gateway_identity(self) -> bytes:
        return self.world.gateway.public

    async def order(self, action: Action) -> None:
        """Send an operator's command and wait until it is applied."""
        await order(self.operator, self.world.operator_key, action, 30.0)

    async def enrol_host(self, id: str) -> None:
        """Enrol a host; all are on one machine."""
        subject = HostEnrolment(id=id, mrenclaves=[HOST_ENCLAVE.mrenclave.hex()], platform=self.world.ppid(MACHINE))
        await self.order(Enrol(subject=subject))

    async def enrol_app(self, id: str, host: str) -> None:
        """Enrol an application on a host."""
        places = [Placement(host=host, volume=0)]
        await self.order(
            Enrol(subject=AppEnrolment(id=id, mrenclaves=[APP_ENCLAVE.mrenclave.hex()], placements=places))
        )

    async def host(self, id: str) -> None:
        """Start a host's agent."""
        settings = HostSettings(
            profile="development",
            bus=BusSettings(url=self.url, credentials=Path("none")),
            id=id,
            measured=Path("none"),
            measurement_list=self.list,
            volumes=[self._volume(id)],
            retry_s=RETRY_S,
        )
        link = Link(await self.join("host", id), "host", id)
        await link.listen()
        enclave = self.world.enclave(MACHINE, HOST_ENCLAVE)
        self.spawn(HostAgent(enclave, link, settings, self.world.measured).run())

    async def app(self, id: str, host: str) -> None:
        """Start an application's agent."""
        settings = AppSettings(
            profile="development",
            bus=BusSettings(url=self.url, credentials=Path("none")),
            id=id,
            measured=Path("none"),
            host=host,
            volume=self._volume(host),
            retry_s=RETRY_S,
        )
        link = Link(await self.join("app", subjects.app_name(host, id)), "app", id, host)
        await link.listen()
        enclave = self.world.enclave(MACHINE, APP_ENCLAVE)
        self.spawn(AppAgent(enclave, link, settings, self.world.measured).run())

    async def until(self, kind: str, id: str, what: str, within_s: float) -> None:
        """Return once an event has been heard. Raises TimeoutError."""
        async with asyncio.timeout(within_s):
            await self._news[kind, id, what].wait()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something until the fleet ends."""
        self._tasks.add(asyncio.create_task(work))

    def _volume(self, host: str) -> Path:
        path = self.folder / "volumes" / host
        path.mkdir(parents=True, exist_ok=True)
        return path

    async def _look(self, pattern: str) -> None:
        """Read the events missed while the connection or its server was down, until cancelled."""
        last, more = 0, True
        while True:
            try:
                page, more = await self.operator.page(layout.EVENTS.name, last, pattern)
            except BusError:
                page, more = [], False
            for stored in page:
                last = stored.sequence
                await self._hear(Message(stored.subject, stored.data, stored.headers))
            if not more:
                await asyncio.sleep(LOOK_S)

    async def _hear(self, message: Message) -> None:
        event = event_of(message.subject, message.data)
        if event is None or event.id in self._heard:
            return
        self._heard.add(event.id)
        self.events.append(event)
        key = event.kind, event.subject, event.what
        self.seen_at.setdefault(key, time.monotonic())
        self._news[key].set()

    def failed(self) -> list[BaseException]:
        """The exception that ended a task that should never end."""
        found = []
        for task in self._tasks:
            if task.done():
                with contextlib.suppress(asyncio.CancelledError):
                    found.append(task.exception() or RuntimeError("a task has ended"))
        return found


async def _nothing(kind: str, id: str, what: str, data: dict[str, object]) -> None:
    """A gateway's own events are not measured."""
