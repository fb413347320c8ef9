"""A whole deployment in one process: real workers, real agents and quotes of a simulated machine, on a bus in memory.

Nothing here sleeps: the manager's clock is the test's, and whoever waits, waits for an event. `Wire` is the bus in the
hands of its operator: it shows everything, and lets a test change, hold, repeat or invent messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app_agent.main import AppAgent
from bus import subjects
from bus.agent import Link
from bus.api import Message
from bus.memory import MemoryBus, MemoryDelivery, MemoryServer
from bus.memory_stream import MemoryConsumer
from compose.policies import Policies
from enclave.api import KeyPolicy
from enclave.simulated import authority, pccs, platform
from enclave.simulated.platform import Platform
from enclave.simulated.quoting_enclave import EnclaveIdentity
from host_agent.main import HostAgent
from manager import deployment
from manager.gateway.ledger import Ledger
from manager.keyfiles import read_identity, read_secret
from manager.limits import Limiter
from manager.main import assemble
from manager.sessions.record import AppRecord, HostRecord, record_key
from manager.sessions.states import State
from manager.storage_keys import StorageKeyFile
from manager.vault import Vault
from manager.worker import Worker
from schemas.admission import BUCKET, Applied, GatewayReport, Lease, open_posted, sign_report
from schemas.base import Refusal, Secret, pack, parse_json
from schemas.binding import Role
from schemas.enrolment import Action, AppEnrolment, Command, Enrol, GatewayEnrolment, HostEnrolment, Placement
from schemas.events import Event
from schemas.settings import (
    AppSettings,
    AttestationSettings,
    BusSettings,
    GatewaySet,
    HostSettings,
    ManagerSettings,
    Measured,
    OperatorSettings,
    SuiteSetting,
    Timing,
)
from schemas.sgx import PlatformIdentity
from schemas.signing import sign

LISTS = Path(__file__).resolve().parents[1] / "vectors" / "ima" / "debian12"
MRSIGNER = b"\x22" * 32
HOST_ENCLAVE = EnclaveIdentity(mrenclave=b"\x11" * 32, mrsigner=MRSIGNER, isv_prod_id=1, isv_svn=1, debug=False)
APP_ENCLAVE = EnclaveIdentity(mrenclave=b"\x33" * 32, mrsigner=MRSIGNER, isv_prod_id=1, isv_svn=1, debug=False)
OTHER_ENCLAVE = EnclaveIdentity(mrenclave=b"\x44" * 32, mrsigner=MRSIGNER, isv_prod_id=1, isv_svn=1, debug=False)
TIMING = Timing(lease_s=30, recheck_s=10, evidence_window_s=10, skew_s=5, certificate_s=3600)
LONG = Timing(lease_s=3600, recheck_s=1800, evidence_window_s=600, skew_s=5, certificate_s=86400)
"""Windows so long that a redelivery after the consumer's 30 s still falls within them."""
PATIENCE_S = 20.0
KEY_VALUE = "$KV."
GATEWAY, OPERATOR, AUTHOR = "gateway-1", "operator", "policy-author"
Held = tuple[str, bytes]
Meddle = Callable[[str, bytes], Iterable[tuple[str, bytes]]]
R = TypeVar("R", HostRecord, AppRecord)


class Clock:
    """The manager's and the bus's clock."""

    def __init__(self) -> None:
        self.at = float(int(time.time()))

    def __call__(self) -> float:
        return self.at


@dataclass(frozen=True)
class Enclave:
    """An enclave that runs on a simulated machine: its quotes are what the machine's daemon would make."""

    machine: Platform
    identity: EnclaveIdentity
    simulated: bool = True

    def quote(self, report_data: bytes) -> bytes:
        return self.machine.quote(self.identity, report_data)

    def sealing_key(self, policy: KeyPolicy) -> Secret:
        return self.machine.sealing_key(self.identity, policy)


