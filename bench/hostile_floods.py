"""Floods by one stolen bus credential of each role, while honest sessions are rechecked and others enrol.

    python -m bench.hostile_floods [--seconds N] [--rounds N] [--only NAME] [--quick]

Per row one bus, one manager worker, 50 honest sessions that are rechecked every few seconds, and twice, one after the
other, 20 more that enrol: first while the flood goes to a second bus without any worker, then while it goes to theirs.
The two buses and the flooder share one core, the worker and the honest agents (this process) another: the ratio of the
99th percentiles says what the flood costs beside the core that it takes. Goals: no lease lapses, 20 of 20 enrol, ratio
at most 5.

Both buses are behind the kernel's rules (attestgate.bus.server.firewall), in a network of their own, which takes root.
The worker and the honest agents are at an address without a limit, and the flooder has one to itself: what is measured
is what one machine can do to all others within the limits of one machine. Rows: messages on every subject that the role
may publish to (`small`, `large`), messages that cost a worker most (`hellos`, `frames`, `reports`), JetStream API calls
(`calls`), requests for what is stored, whose answers nobody reads (`unread`), and connections without a credential. The
server has Go's limit of memory as in the compose stack. Its memory here is its peak in a row, on the bus of the honest;
a flood that takes it to 4 GiB is stopped there and has missed the goals.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import statistics
import sys
import time
from asyncio.subprocess import Process
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from urllib.parse import urlsplit

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from attestgate.bus.api import BusError, Message
from attestgate.bus.auth import credentials
from attestgate.bus.client.nats import NatsBus, connect
from attestgate.bus.client.setup import ensure
from attestgate.bus.lifetime import until_told
from attestgate.bus.server.embedded import EmbeddedServer, die_with_parent
from attestgate.manager.main import run
from attestgate.manager.records.session_messages import SessionMessages
from attestgate.manager.sessions.inter_session import Order
from attestgate.schemas.base import Refusal
from attestgate.schemas.binding import Role
from attestgate.schemas.enrolment import Enrol, GatewayEnrolment
from attestgate.schemas.settings import ManagerSettings, Timing, load_settings
from bench.flooder import Flood, asked, stored
from bench.loop_lag import Lag
from bench.sessions import Site, cpu_s, peak_mib, site
from tests.support.bus import network
from tests.support.manager.fleet import Fleet
from tests.support.manager.world import AUTHOR, TRUST_DOMAIN, World

HOSTS, APPS, NEWCOMERS = 30, 20, 20
TIMING = Timing(lease_s=12, recheck_s=5, evidence_window_s=5, skew_s=5, certificate_s=3600)
"""A lease shorter than a run, so that one that cannot be renewed lapses within it."""
RECHECK_EVERY_S = 2.5
PATIENCE_S = 10.0
"""How long the end of a recheck, or of an enrolment, is waited for after the flood."""
GOMEMLIMIT = "2560MiB"
"""As in compose.yaml."""
LOOK_S = 0.25
GOAL_RATIO = 5.0
MOST_MIB = 4096.0
"""Of nats-server's memory: a flood that takes as much is stopped, before it takes the machine's."""
ENDS = ("refused", "untrusted", "expired", "revoked", "superseded")
HONEST = IPv4Network("127.0.0.1/32")
"""The worker's address, and that of the honest agents, which stand for as many machines."""
FLOODER = "127.0.0.2"
CORES = sorted(os.sched_getaffinity(0))
BUS_CORE, WORK_CORE = {CORES[0]}, {CORES[-1]}


@dataclass(frozen=True)
class Attack:
    """A row: which credential floods with what. `name` is the credential's; without a role there is none."""

    role: str
    name: str
    kind: str
    what: str


