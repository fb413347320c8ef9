"""Manager benchmarks: transitions compared with plain writes, enrolments, re-attestations, the cost of an idle session.

    python -m bench.sessions transitions [--rounds N] [--count N]
    python -m bench.sessions fleet [--hosts N] [--apps N]
    python -m bench.sessions idle [--hosts N ...]

`transitions`: sessions whose rechecks are due, all at once, handled by 1, 2 and 4 worker processes: load, step,
compare-and-set, outbox, acknowledge; and which processes used the cores. For comparison, in the same round, plain
compare-and-set writes by as many processes, and the bus operations of a transition alone (bench.bus).
`fleet`: real agents enrol one by one (latency) and all at once, then all are rechecked at once; one worker, whose
CPU time is counted separately. `idle`: records after enrolment, by the stream's own count of bytes, and the memory of a
worker that has taken as many through a recheck.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from pathlib import Path
from secrets import token_bytes, token_hex
from typing import Any

import structlog
import tomli_w

from attestgate.bus import layout, subjects
from attestgate.bus.auth import credentials
from attestgate.bus.client.nats import NatsBus, connect
from attestgate.bus.crypto.channel import Channel
from attestgate.bus.server.embedded import EmbeddedServer
from attestgate.compose.local.children import Child, Children
from attestgate.manager.records.current import Pointer
from attestgate.manager.records.outbox import summary, summary_key
from attestgate.manager.records.session_messages import SessionMessages
from attestgate.manager.sessions.inter_session import Order
from attestgate.manager.sessions.record import Basis, HostRecord, current_key, pending_key, record_key
from attestgate.manager.sessions.states import State
from attestgate.schemas.base import Secret, pack, unpack
from attestgate.schemas.binding import PROTOCOL
from attestgate.schemas.enrolment import COMMAND, Command, Enrol, commands_of
from attestgate.schemas.in_force import IN_FORCE, InForce, Standing, Standings, digest_of, place_of
from attestgate.schemas.messages import Outcome
from attestgate.schemas.settings import Timing
from bench.bus import rate, shown, transition, write
from tests.support.manager.fleet import CALM, Fleet
from tests.support.manager.world import OPERATOR, World

TICK = os.sysconf("SC_CLK_TCK")
WORKERS = (1, 2, 4)
USERS = ("workers", "server", "bench")
"""The processes that share the cores in a round of transitions."""
RECHECKS = 6
"""How often the whole fleet is rechecked."""


class Site:
    """A bus, an attestation service, and manager workers as processes."""

    def __init__(self, folder: Path, world: World, server: EmbeddedServer, children: Children) -> None:
        self.folder, self.world, self.server, self.children = folder, world, server, children
        self.pccs = ""

    async def start_pccs(self) -> None:
        child = await self.children.start("pccs", "simulated", "pccs", "--authority", str(self.world.authority))
        self.pccs = (await self.children.line(child, "ready", 30.0)).split()[1]

    def settings(self, name: str, timing: Timing = CALM) -> Path:
        """The settings file of a manager worker."""
        creds = self.folder / f"{name}.creds"
        credentials.issue(self.world.keys / "bus", "manager", name, creds)
        settings = self.world.manager_settings(self.folder / name, name, timing, "mlkem768-x25519")
        table = json.loads(settings.model_dump_json(exclude_none=True))
        table["bus"] = {"url": self.server.url, "credentials": str(creds)}
        table["attestation"]["pccs_url"] = self.pccs
        path = self.folder / f"{name}.toml"
        path.write_text(tomli_w.dumps(table))
        return path

    async def worker(self, name: str) -> Child:
        """Start a manager worker; returns once it works."""
        child = await self.children.start(name, "manager", "run", "-s", str(self.settings(name)))
        await self.children.line(child, '"event": "working"', 30.0)
        return child

    async def connect(self) -> NatsBus:
        creds = self.folder / "bench.creds"
        credentials.issue(self.world.keys / "bus", "manager", "bench", creds)
        return await connect([self.server.url], creds)


@asynccontextmanager
async def site(where: AbstractContextManager[None] = nullcontext()) -> AsyncIterator[Site]:  # noqa: B008  it has no state
    """Everything but workers. The server is started within `where`: on cores of its own, say."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="attestgate-bench-")))
        world = World(folder / "world")
        trust = credentials.load(world.keys / "bus")
        with where:
            server = await stack.enter_async_context(EmbeddedServer(folder / "bus", trust))
        children = await stack.enter_async_context(Children(folder / "logs"))
        place = Site(folder, world, server, children)
        await place.start_pccs()
        yield place


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has used (proc(5), utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def memory_mib(child: Child) -> float:
    """Resident memory of a process (proc(5))."""
    pages = int(Path(f"/proc/{child.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024**2


def peak_mib(pid: int) -> float:
    """The most memory that a process has had resident (proc(5))."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def trusted(number: int, now: int) -> HostRecord:
    """A host's record between two rechecks, the next one due."""
    session = token_hex(16)
    outcome = Outcome(
        simulated=True,
        integrity="unanchored",
        observe_only=False,
        quote_id="00" * 32,
        mrenclave="00" * 32,
        tcb_status="UpToDate",
        policy=dict.fromkeys(("sgx", "host", "runtime"), "00" * 32),
    )
    return HostRecord(
        session=session,
        subject=f"host-{number}",
        host=f"host-{number}",
        state=State.TRUSTED,
        suite="mlkem768-x25519",
        wanted=["sgx", "ima"],
        created_at=now,
        issued_at=now,
        deadline=now + 3000,
        next_recheck=now,
        lease_end=now + 3000,
        revision=4,
        rank=now * 1_000_000,
        basis=Basis(enrolled=1, policy=1),
        channel=Channel.start(session, Secret(token_bytes(32)), token_bytes(64), "down"),
        outcome=outcome,
        k=Secret(token_bytes(32)),
        list_size=60_000,
        list_digest=bytes(32),
        replay=bytes(100),
    )


async def put(place: Site, bus: NatsBus, records: Sequence[HostRecord]) -> None:
    """Store records, sealed."""
    room = asyncio.Semaphore(64)

    async def one(record: HostRecord) -> None:
        key = record_key("host", record.session)
        async with room:
            await bus.bucket("sessions").put(key, place.world.cipher.seal("sessions", key, record.revision, record))

    await asyncio.gather(*map(one, records))


async def due(bus: NatsBus, records: Sequence[HostRecord], at: int) -> None:
    """Make every record's deadline due at once."""
    room = asyncio.Semaphore(64)

    async def one(record: HostRecord) -> None:
        async with room:
            await bus.schedule(subjects.deadline(record.session), b"host", at=at)

    await asyncio.gather(*map(one, records))


async def drained(bus: NatsBus, count: int) -> float:
    """The time (monotonic) at which workers have acknowledged this many messages."""
    while await taken(bus) < count:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return time.perf_counter()


async def taken(bus: NatsBus) -> int:
    """Messages that workers have acknowledged so far."""
    info = await bus.jetstream.consumer_info(layout.WORK.name, layout.WORKERS.name)
    return (info.delivered.consumer_seq if info.delivered else 0) - (info.num_ack_pending or 0)


async def transitions(place: Site, bus: NatsBus, count: int, pids: Sequence[int] = ()) -> tuple[float, list[float]]:
    """Sessions due all at once, handled by the running workers: how many per second; CPU seconds by `pids`."""
    now = int(time.time())
    records = [trusted(number, now) for number in range(count)]
    await put(place, bus, records)
    before, at = await taken(bus), int(time.time()) + 3
    await due(bus, records, at)
    while await taken(bus) == before:  # noqa: ASYNC110  the server does not notify
        await asyncio.sleep(0.005)
    started, used = time.perf_counter(), [cpu_s(pid) for pid in pids]
    ended = await drained(bus, before + count)
    return count / (ended - started), [cpu_s(pid) - then for pid, then in zip(pids, used, strict=True)]


async def plain_writes(place: Site, processes: int, count: int) -> float:
    """Plain compare-and-set writes by as many processes."""
    creds = place.folder / "writer.creds"
    credentials.issue(place.world.keys / "bus", "manager", "writer", creds)
    command = [sys.executable, "-m", "bench.sessions", "write", place.server.url, str(creds), str(count // processes)]
    running = [
        await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.PIPE)
        for _ in range(processes)
    ]
    for process in running:
        assert process.stdout is not None and await process.stdout.readline() == b"ready\n"
    rates = [process.communicate(b"go\n") for process in running]
    return sum(float(output) for output, _ in await asyncio.gather(*rates))


async def writer(url: str, creds: str, count: int) -> None:
    """One process of `plain_writes`."""
    bus = await connect([url], Path(creds))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    print(await rate(bus, write, count))
    await bus.close()


async def measure_transitions(rounds: int, count: int) -> None:
    """Print transitions and plain writes, by the number of processes."""
    async with site() as place:
        figures: dict[str, list[float]] = defaultdict(list)
        workers: list[Child] = [await place.worker("manager-1")]
        bus = await place.connect()
        await transitions(place, bus, 200)  # everything is imported and warm
        for processes in WORKERS:
            while len(workers) < processes:
                workers.append(await place.worker(f"manager-{len(workers) + 1}"))
            for _ in range(rounds):
                pids = [os.getpid(), place.server.pid, *(worker.process.pid for worker in workers)]
                many, (ours, server, *theirs) = await transitions(place, bus, count, pids)
                figures[f"{processes} transitions"].append(many)
                for who, cpu in zip(USERS, (sum(theirs), server, ours), strict=True):
                    figures[f"{processes} {who}"].append(cpu * 1000 / count)
                figures[f"{processes} writes"].append(await plain_writes(place, processes, count))
                figures[f"{processes} bus"].append(await rate(bus, transition, count))
        await bus.close()
    one = statistics.median(figures["1 transitions"])
    for processes in WORKERS:
        done, plain, alone = (figures[f"{processes} {what}"] for what in ("transitions", "writes", "bus"))
        ratio = [t / w for t, w in zip(done, plain, strict=True)]
        of_bus = [t / b for t, b in zip(done, alone, strict=True)]
        used = [f"{who} {statistics.median(figures[f'{processes} {who}']):.2f} ms" for who in USERS]
        print(
            f"{processes} workers: transitions {shown(done)} = {statistics.median(done) / one:.2f} x one worker; plain"
            f" writes {shown(plain)}: ratio {statistics.median(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f});"
            f" the same bus operations alone, one client {shown(alone)}: ratio {statistics.median(of_bus):.2f};"
            f" CPU each: {', '.join(used)}"
        )


async def measure_fleet(hosts: int, apps: int) -> None:
    """Print latency of single enrolments, then enrolments and rechecks in bulk."""
    async with site() as place:
        worker = await place.worker("manager-1")
        async with Fleet(place.world, place.server.url, place.folder / "fleet") as fleet:
            await fleet.gateway()
            for number in range(hosts):
                await fleet.enrol_host(f"host-{number}")
            for number in range(apps):
                await fleet.enrol_app(f"app-{number}", f"host-{number % hosts}")
            alone = min(50, hosts // 2, apps // 2)
            host_s = [await _one(fleet, "host", f"host-{n}", "trusted", fleet.host(f"host-{n}")) for n in range(alone)]
            app_s = [
                await _one(fleet, "app", f"app-{n}", "admitted", fleet.app(f"app-{n}", f"host-{n}"))
                for n in range(alone)
            ]
            for name, times in (("host", host_s), ("application", app_s)):
                print(f"one {name} at a time, hello to the end: p50 {_at(times, 50)} ms, p99 {_at(times, 99)} ms")
            before = cpu_s(worker.process.pid)
            started = time.perf_counter()
            for n in range(alone, hosts):
                await fleet.host(f"host-{n}")
            for n in range(alone, hosts):
                await fleet.until("host", f"host-{n}", "trusted", 300)
            took, used, many = time.perf_counter() - started, cpu_s(worker.process.pid) - before, hosts - alone
            print(f"{many} hosts at once: {many / took:,.0f}/s; {many / used:,.0f} a second of one core")
            rounds = [await _asked_again(place, fleet, worker, hosts) for _ in range(RECHECKS)]
            rates, each = zip(*rounds, strict=True)
            print(
                f"{hosts} hosts asked again at once, {RECHECKS} times: {shown(rates)} with their agents on the same"
                f" cores; {shown([1 / s for s in each], ' a second of one core')}"
            )
            print(f"worker {memory_mib(worker):.0f} MiB")


async def _asked_again(place: Site, fleet: Fleet, worker: Child, hosts: int) -> tuple[float, float]:
    """All hosts' rechecks at once: how many per second, and the worker's CPU seconds for one."""
    bus = await place.connect()
    sessions = [key.rsplit(".", 1)[1] for key in await bus.bucket("summaries").keys("host.*.*")]
    before, since, started = cpu_s(worker.process.pid), len(fleet.events), time.perf_counter()
    messages = SessionMessages(bus, place.world.cipher)
    await asyncio.gather(*(messages.send("host", session, "recheck", Order(reasons=[])) for session in sessions))
    while sum(event.kind == "host" and event.what == "rechecked" for event in fleet.events[since:]) < hosts:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    rate = hosts / (time.perf_counter() - started)
    await asyncio.sleep(1)  # what comes after the event is counted too
    await bus.close()
    return rate, (cpu_s(worker.process.pid) - before) / hosts


async def _one(fleet: Fleet, kind: str, id: str, what: str, start: Coroutine[Any, Any, None]) -> float:
    started = time.monotonic()
    await start
    await fleet.until(kind, id, what, 60)
    return fleet.seen_at[kind, id, what] - started


def _at(times: Sequence[float], percent: int) -> str:
    ordered = sorted(times)
    return f"{ordered[min(len(ordered) * percent // 100, len(ordered) - 1)] * 1000:,.0f}"


async def measure_idle(sizes: Sequence[int]) -> None:
    """Print the cost of idle hosts: one is enrolled, its entries are copied under other names for the rest."""
    async with site() as place:
        worker = await place.worker("manager-1")
        bus = await place.connect()
        async with Fleet(place.world, place.server.url, place.folder / "fleet") as fleet:
            await fleet.gateway()
            await fleet.enrol_host("host-x")
            await fleet.host("host-x")
            await fleet.until("host", "host-x", "trusted", 60)
            record = await _at_rest(place, bus)
            others = {name: await _newest(bus, name) for name in ("enrolment", "admissions")}
        base, made = await _bytes(bus), 0
        print(f"worker with one host: {memory_mib(worker):.0f} MiB")
        for size in sizes:
            await _copies(place, bus, record, others, range(made, size))
            made = size
            now = await _bytes(bus)
            kept = {name: (now[name] - base[name]) / made for name in now if now[name] != base[name]}
            parts = ", ".join(f"{name} {each:,.0f}" for name, each in kept.items())
            await transitions(place, bus, size)  # as many sessions more, which count for memory only
            base = {name: base[name] + each - now[name] for name, each in (await _bytes(bus)).items()}
            print(f"{size} hosts: {sum(kept.values()):,.0f} bytes each ({parts}); worker {memory_mib(worker):.0f} MiB")
        await bus.close()


async def _at_rest(place: Site, bus: NatsBus) -> HostRecord:
    """The only host's record, once its outbox is empty."""
    (key,) = await bus.bucket("sessions").keys("host.*")
    while True:
        entry = await bus.bucket("sessions").get(key)
        assert entry is not None and entry.value is not None
        record = place.world.cipher.open(HostRecord, "sessions", key, entry.value)
        if not record.outbox:
            return record


async def _newest(bus: NatsBus, bucket: str) -> tuple[str, bytes]:
    (key,) = await bus.bucket(bucket).keys("host.*")
    entry = await bus.bucket(bucket).get(key)
    assert entry is not None and entry.value is not None
    return key, entry.value


async def _copies(
    place: Site, bus: NatsBus, record: HostRecord, others: dict[str, tuple[str, bytes]], numbers: range
) -> None:
    room = asyncio.Semaphore(64)

    async def one(number: int) -> None:
        session, id = token_hex(16), f"host-{number}"
        own = record.model_copy(update={"session": session, "subject": id, "host": id})
        key = record_key("host", session)
        async with room:
            await bus.bucket("sessions").create(key, place.world.cipher.seal("sessions", key, 1, own))
            for named in (current_key("host", id, id), pending_key("host", id, id)):
                pointer = Pointer(session=session, counter=1)
                await bus.bucket("sessions").create(named, place.world.cipher.seal("sessions", named, 1, pointer))
            await bus.bucket("summaries").put(summary_key(own), summary(own))
            await bus.bucket("enrolment").put(f"host.{id}", _enrolled(place, others["enrolment"][1], id))
            await bus.bucket("admissions").put(f"host.{session}", others["admissions"][1])
            await bus.schedule(subjects.deadline(session), b"host", at=4_000_000_000)

    await asyncio.gather(*map(one, numbers))


def _enrolled(place: Site, value: bytes, id: str) -> bytes:
    """A host's enrolment as it stands in the bucket, for another id: signed by operator and manager as that was."""
    (standing,) = unpack(Standings, value).standing
    command = unpack(Command, standing.statement.payload)
    assert isinstance(command.action, Enrol)
    subject = command.action.subject.model_copy(update={"id": id})
    command = command.model_copy(update={"action": Enrol(subject=subject)})
    statement = place.world.operator.sign(COMMAND, commands_of(OPERATOR), command)
    said = unpack(InForce, standing.in_force.payload)
    said = said.model_copy(update={"statement": digest_of(pack(statement)), "command": digest_of(pack(statement))})
    in_force = place.world.manager.sign(IN_FORCE, place_of("enrolment", f"host.{id}"), said)
    copied = Standings(version=PROTOCOL, standing=[Standing(statement=statement, in_force=in_force)])
    return pack(copied)


async def _bytes(bus: NatsBus) -> dict[str, int]:
    buckets = [bucket.stream for bucket in layout.BUCKETS.values()]
    names = [*buckets, layout.WORK.name]
    return {name: (await bus.jetstream.stream_info(name)).state.bytes for name in names}


def main() -> None:
    """The command."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    some = commands.add_parser("transitions")
    some.add_argument("--rounds", type=int, default=3)
    some.add_argument("--count", type=int, default=2000)
    many = commands.add_parser("fleet")
    many.add_argument("--hosts", type=int, default=200)
    many.add_argument("--apps", type=int, default=100)
    idle = commands.add_parser("idle")
    idle.add_argument("--hosts", type=int, nargs="+", default=[100, 1000, 10_000])
    one = commands.add_parser("write")
    one.add_argument("url")
    one.add_argument("creds")
    one.add_argument("count", type=int)
    arguments = parser.parse_args()
    run: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
        "transitions": lambda: measure_transitions(arguments.rounds, arguments.count),
        "fleet": lambda: measure_fleet(arguments.hosts, arguments.apps),
        "idle": lambda: measure_idle(arguments.hosts),
        "write": lambda: writer(arguments.url, arguments.creds, arguments.count),
    }
    asyncio.run(run[arguments.command]())


if __name__ == "__main__":
    main()