class Wire(MemoryServer):
    """The bus, as its operator sees and changes it. `meddle` turns each message into what is delivered in its place."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__(now)
        self.meddle: Meddle | None = None
        self.seen: list[tuple[str, bytes]] = []
        self._holds: list[tuple[str, asyncio.Future[Held]]] = []
        self._bucket_ids: set[str] = set()
        self.takers: dict[str, list[MemoryBus]] = {}

    def store(self, subject: str, data: bytes, headers: Any, message_id: str | None) -> None:
        self.seen.append((subject, data))
        if subject.startswith(KEY_VALUE):
            self._store_value(subject, data, message_id)
            return
        for where, what in self._changed_by_operator(subject, data):
            if (where, what) == (subject, data):
                super().store(where, what, headers, message_id)
            else:
                self.inject(where, what)

    def deliver(self, message: Message) -> None:
        if not message.subject.startswith(f"{subjects.OUT}."):
            super().deliver(message)
            return
        self.seen.append((message.subject, message.data))
        for where, what in self._changed_by_operator(message.subject, message.data):
            self.inject(where, what)

    def _store_value(self, subject: str, data: bytes, message_id: str | None) -> None:
        """A bucket is a stream on the real server too, and has its window for repeated ids."""
        bucket, key = subject.removeprefix(KEY_VALUE).split(".", 1)
        if message_id not in self._bucket_ids:
            self._bucket_ids |= {message_id} if message_id else set()
            self.buckets[bucket]._write(key, data)

    def inject(self, subject: str, data: bytes) -> None:
        """Put a message on the bus unseen by `meddle`."""
        if subject.startswith(f"{subjects.OUT}."):
            super().deliver(Message(subject, data))
        else:
            super().store(subject, data, {}, None)

    def connect(self) -> MemoryBus:
        """A new connection; workers take turns."""
        return TurnBus(self)

    def hold(self, pattern: str) -> asyncio.Future[Held]:
        """Keep back the next message on a subject: it is the result."""
        kept: asyncio.Future[Held] = asyncio.get_running_loop().create_future()
        self._holds.append((pattern, kept))
        return kept

    def said(self, subject: str) -> list[bytes]:
        """Everything that was ever sent on a subject."""
        return [data for where, data in self.seen if subjects.matches(subject, where)]

    def _changed_by_operator(self, subject: str, data: bytes) -> list[tuple[str, bytes]]:
        for pattern, kept in self._holds:
            if not kept.done() and subjects.matches(pattern, subject):
                kept.set_result((subject, data))
                return []
        return [(subject, data)] if self.meddle is None else list(self.meddle(subject, data))


class TurnBus(MemoryBus):
    """A connection whose consumers take turns, so that every worker gets its share."""

    async def consume(self, consumer: str, *, batch: int = 16) -> AsyncGenerator[MemoryDelivery]:
        wire = self._server
        assert isinstance(wire, Wire)
        takers = wire.takers.setdefault(consumer, [])
        takers.append(self)
        try:
            async with aclosing(super().consume(consumer, batch=batch)) as deliveries:
                while True:
                    while takers[0] is not self:
                        await wire.changed()
                    delivery = await anext(deliveries)
                    takers.append(takers.pop(0))
                    wire.notify()
                    yield delivery
        finally:
            takers.remove(self)
            wire.notify()


class World:
    """What every test may share and none changes: keys, CA, two machines under one authority, policies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = folder / "keys"
        deployment.init(
            self.keys, trust_domain="test.example", operator=OPERATOR, policy_author=AUTHOR, gateway=GATEWAY
        )
        self.authority = folder / "authority"
        authority.create(self.authority)
        self.machines = {}
        for name in ("machine-a", "machine-b"):
            platform.create(folder / name, self.authority)
            self.machines[name] = Platform(folder / name)
        self.policies = Policies.learn(LISTS / "clean.bin")
        self.salt = read_secret(self.keys / "manager" / "salt").reveal()
        self.public = json.loads((self.keys / "public.json").read_text())
        self.operator = read_identity(self.keys / "operators" / f"{OPERATOR}.pem")
        self.author = read_identity(self.keys / "policy-authors" / f"{AUTHOR}.pem")
        self.gateway = read_identity(self.keys / "gateways" / f"{GATEWAY}.pem")
        self.measured = Measured(
            manager_identity=[self.public["manager_identity"]],
            suites=["mlkem768-x25519", "x25519"],
            gateway_ca=(self.keys / "manager" / "pki" / "root-ca.pem").read_text(),
            gateway_name="gateway.test",
            program="tests.sessions.program",
        )
        keys = self.keys / "manager" / "storage-keys.json"
        self.vault = Vault(StorageKeyFile(keys))

    def ppid(self, machine: str) -> str:
        """A machine as an operator enrols it."""
        facts = platform.read_facts(self.folder / machine)
        salted = PlatformIdentity.salted(self.salt, ppid=facts.pck.ppid, pck_leaf=b"", attestation_key=b"", qe_id=b"")
        return salted.ppid

    def enclave(self, machine: str, identity: EnclaveIdentity) -> Enclave:
        """An enclave that runs on a machine."""
        return Enclave(self.machines[machine], identity)

    def manager_settings(self, state_dir: Path, name: str, timing: Timing, suite: SuiteSetting) -> ManagerSettings:
        """A worker's settings."""
        keys = self.keys / "manager"
        return ManagerSettings(
            profile="development",
            name=name,
            bus=BusSettings(url="memory", credentials=Path("none")),
            state_dir=state_dir,
            identity=keys / "identity.pem",
            storage_keys=keys / "storage-keys.json",
            salt=keys / "salt",
            pki=keys / "pki",
            pki_passphrase=keys / "pki-passphrase",
            trust_domain="test.example",
            operators=[
                OperatorSettings(name=OPERATOR, role="operator", identity=self.public["operators"][OPERATOR]),
                OperatorSettings(name=AUTHOR, role="policy-author", identity=self.public["policy_authors"][AUTHOR]),
            ],
            attestation=AttestationSettings(
                pccs_url="http://pccs", root=self.authority / "root.pem", allow_simulated=True
            ),
            gateways=GatewaySet(name="gateways", address="127.0.0.1:1"),
            timing=timing,
            suite=suite,
        )