ATTACKS = [
    *(
        Attack(role, name, size, f"{role}, {standing}, {size}")
        for role, names in {
            "host": {"enrolled": "thief", "not enrolled": "stranger"},
            "app": {"enrolled": "host-0.thief", "not enrolled": "host-0.stranger"},
            "gateway": {"enrolled": "gateway-2", "not enrolled": "stranger"},
            "operator": {"enrolled": AUTHOR, "not enrolled": "stranger"},
            "viewer": {"not enrolled": "viewer"},
        }.items()
        for standing, name in names.items()
        for size in ("small", "large")
    ),
    Attack("host", "thief", "hellos", "host, enrolled, valid hellos"),
    Attack("app", "host-0.thief", "hellos", "app, enrolled, valid hellos"),
    Attack("host", "thief", "frames", "host, enrolled, frames for its session"),
    Attack("gateway", "gateway-2", "reports", "gateway, enrolled, signed reports"),
    *(
        Attack(role, name, kind, f"{role}, {kind}")
        for role, name in {"viewer": "viewer", "operator": AUTHOR, "gateway": "gateway-2"}.items()
        for kind, requests in {"calls": asked, "unread": stored}.items()
        if requests(role, name)
    ),
    Attack("", "", "connections", "no credential, connections"),
]


class Watched(Fleet):
    """A fleet that knows its sessions: their ids, when a recheck of theirs has passed, which leases lapsed."""

    def __init__(self, world: World, url: str, folder: Path, timing: Timing) -> None:
        super().__init__(world, url, folder, timing, watched=("host.>", "app.>", "op.*.*"))
        self.sessions: dict[tuple[str, str], str] = {}
        self.honest: set[tuple[str, str]] = set()
        self.lapsed: dict[tuple[str, str], str] = {}
        self.renewals = 0
        self._longest_gap_s = 0.0
        self._renewed: dict[tuple[str, str], float] = {}
        self._ends: dict[tuple[str, str], int] = {}
        self._passed: dict[tuple[str, str], asyncio.Event] = defaultdict(asyncio.Event)

    async def _hear(self, message: Message) -> None:
        before = len(self.events)
        await super()._hear(message)
        for event in self.events[before:]:
            who = event.kind, event.subject
            if who not in self.honest:
                continue
            end = event.data.get("lease_end")
            if event.what in ENDS:
                self.lapsed.setdefault(who, event.what)
            elif event.what in ("trusted", "admitted", "rechecked") and event.session and isinstance(end, int):
                if event.at > self._ends.get(who, event.at):
                    self.lapsed.setdefault(who, f"renewed {event.at - self._ends[who]} s late")
                self.sessions[who], self._ends[who] = event.session, end
                self._renew(who)
                if event.what == "rechecked":
                    self._passed[who].set()

    def _renew(self, who: tuple[str, str]) -> None:
        now = time.monotonic()
        self.renewals += 1
        self._longest_gap_s = max(self._longest_gap_s, now - self._renewed.get(who, now))
        self._renewed[who] = now

    def longest_gap_s(self) -> float:
        """The longest that an honest session was without a renewal, until now."""
        now = time.monotonic()
        return max([self._longest_gap_s, *(now - self._renewed[who] for who in self.honest)])

    def begin(self) -> None:
        """Count lapses, renewals and gaps from now on: what is there is renewed now. The robbed host is on its own."""
        self.honest -= {("host", "thief")}
        self.lapsed.clear()
        self.renewals, self._longest_gap_s = 0, 0.0
        self._renewed = dict.fromkeys(self.honest, time.monotonic())

    def overdue(self) -> None:
        """Count the leases that have lapsed by now without any event."""
        now = int(time.time())
        for who in self.honest:
            if self._ends[who] < now:
                self.lapsed.setdefault(who, "not renewed")

    async def recheck(self, messages: SessionMessages, kind: Role, id: str) -> float:
        """Have a session rechecked; seconds until it has passed. Raises TimeoutError, BusError."""
        passed, begun = self._passed[kind, id], time.monotonic()
        passed.clear()
        async with asyncio.timeout(PATIENCE_S):
            await messages.send(kind, self.sessions[kind, id], "recheck", Order(reasons=[]))
            await passed.wait()
        return time.monotonic() - begun

    async def admit(self, kind: str, id: str, host: str, within_s: float) -> None:
        """Start an enrolled agent, and wait until it is trusted or admitted. Raises TimeoutError."""
        await (self.host(id) if kind == "host" else self.app(id, host))
        await self.until(kind, id, "trusted" if kind == "host" else "admitted", within_s)


