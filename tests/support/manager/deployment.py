"""A whole deployment in one process: real workers, real agents and quotes of a simulated machine, on a bus in memory.

Nothing here sleeps: the manager's clock is the test's, and whoever waits, waits for an event.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from attestgate.app_agent.main import AppAgent
from attestgate.bus import subjects
from attestgate.bus.agent.link import Link
from attestgate.bus.memory.server import MemoryBus
from attestgate.bus.memory.stream import MemoryConsumer
from attestgate.enclave.simulated import pccs
from attestgate.enclave.simulated.quoting_enclave import EnclaveIdentity
from attestgate.host_agent.main import HostAgent
from attestgate.manager.assembly import assemble
from attestgate.manager.handlers.rate_limit import Limiter
from attestgate.manager.handlers.worker import Worker
from attestgate.manager.policy.signers import Signers
from attestgate.schemas.base import Refusal, pack, unpack
from attestgate.schemas.binding import Role
from attestgate.schemas.enrolment import (
    COMMAND,
    Action,
    AppEnrolment,
    Command,
    Enrol,
    GatewayEnrolment,
    HostEnrolment,
    Placement,
    RecheckNow,
    commands_of,
)
from attestgate.schemas.events import Event
from attestgate.schemas.settings import AppSettings, BusSettings, HostSettings, SuiteSetting, Timing
from attestgate.schemas.signing import Signed
from tests.support.manager.gateway import Gateway
from tests.support.manager.wire import Clock, Held, Wire
from tests.support.manager.witness import PATIENCE_S, Witness
from tests.support.manager.world import (
    APP_ENCLAVE,
    GATEWAY,
    HOST_ENCLAVE,
    LISTS,
    OPERATOR,
    TIMING,
    World,
)


@dataclass
class Agent:
    """A running agent and the bus connection it has."""

    task: asyncio.Task[None]
    bus: MemoryBus

    async def stop(self) -> None:
        """Kill it."""
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task
        await self.bus.close()


@dataclass
class Deployment(Witness):
    """One deployment under test."""

    folder: Path
    clock: Clock
    wire: Wire
    http: httpx.AsyncClient
    timing: Timing
    suite: SuiteSetting = "mlkem768-x25519"
    managers_clock: Clock = field(init=False)
    gateways_clock: Clock = field(init=False)
    workers: list[Worker] = field(default_factory=list)
    agents: list[Agent] = field(default_factory=list)
    gateway: Gateway = field(init=False)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _running: list[asyncio.Task[None]] = field(default_factory=list)
    _sequence: int = 0

    # What there is

    @property
    def bus_clock(self) -> Clock:
        """The bus's clock."""
        assert isinstance(self.wire.now, Clock)
        return self.wire.now

    async def start(self, workers: int) -> None:
        """Switch on: workers, gateway, policy."""
        self.managers_clock, self.gateways_clock = Clock(self.clock), Clock(self.clock)
        self.bus = self.wire.connect()
        await self.bus.listen(f"{subjects.EVENTS}.>", self._hear)
        for _ in range(workers):
            self.add_worker()
        if workers:
            await self.begin()

    async def begin(self) -> None:
        """Put a policy in force and enrol the gateway: needs a worker."""
        self.gateway = Gateway(
            self.wire.connect(),
            self.gateways_clock,
            self.world.gateway,
            self.world.managers,
            self.gateways_clock.steady,
        )
        self._tasks.append(asyncio.create_task(self.gateway.run()))
        await self.order(self.world.policies.command(self.world.author, version=1))
        await self.enrol_gateway()

    async def enrol_gateway(self) -> None:
        """Enrol the gateway."""
        await self.order(Enrol(subject=GatewayEnrolment(id=GATEWAY, identity=self.world.gateway.public)))

    def assemble(self, bus: Any, name: str = "") -> Worker:
        """A worker that does not run yet, with the local state of its name, or one of its own."""
        name = name or f"manager-{len(self.workers)}"
        settings = self.world.manager_settings(self.folder / name, name, self.timing, self.suite)
        worker = assemble(settings, bus, self.http, self.managers_clock, steady=self.managers_clock.steady)
        # Its clock is the real one; a test that replays everything is to be refused for what it says, not for haste.
        worker._limiter = Limiter(1e6, 1_000_000)
        self.workers.append(worker)
        return worker

    @property
    def signers(self) -> Signers:
        """Whose commands the workers take."""
        settings = self.world.manager_settings(self.folder, "any", self.timing, self.suite)
        return Signers(settings.trust_domain, settings.operators, {self.world.manager.public})

    def add_worker(self) -> Worker:
        """One more worker."""
        return self.run(self.wire.connect())

    def run(self, bus: Any, name: str = "") -> Worker:
        """One more worker, on a connection of its own kind."""
        worker = self.assemble(bus, name)
        self._running.append(asyncio.create_task(worker.run()))
        return worker

    def worker_died(self) -> bool:
        """Whether a worker has died since this was last asked."""
        dead = [task for task in self._running if task.done()]
        for task in dead:
            self._running.remove(task)
            assert task.exception() is not None
        return bool(dead)

    async def kill_workers(self) -> None:
        """End every worker, whatever it is doing."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._running.clear()

    async def enrol_host(self, id: str = "h1", machine: str = "machine-a") -> None:
        """Enrol a host on a machine."""
        await self.order(self.host_enrolment(id, machine))

    def host_enrolment(self, id: str, machine: str) -> Enrol:
        """What enrols a host on a machine."""
        mrenclaves = [HOST_ENCLAVE.mrenclave.hex()]
        return Enrol(subject=HostEnrolment(id=id, mrenclaves=mrenclaves, platform=self.world.ppid(machine)))

    async def enrol_app(self, id: str = "a1", host: str = "h1") -> None:
        """Enrol an application on a host."""
        await self.order(self.app_enrolment(id, host))

    def app_enrolment(self, id: str, host: str) -> Enrol:
        """What enrols an application on a host."""
        mrenclaves, placements = [APP_ENCLAVE.mrenclave.hex()], [Placement(host=host, volume=0)]
        return Enrol(subject=AppEnrolment(id=id, mrenclaves=mrenclaves, placements=placements))

    @property
    def volume(self) -> Path:
        """The data volume of every host and application here."""
        return self.folder / "volume"

    @property
    def measurement_list(self) -> Path:
        """The hosts' measurement list: a file that the test may change."""
        return self.folder / "list"

    async def host(
        self,
        id: str = "h1",
        machine: str = "machine-a",
        identity: EnclaveIdentity = HOST_ENCLAVE,
        retry_s: float = 1.0,
        tpm: str | None = None,
    ) -> Agent:
        """Start a host's agent; `tpm` is where its TPM's service is."""
        settings = HostSettings(
            profile="development",
            bus=BusSettings(url="memory", credentials=Path("none")),
            id=id,
            measured=Path("none"),
            measurement_list=self.measurement_list,
            volumes=[self.volume],
            tpm=tpm,
        ).model_copy(update={"retry_s": retry_s})
        enclave, measured = self.world.enclave(machine, identity), self.world.measured
        return await self._start("host", id, None, lambda link: HostAgent(enclave, link, settings, measured))

    async def app(
        self,
        id: str = "a1",
        host: str = "h1",
        machine: str = "machine-a",
        identity: EnclaveIdentity = APP_ENCLAVE,
        retry_s: float = 1.0,
        **measured: object,
    ) -> Agent:
        """Start an application's agent; `measured` are changes of its measured settings."""
        settings = AppSettings(
            profile="development",
            bus=BusSettings(url="memory", credentials=Path("none")),
            id=id,
            measured=Path("none"),
            host=host,
            volume=self.volume,
        ).model_copy(update={"retry_s": retry_s})
        enclave, read = self.world.enclave(machine, identity), self.world.measured.model_copy(update=measured)
        return await self._start("app", id, host, lambda link: AppAgent(enclave, link, settings, read))

    async def trusted(self) -> Agent:
        """h1 trusted and a1 enrolled on it, from nothing."""
        await self.enrol_host()
        await self.enrol_app()
        host = await self.host()
        await self.until("host", "h1", "trusted")
        return host

    async def admitted(self) -> tuple[Agent, Agent]:
        """h1 trusted and a1 admitted on it, from nothing."""
        host = await self.trusted()
        app = await self.app()
        await self.until("app", "a1", "admitted")
        await self.quiet()
        return host, app

    # What the test does

    async def order(self, action: Action, **changes: Any) -> Event:
        """Have an operator's command applied, and return the event that answers it."""
        return await self.send_command(self.command(action, **changes))

    def command(self, action: Action, **changes: Any) -> bytes:
        """An operator's next command."""
        self._sequence += 1
        fields: dict[str, Any] = {
            "sequence": int(self.clock() * 1_000_000) + self._sequence,
            "expires_at": int(self.clock()) + 60,
            "action": action,
        }
        return pack(self.world.operator.sign(COMMAND, commands_of(OPERATOR), Command(**fields | changes)))

    async def send_command(self, data: bytes, name: str = OPERATOR) -> Event:
        """Publish a command and wait for its answer."""
        since = len(self.events)
        await self.bus.publish(order_subject(name, data), data)
        return await self.seen(lambda e: e.kind == "op" and e.what in ("applied", "refused"), since=since)

    async def recheck(self, kind: Role, id: str) -> None:
        """Order a recheck, and return once it is passed."""
        since = len(self.events)
        await self.order(RecheckNow(kind=kind, id=id))
        await self.until(kind, id, "rechecked", since=since)

    async def recheck_both(self) -> None:
        """Order one of h1 and of a1, and return once both are passed."""
        await self.recheck("host", "h1")
        await self.recheck("app", "a1")

    async def next_rechecks(self) -> None:
        """Let time pass until h1 and a1 are due, and return once both are passed."""
        since = len(self.events)
        await self.advance(self.timing.recheck_s)
        await self.until("host", "h1", "rechecked", since=since)
        await self.until("app", "a1", "rechecked", since=since)
        await self.quiet()

    async def started_again(self, agent: Agent) -> Agent:
        """h1's agent ended, and soon after started anew: its second session is trusted. Returns the new agent."""
        await agent.stop()
        await self.advance(2)
        since = len(self.events)
        host = await self.host()
        await self.until("host", "h1", "trusted", since=since)
        await self.quiet()
        return host

    async def second_session(self, step: str, held: str | None = None) -> tuple[bytes, Held, int]:
        """h1's agent trusted, ended, and started again.

        What it said at `step` in its first session; what it says there, or at `held`, in its second, kept back; and
        where the second one's events begin.
        """
        await self.enrol_host()
        first = await self.host()
        await self.until("host", "h1", "trusted")
        await first.stop()
        (old,) = self.wire.said(subjects.inbound("host", "h1", step))
        await self.advance(2)
        kept = self.wire.hold(subjects.inbound("host", "h1", held or step))
        since = len(self.events)
        await self.host()
        return old, await kept, since

    async def advance(self, seconds: float) -> None:
        """Move the clock, and let happen what is due."""
        self.clock.at += seconds
        self.wire.tick()
        await self.quiet()

    @asynccontextmanager
    async def passing(self) -> AsyncIterator[None]:
        """Let the clock go on by itself within: what was put back for a moment comes again."""

        async def move() -> None:
            while True:
                await asyncio.sleep(0.002)
                self.clock.at += 0.05
                self.wire.tick()

        moving = asyncio.create_task(move())
        try:
            yield
        finally:
            moving.cancel()
            await asyncio.wait([moving])

    async def pass_until(self, holds: Callable[[], bool]) -> None:
        """Let the clock go on by itself until something holds of what is on the bus."""
        async with asyncio.timeout(PATIENCE_S), self.passing():
            while not holds():
                await self.wire.changed()

    async def quiet(self) -> None:
        """Return once the workers have nothing left to do now."""
        async with asyncio.timeout(PATIENCE_S):
            while any(self._waits(consumer) == "now" for consumer in self.wire.consumers.values()):
                await self.wire.changed()

    async def settled(self) -> None:
        """Return once nothing is left to do, nor put back for later."""
        async with asyncio.timeout(PATIENCE_S):
            while any(self._waits(consumer) for consumer in self.wire.consumers.values()):
                await self.quiet()
                self.clock.at += 0.5
                self.wire.tick()

    # Within

    def _waits(self, consumer: MemoryConsumer) -> str | None:
        """Whether a consumer's messages are in hand or due `now`, put back for `later`, or none."""
        found = None
        now = self.wire.now()
        for stored in consumer._stream.items():
            if any(subjects.matches(pattern, stored.subject) for pattern in consumer.layout.filter_subjects):
                out = consumer._out.get(stored.sequence)
                if out is None or out.again_at <= now or out.again_at >= now + consumer.layout.ack_wait_s - 1:
                    return "now"
                found = "later"
        return found

    async def _start(
        self, role: Role, id: str, host: str | None, agent: Callable[[Link], HostAgent | AppAgent]
    ) -> Agent:
        bus = self.wire.connect()
        link = Link(bus, role, id, host)
        await link.listen()
        started = Agent(asyncio.create_task(agent(link).run()), bus)
        self.agents.append(started)
        return started

    async def stop(self) -> None:
        """Switch everything off."""
        for agent in self.agents:
            await agent.stop()
        await self.kill_workers()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.bus.close()


def order_subject(name: str, data: bytes) -> str:
    """Where an operator publishes a command; one that cannot be read goes with the small ones."""
    do = "enrol"
    with suppress(Refusal):
        do = unpack(Command, unpack(Signed, data).payload).action.do
    return subjects.operator(name, do)


@asynccontextmanager
async def deployed(
    world: World,
    folder: Path,
    *,
    timing: Timing = TIMING,
    suite: SuiteSetting = "mlkem768-x25519",
    workers: int = 1,
) -> AsyncIterator[Deployment]:
    """A running deployment with a policy, and nothing else enrolled."""
    async with AsyncExitStack() as stack:
        transport = httpx.ASGITransport(app=pccs.application(world.authority))
        http = await stack.enter_async_context(httpx.AsyncClient(transport=transport, trust_env=False))
        clock = Clock()
        deployment = Deployment(world, folder, clock, Wire(Clock(clock)), http, timing, suite)
        deployment.volume.mkdir(parents=True)
        deployment.measurement_list.write_bytes((LISTS / "clean.bin").read_bytes())
        stack.push_async_callback(deployment.stop)
        await deployment.start(workers)
        yield deployment