class Gateway:
    """A gateway worker without an nginx: the real ledger, the real reports."""

    def __init__(self, bus: MemoryBus, clock: Clock, identity: Ed25519PrivateKey, managers: set[bytes]) -> None:
        self._bus = bus
        self._clock = clock
        self._identity = identity
        self._managers = managers
        self.ledger = Ledger("gateways", longest_lease_s=3600)
        self.leases: list[Lease] = []

    async def run(self) -> None:
        """Follow the admissions, report each."""
        async for entry in self._bus.bucket(BUCKET).watch():
            if entry is None or entry.value is None or entry.key.startswith("crl."):
                continue
            statement = open_posted(entry.key, entry.value, self._managers)
            try:
                changed = self.ledger.take(statement, int(self._clock()))
            except Refusal:
                continue
            if isinstance(statement, Lease):
                self.leases.append(statement)
            if changed and isinstance(statement, Lease):
                applied = Applied(
                    key=statement.key,
                    state="admitted",
                    sequence=statement.sequence,
                    app_session=statement.app_session,
                )
                report = GatewayReport(gateway=GATEWAY, epoch="ab" * 16, applied=[applied], at=int(self._clock()))
                subject = subjects.inbound("gateway", GATEWAY, "report")
                await self._bus.publish(subject, sign_report(self._identity, report))

    def passes(self, app: str) -> bool:
        """Whether a request of the application would pass now."""
        at = int(self._clock())
        return any(
            isinstance(statement, Lease)
            and statement.app == app
            and self.ledger.entry(key, at) is not None
            and self.ledger.entry(f"host.{statement.host_session}", at) is not None
            for key, statement in self.ledger.items()
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
class Deployment:
    """One deployment under test."""

    world: World
    folder: Path
    clock: Clock
    wire: Wire
    http: httpx.AsyncClient
    timing: Timing
    suite: SuiteSetting = "mlkem768-x25519"
    events: list[Event] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)
    agents: list[Agent] = field(default_factory=list)
    gateway: Gateway = field(init=False)
    bus: MemoryBus = field(init=False)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _running: list[asyncio.Task[None]] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _sequence: int = 0

    # Parts

    async def start(self, workers: int) -> None:
        """Switch on: workers, gateway, policy."""
        self.bus = self.wire.connect()
        await self.bus.listen(f"{subjects.EVENTS}.>", self._hear)
        for _ in range(workers):
            self.add_worker()
        if workers:
            await self.begin()

    async def begin(self) -> None:
        """Put a policy in force and enrol the gateway: needs a worker."""
        identity = bytes.fromhex(self.world.public["manager_identity"])
        self.gateway = Gateway(self.wire.connect(), self.clock, self.world.gateway, {identity})
        self._tasks.append(asyncio.create_task(self.gateway.run()))
        await self.order(self.world.policies.command(self.world.author, version=1))
        public = self.world.gateway.public_key().public_bytes_raw()
        await self.order(Enrol(subject=GatewayEnrolment(id=GATEWAY, identity=public)))

    def assemble(self, bus: Any) -> Worker:
        """A worker that does not run yet, with a state of its own."""
        name = f"manager-{len(self.workers)}"
        settings = self.world.manager_settings(self.folder / name, name, self.timing, self.suite)
        worker = assemble(settings, bus, self.http, self.clock)
        # Its clock is the real one; a test that replays everything is to be refused for what it says, not for haste.
        worker._limiter = Limiter(1e6, 1_000_000)
        self.workers.append(worker)
        return worker

    def add_worker(self) -> Worker:
        """One more worker."""
        return self.run(self.wire.connect())

    def run(self, bus: Any) -> Worker:
        """One more worker, on a connection of its own kind."""
        worker = self.assemble(bus)
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
        subject = HostEnrolment(id=id, mrenclaves=[HOST_ENCLAVE.mrenclave.hex()], platform=self.world.ppid(machine))
        await self.order(Enrol(subject=subject))

    async def enrol_app(self, id: str = "a1", host: str = "h1") -> None:
        """Enrol an application on a host."""
        subject = AppEnrolment(
            id=id, mrenclaves=[APP_ENCLAVE.mrenclave.hex()], placements=[Placement(host=host, volume=0)]
        )
        await self.order(Enrol(subject=subject))

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
    ) -> Agent:
        """Start a host's agent."""
        settings = HostSettings(
            profile="development",
            bus=BusSettings(url="memory", credentials=Path("none")),
            id=id,
            measured=Path("none"),
            measurement_list=self.measurement_list,
            volumes=[self.volume],
        ).model_copy(update={"retry_s": retry_s})
        bus = self.wire.connect()
        link = Link(bus, "host", id)
        await link.listen()
        agent = HostAgent(self.world.enclave(machine, identity), link, settings, self.world.measured)
        return self._agent(agent.run(), bus)

    async def app(
        self, id: str = "a1", host: str = "h1", machine: str = "machine-a", identity: EnclaveIdentity = APP_ENCLAVE
    ) -> Agent:
        """Start an application's agent."""
        settings = AppSettings(
            profile="development",
            bus=BusSettings(url="memory", credentials=Path("none")),
            id=id,
            measured=Path("none"),
            retry_s=1,
            host=host,
            volume=self.volume,
        )
        bus = self.wire.connect()
        link = Link(bus, "app", id)
        await link.listen()
        agent = AppAgent(self.world.enclave(machine, identity), link, settings, self.world.measured)
        return self._agent(agent.run(), bus)

    async def admitted(self) -> tuple[Agent, Agent]:
        """h1 trusted and a1 admitted on it, from nothing."""
        await self.enrol_host()
        await self.enrol_app()
        host = await self.host()
        await self.until("host", "h1", "trusted")
        app = await self.app()
        await self.until("app", "a1", "admitted")
        await self.quiet()
        return host, app

    # What the test does

    async def order(self, action: Action, **changes: Any) -> Event:
        """Have an operator's command applied, and return the event that answers it."""
        self._sequence += 1
        fields: dict[str, Any] = {
            "operator": OPERATOR,
            "sequence": int(self.clock() * 1_000_000) + self._sequence,
            "expires_at": int(self.clock()) + 60,
            "action": action,
        }
        return await self.send_command(pack(sign(self.world.operator, "command", Command(**fields | changes))))

    async def send_command(self, data: bytes, name: str = OPERATOR) -> Event:
        """Publish a command and wait for its answer."""
        since = len(self.events)
        await self.bus.publish(subjects.operator(name, "command"), data)
        return await self.seen(lambda e: e.kind == "op" and e.what in ("applied", "refused"), since=since)

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

    async def dropped(self, count: int) -> None:
        """Return once this many messages were dropped in all."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.codes()) < count:
                await self._news.wait()

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

    async def seen(self, fits: Callable[[Event], bool], *, since: int = 0) -> Event:
        """The first event from `since` on that fits."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for event in self.events[since:]:
                    if fits(event):
                        return event
                await self._news.wait()

    async def until(self, kind: str, id: str, what: str, *, since: int = 0, session: str | None = None) -> Event:
        """The first event of a subject from `since` on."""
        try:
            return await self.seen(
                lambda e: (e.kind, e.subject, e.what) == (kind, id, what) and session in (None, e.session), since=since
            )
        except TimeoutError:
            happened = [f"{e.kind} {e.subject} {e.what} {json.dumps(e.data)[:300]}" for e in self.events[since:]]
            raise AssertionError(f"no event {kind} {id} {what} among:\n" + "\n".join(happened)) from None

    # What the test sees

    def what(self, kind: str, id: str, *, since: int = 0) -> list[str]:
        """What happened to a subject, in order."""
        return [e.what for e in self.events[since:] if (e.kind, e.subject) == (kind, id)]

    def codes(self, *, since: int = 0) -> list[str]:
        """The first reason code of every dropped message."""
        return [_code(e) for e in self.events[since:] if e.what == "dropped"]

    async def record(self, kind: type[R], session: str) -> R:
        """A session's record as it stands."""
        role: Role = "host" if kind is HostRecord else "app"
        key = record_key(role, session)
        entry = await self.bus.bucket("sessions").get(key)
        assert entry is not None
        assert entry.value is not None
        return self.world.vault.open(kind, "sessions", key, entry.value)

    async def records(self, kind: type[R]) -> list[R]:
        """All records of a kind, oldest first."""
        role = "host" if kind is HostRecord else "app"
        keys = [key for key in await self.bus.bucket("sessions").keys() if key.startswith(f"{role}.")]
        found = [await self.record(kind, key.removeprefix(f"{role}.")) for key in keys]
        return sorted(found, key=lambda record: record.created_at)

    async def answered(self, kind: type[R], session: str) -> State:
        """A session's state once it is not waiting for the answer to a recheck."""
        async with asyncio.timeout(PATIENCE_S):
            while (state := (await self.record(kind, session)).state) is State.RECHECKING:
                await self._news.wait()
        return state

    # Within

    def _waits(self, consumer: MemoryConsumer) -> str | None:
        """Whether a consumer's messages are in hand or due `now`, put back for `later`, or none."""
        found = None
        now = self.clock()
        for sequence, message in consumer._stream.items():
            if any(subjects.matches(pattern, message.subject) for pattern in consumer.layout.filter_subjects):
                out = consumer._out.get(sequence)
                if out is None or out.again_at <= now or out.again_at >= now + consumer.layout.ack_wait_s - 1:
                    return "now"
                found = "later"
        return found

    def _agent(self, running: Any, bus: MemoryBus) -> Agent:
        agent = Agent(asyncio.create_task(running), bus)
        self.agents.append(agent)
        return agent

    async def _hear(self, message: Message) -> None:
        self.events.append(parse_json(Event, message.data, source=message.subject))
        self._news.set()
        self._news = asyncio.Event()

    async def stop(self) -> None:
        """Switch everything off."""
        for agent in self.agents:
            await agent.stop()
        await self.kill_workers()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.bus.close()


def _code(event: Event) -> str:
    reasons = event.data.get("reasons")
    assert isinstance(reasons, list)
    reason = reasons[0]
    assert isinstance(reason, dict)
    return str(reason["code"])


def code_of(event: Event) -> str:
    """The first reason code of an event."""
    return _code(event)


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
        deployment = Deployment(world, folder, clock, Wire(clock), http, timing, suite)
        deployment.volume.mkdir(parents=True)
        deployment.measurement_list.write_bytes((LISTS / "clean.bin").read_bytes())
        stack.push_async_callback(deployment.stop)
        await deployment.start(workers)
        yield deployment