@dataclass
class Figures:
    """What honest parties saw of one flood."""

    waits: list[float] = field(default_factory=list)
    failed: int = 0
    enrolled: int = 0
    lapsed: dict[tuple[str, str], str] = field(default_factory=dict)
    sent: int = 0
    worker: float = 0.0
    late: float = 0.0
    computed: float = 0.0
    server: float = 0.0

    def at(self, percent: int) -> float:
        """A percentile in milliseconds; a recheck that was not seen to pass took all the patience."""
        ordered = sorted([*self.waits, *[PATIENCE_S] * self.failed])
        return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)] * 1000


@contextmanager
def on(cores: set[int]) -> Iterator[None]:
    """What is started meanwhile runs on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@asynccontextmanager
async def process(module: str, *arguments: str, cores: set[int], log: Path) -> AsyncIterator[Process]:
    """A module of the benchmark as a process of its own, which ends with this one."""
    with on(cores), log.open("wb") as output:
        started = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=output,
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.send_signal(signal.SIGTERM)
            await started.wait()


@dataclass
class Ground:
    """A bus, a worker and honest sessions, and the second bus."""

    folder: Path
    site: Site
    second: EmbeddedServer
    fleet: Watched
    bus: NatsBus
    worker: Process
    lags: list[tuple[float, float, float]] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def follow_lag(self) -> None:
        """Read what the worker says of its event loop."""
        assert self.worker.stdout is not None
        while line := await self.worker.stdout.readline():
            if line.startswith(b"lag "):
                late, computed = map(float, line.split()[1:])
                self.lags.append((time.monotonic(), late, computed))

    def full(self) -> bool:
        """Whether nats-server has taken as much memory as it may."""
        return peak_mib(self.site.server.pid) >= MOST_MIB

    async def _stop_when_full(self, flooder: Process) -> None:
        while not self.full():  # noqa: ASYNC110  the kernel does not notify
            await asyncio.sleep(LOOK_S)
        flooder.send_signal(signal.SIGTERM)

    async def populate(self, hosts: int, apps: int) -> None:
        """Enrol and attest the honest sessions and whom the attacker has robbed."""
        fleet = self.fleet
        await fleet.gateway()
        stolen = Ed25519PrivateKey.generate()
        pem = stolen.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (self.folder / "stolen.pem").write_bytes(pem)
        (self.folder / "stolen.pem").chmod(0o600)
        identity = stolen.public_key().public_bytes_raw()
        await fleet.order(Enrol(subject=GatewayEnrolment(id="gateway-2", identity=identity)))
        await fleet.enrol_host("thief")
        all_hosts = [("host", f"host-{n}", "") for n in range(hosts)]
        all_apps = [("app", f"app-{n}", f"host-{n}") for n in range(apps)]
        for _, id, _ in all_hosts:
            await fleet.enrol_host(id)
        for _, id, host in all_apps:
            await fleet.enrol_app(id, host)
        await fleet.enrol_app("thief", "host-0")
        fleet.honest |= {(kind, id) for kind, id, _ in [*all_hosts, *all_apps]} | {("host", "thief")}
        for several in (all_hosts, all_apps):
            await asyncio.gather(*(fleet.admit(*one, 60) for one in several))
        await fleet.admit("host", "thief", "", 60)

    @asynccontextmanager
    async def flooder(self, attack: Attack, url: str, source: str) -> AsyncIterator[tuple[Process, Path]]:
        """A process that floods a bus from an address, and its log; it has begun."""
        creds = self.folder / f"{source}-{attack.kind}.creds"
        if attack.role:
            credentials.issue(self.site.world.keys / "bus", attack.role, attack.name, creds)
        flood = Flood(
            kind=attack.kind,
            url=url,
            credentials=creds if attack.role else None,
            source=source,
            session=self.fleet.sessions["host", "thief"],
            identity=self.folder / "stolen.pem",
            trust_domain=TRUST_DOMAIN,
        )
        log = self.folder / f"flooder-{source}-{attack.kind}.log"
        async with process("bench.flooder", flood.model_dump_json(), cores=BUS_CORE, log=log) as flooder:
            assert flooder.stdout is not None
            async with asyncio.timeout(30):
                assert await flooder.stdout.readline() == b"flooding\n", log.read_text()
            yield flooder, log

    async def flooded(self, attack: Attack, url: str, seconds: float, prefix: str) -> Figures:
        """The figures of honest sessions while a flood goes to a bus."""
        figures, fleet = Figures(), self.fleet
        fleet.begin()
        async with self.flooder(attack, url, FLOODER) as (flooder, log):
            assert flooder.stdout is not None
            begun, used = time.monotonic(), cpu_s(self.worker.pid)
            guard = asyncio.create_task(self._stop_when_full(flooder))
            async with asyncio.TaskGroup() as group:
                for number, (kind, id) in enumerate(sorted(fleet.honest)):
                    first = begun + number * RECHECK_EVERY_S / len(fleet.honest)
                    group.create_task(self._rechecks(kind, id, first, begun + seconds, figures))  # type: ignore[arg-type]
                group.create_task(self._newcomers(prefix, seconds, figures))
            took = time.monotonic() - begun
            figures.worker = (cpu_s(self.worker.pid) - used) / took
            guard.cancel()
            if not self.full():
                assert flooder.returncode is None, log.read_text()[-2000:]
                flooder.send_signal(signal.SIGTERM)
            figures.sent = int(int(await flooder.stdout.readline()) / took)
        fleet.overdue()
        figures.lapsed = dict(fleet.lapsed)
        figures.server = peak_mib(self.site.server.pid)
        within = [(late, computed) for at, late, computed in self.lags if at >= begun]
        figures.late, figures.computed = map(max, zip(*within, strict=True))
        return figures

    async def _rechecks(self, kind: Role, id: str, first: float, until: float, figures: Figures) -> None:
        """One session, rechecked again and again."""
        messages = SessionMessages(self.bus, self.site.world.cipher)
        await asyncio.sleep(max(first - time.monotonic(), 0.0))
        while (now := time.monotonic()) < until:
            try:
                figures.waits.append(await self.fleet.recheck(messages, kind, id))
            except (TimeoutError, BusError):
                figures.failed += 1
            await asyncio.sleep(max(now + RECHECK_EVERY_S - time.monotonic(), 0.0))

    async def _newcomers(self, prefix: str, seconds: float, figures: Figures) -> None:
        """Hosts and applications that enrol, one after the other in the first half of a flood."""

        until = time.monotonic() + seconds + PATIENCE_S

        async def one(kind: str, id: str, host: str) -> None:
            try:
                await self.fleet.admit(kind, id, host, until - time.monotonic())
            except TimeoutError:
                return
            figures.enrolled += 1

        async with asyncio.TaskGroup() as group:
            for number in range(NEWCOMERS):
                if time.monotonic() > until:
                    break
                kind, id, host = "app" if number % 2 else "host", f"{prefix}-{number}", f"host-{number}"
                try:
                    await (self.fleet.enrol_host(id) if kind == "host" else self.fleet.enrol_app(id, host))
                except (Refusal, BusError) as error:
                    print(f"  {kind} {id}: {error}", file=sys.stderr)
                    continue
                group.create_task(one(kind, id, host))
                await asyncio.sleep(seconds / 2 / NEWCOMERS)


def limit(*urls: str) -> None:
    """Load the rules for the servers of this network."""
    network.load([port for url in urls if (port := urlsplit(url).port)], [HONEST])


def own_network() -> None:
    """Have this process, and all that it starts, in a network of its own, or end it with what that takes.

    The servers get Go's limit of memory, too.
    """
    os.environ["GOMEMLIMIT"] = GOMEMLIMIT
    if not network.possible():
        print(network.HINT, file=sys.stderr)
        sys.exit(2)
    network.own_network()


@asynccontextmanager
async def ground(hosts: int = HOSTS, apps: int = APPS, timing: Timing = TIMING) -> AsyncIterator[Ground]:
    """Everything but the flood, attested and in agreement, behind the rules."""
    async with AsyncExitStack() as stack:
        place = await stack.enter_async_context(site(on(BUS_CORE)))
        trust = credentials.load(place.world.keys / "bus")
        with on(BUS_CORE):
            second = await stack.enter_async_context(EmbeddedServer(place.folder / "second", trust))
        limit(place.server.url, second.url)
        bus = await place.connect()
        stack.push_async_callback(bus.close)
        other = await connect([second.url], place.folder / "bench.creds")
        stack.push_async_callback(other.close)
        for each in (bus, other):
            await ensure(each)
        arguments = ("worker", str(place.settings("manager-1", timing)))
        log = place.folder / "worker.log"
        worker = await stack.enter_async_context(process("bench.hostile_floods", *arguments, cores=WORK_CORE, log=log))
        fleet = await stack.enter_async_context(Watched(place.world, place.server.url, place.folder / "fleet", timing))
        found = Ground(place.folder, place, second, fleet, bus, worker)
        following = asyncio.create_task(found.follow_lag())
        stack.callback(following.cancel)
        await found.populate(hosts, apps)
        yield found


async def worker(settings: Path) -> None:
    """A manager worker as it is, which says each second how long its event loop was kept."""

    lag = Lag(tick_s=0.005)

    async def say() -> None:
        while True:
            await asyncio.sleep(1.0)
            print(f"lag {lag.late} {lag.computed}", flush=True)
            lag.late = lag.computed = 0.0

    helping = [asyncio.create_task(work) for work in (lag.watch(), say())]
    try:
        await run(load_settings(ManagerSettings, settings))
    finally:
        for task in helping:
            task.cancel()


async def row(attack: Attack, seconds: float, rounds: int) -> bool:
    """Measure one flood and print it; whether the goals were met."""
    ratios, met = [], True
    found = quiet = Figures()
    for _ in range(rounds):
        async with ground() as place:
            quiet = await place.flooded(attack, place.second.url, seconds, "quiet")
            found = await place.flooded(attack, place.site.server.url, seconds, "late")
        ratios.append(found.at(99) / quiet.at(99))
        met = met and not found.lapsed and found.enrolled == NEWCOMERS and found.server < MOST_MIB
        for (kind, id), how in list(found.lapsed.items())[:3]:
            print(f"  {kind} {id}: {how}", file=sys.stderr)
    ratio = statistics.median(ratios)
    spread = f"{ratio:5.1f}x" + (f" ({min(ratios):.1f} to {max(ratios):.1f})" if rounds > 1 else "")
    met = met and ratio <= GOAL_RATIO
    print(
        f"{attack.what:38} {found.sent:9,}/s  p50 {found.at(50):7.0f} p99 {found.at(99):7.0f} ms"
        f"  elsewhere p50 {quiet.at(50):6.0f} p99 {quiet.at(99):6.0f} ms  {spread}"
        f"  not passed {found.failed:3}  lapsed {len(found.lapsed):3}  enrolled {found.enrolled:2} of {NEWCOMERS}"
        f"  server {found.server:6,.0f} MiB  worker {quiet.worker:4.0%} {found.worker:4.0%}"
        f"  lag {quiet.late:4.0f} {found.late:4.0f} ms, of CPU {quiet.computed:4.1f} {found.computed:4.1f} ms"
        f"{'' if met else '  MISSED'}",
        flush=True,
    )
    return met


async def floods(seconds: float, rounds: int, only: str) -> bool:
    """Print a row for each flood; whether the goals were met in all."""
    print("rechecks under the flood, and while it goes elsewhere; worker and lag: elsewhere, under the flood")
    os.sched_setaffinity(0, WORK_CORE)
    results = [await row(attack, seconds, rounds) for attack in ATTACKS if only in attack.what]
    print(f"goals met in {sum(results)} of {len(results)} floods")
    return all(results)


def main() -> None:
    """Run the benchmark, or be its worker."""
    if sys.argv[1:2] == ["worker"]:
        until_told(worker(Path(sys.argv[2])))
        return
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help="of each of the two floods of a row")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="", help="floods whose name has this in it")
    parser.add_argument("--quick", action="store_true", help="5 s each")
    given = parser.parse_args()
    own_network()
    met = asyncio.run(floods(given.seconds or (5.0 if given.quick else 10.0), given.rounds, given.only))
    sys.exit(not met)


if __name__ == "__main__":
    main()
