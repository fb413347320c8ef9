"""Slow and silent clients at the gateway, against honest ones: python -m bench.hostile_door [--quick] [--only KIND]

For each kind of slow client, 8,000 at once, from one address and from 40: what an honest application waits for (on a
kept connection and on new ones), how long a withdrawal takes to show, and how much memory nginx has. The limits are the
defaults. Slow clients are in a process and on a core of their own (their TLS is not the gateway's), and connect again
5 s after they were cut off; nginx and the honest clients share the other core. Honest clients that connect anew are
many, at addresses of their own. Quiet and attacked rounds alternate; results are the median of the rounds' ratios, with
the lowest and highest. Goals: 99th percentile at most 5 times the quiet one's, withdrawal within a second, 256 MiB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import resource
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPSConnection
from itertools import count, cycle
from pathlib import Path
from typing import TypeAlias

import structlog

from attestgate.compose.nginx.process import Nginx
from attestgate.schemas.nginx import NginxConfig
from bench.gateway import BenchGate
from tests.support.gateway.deployment import GatewayDeployment, at_work
from tests.support.gateway.gate import NO_RATE, Client, Gate
from tests.support.gateway.slow import Slow

KINDS = {
    "says nothing": "nobody's",
    "no request": "nobody's",
    "slow header": "nobody's",
    "slow body": "nobody's",
    "slow body, withdrawn": "withdrawn",
    "slow body, admitted": "admitted",
    "slow chunks": "nobody's",
    "slow chunks, admitted": "admitted",
    "websocket": "admitted",
}
"""Whose certificate they show, by kind."""
AGAIN_S = 5.0
EVERY_S = 4.0
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
GOAL_RATIO, GOAL_WITHDRAWAL_MS, GOAL_MIB = 5.0, 1000.0, 256.0
HONEST_ADDRESSES = 64
"""Of the honest clients, so that none of them connects faster than an address may."""
PAUSE_S = 0.005
"""Between two honest requests: they are a load of their own otherwise."""
_CORES = os.sched_getaffinity(0)
_Spec: TypeAlias = dict[str, object]


@dataclass
class Waits:
    """What honest clients saw: milliseconds per request, and how many had no answer: they waited for ever."""

    kept: list[float] = field(default_factory=list)
    new: list[float] = field(default_factory=list)
    failed: int = 0

    def unanswered(self, into: list[float]) -> None:
        """A request had no answer."""
        self.failed += 1
        into.append(float("inf"))

    def p99(self, which: str) -> float:
        """The 99th percentile in milliseconds; infinite where more than one in a hundred had no answer."""
        ordered = sorted(getattr(self, which))
        return ordered[len(ordered) * 99 // 100] if ordered else float("inf")


def cores() -> tuple[int, int]:
    """The core of the slow clients, and that of nginx and the honest ones."""
    first, *others = sorted(_CORES)
    return first, others[-1]


def slow_clients(spec: _Spec) -> None:
    """The process of the slow clients: hold, connect again, until it is killed."""
    os.sched_setaffinity(0, {int(str(spec["core"]))})
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    context = ssl.create_default_context(cafile=str(spec["ca"]))
    if spec["certificate"]:
        context.load_cert_chain(str(spec["certificate"]))
    asyncio.run(_attack(spec, context))


async def _attack(spec: _Spec, context: ssl.SSLContext) -> None:
    clients, addresses, port = (int(str(spec[name])) for name in ("count", "addresses", "port"))
    room = asyncio.Semaphore(100)
    tried = 0

    async def again_and_again(client: Slow) -> None:
        nonlocal tried
        first = True
        while True:
            async with asyncio.TaskGroup() as one:
                opened = asyncio.Event()
                async with room:
                    holding = one.create_task(client.hold(opened.set))
                    waiting = one.create_task(opened.wait())
                    await asyncio.wait([holding, waiting], return_when=asyncio.FIRST_COMPLETED)
                    waiting.cancel()
                if first:
                    tried, first = tried + 1, False
                    if tried == clients:
                        sys.stdout.write("all have tried\n")
                        sys.stdout.flush()
            await asyncio.sleep(AGAIN_S)

    async with asyncio.TaskGroup() as tasks:
        for number in range(clients):
            source = f"127.0.0.{2 + number % addresses}"
            tasks.create_task(again_and_again(Slow(str(spec["kind"]), port, source, context, every_s=EVERY_S)))


def honest(gate: Gate, client: Client, seconds: float) -> Waits:
    """Requests in turn on a kept connection and on a new one."""
    waits, end = Waits(), time.monotonic() + seconds
    kept = connection(gate, client)
    try:
        status(kept)  # its connecting is not what is measured
    except (OSError, HTTPException):
        waits.unanswered(waits.kept)
        kept.close()
    sources = cycle(f"127.0.1.{number}" for number in range(1, HONEST_ADDRESSES + 1))
    while time.monotonic() < end:
        fresh = connection(gate, client, next(sources))
        for where, into in ((kept, waits.kept), (fresh, waits.new)):
            begun = time.perf_counter()
            try:
                if status(where) == 200:
                    into.append((time.perf_counter() - begun) * 1000)
                else:
                    waits.unanswered(into)
            except (OSError, HTTPException):
                waits.unanswered(into)
                where.close()
            time.sleep(PAUSE_S)
        fresh.close()
    kept.close()
    return waits


def connection(gate: Gate, client: Client, source: str = "127.0.0.1") -> HTTPSConnection:
    """A connection of a blocking client, which costs least; it connects with its first request."""
    return HTTPSConnection(
        "localhost", gate.config.port, context=client.context, timeout=10, source_address=(source, 0)
    )


def status(where: HTTPSConnection) -> int:
    """The status of one answer, which is read to its end."""
    where.request("GET", "/x")
    answer = where.getresponse()
    answer.read()
    return answer.status


def memory_mib(gate: Gate) -> float:
    """Resident memory of nginx's workers; pages that they share count once for each."""
    pids = Path(f"/proc/{gate.nginx.pid}/task/{gate.nginx.pid}/children").read_text().split()
    lines = (line for pid in pids for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


class HostileGate(BenchGate):
    """A gateway with the default limits and a relay."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        rates = {name: NginxConfig.model_fields[name].default for name in NO_RATE}
        update = {"zone": "32m", "relay": folder / "n" / "relay.sock", **rates}
        self.config: NginxConfig = self.config.model_copy(update=update)
        self.nginx = Nginx(self.config)


async def _switch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A controller that accepts every WebSocket and sends a ping now and then."""
    with suppress(OSError, EOFError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCHED)
        while not reader.at_eof():
            await asyncio.sleep(EVERY_S)
            writer.write(b"\x89\x00")
            await writer.drain()
    writer.transport.abort()


@asynccontextmanager
async def attacked(
    gate: Gate, kind: str, certificate: Path | None, clients: int, addresses: int
) -> AsyncIterator[None]:
    """The slow clients are at work."""
    spec = {
        "core": cores()[0],
        "kind": kind.partition(",")[0],
        "port": gate.config.port,
        "ca": str(gate.folder / "ca" / "root-ca.pem"),
        "certificate": str(certificate or ""),
        "count": clients,
        "addresses": addresses,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.hostile_door", "--clients", json.dumps(spec), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(600):
            assert await process.stdout.readline() == b"all have tried\n"
        yield
    finally:
        process.kill()
        await process.wait()


@dataclass
class Round:
    """One quiet and one attacked measurement, one after the other."""

    quiet: Waits
    attacked: Waits
    withdrawals: list[float]
    mib: float


@dataclass
class Bench:
    """A gateway with its worker."""

    deployment: GatewayDeployment
    rounds: int
    sequence: Iterator[int] = field(default_factory=lambda: count(1))

    async def withdrawals(self, times: int) -> list[float]:
        """Milliseconds from a withdrawal on the bus to the worker's report that nginx holds it, and to a 403."""
        found = []
        for _ in range(times):
            leaving = self.deployment.gate.client(app="leaving")
            await self.deployment.admit(leaving, sequence=next(self.sequence))
            self.deployment.bus.published.clear()  # each look for a report opens all of them
            begun = time.perf_counter()
            await self.deployment.withdraw(leaving.key, next(self.sequence))
            where = connection(self.deployment.gate, leaving)
            with suppress(OSError, HTTPException):
                assert await asyncio.to_thread(status, where) == 403
            found.append((time.perf_counter() - begun) * 1000)
            where.close()
        return found

    async def row(self, kind: str, clients: int, addresses: int, seconds: float) -> bool:
        """Measure one kind and print it; whether the goals were met."""
        rounds = [await self.round(kind, clients, addresses, seconds) for _ in range(self.rounds)]
        ratios = {which: [r.attacked.p99(which) / r.quiet.p99(which) for r in rounds] for which in ("kept", "new")}
        shown = [
            f"{which} {statistics.median(r.attacked.p99(which) for r in rounds):6.1f} ms {spread(ratios[which])}"
            for which in ratios
        ]
        taken, mib = [ms for r in rounds for ms in r.withdrawals], max(r.mib for r in rounds)
        failed = sum(r.attacked.failed for r in rounds)
        total = sum(len(r.attacked.kept) + len(r.attacked.new) for r in rounds)
        print(
            f"  {kind:>22} from {addresses:>2}: {'   '.join(shown)}   {failed:>4} of {total} not answered"
            f"   withdrawal {statistics.median(taken):6.1f} ms ({max(taken):.1f})   nginx {mib:.0f} MiB",
            flush=True,
        )
        worst = max(statistics.median(found) for found in ratios.values())
        return worst <= GOAL_RATIO and max(taken) <= GOAL_WITHDRAWAL_MS and mib <= GOAL_MIB

    async def round(self, kind: str, clients: int, addresses: int, seconds: float) -> Round:
        """The quiet gateway, then the same with slow clients."""
        gate = self.deployment.gate
        # New certificates for each round, which last longer than it does.
        good, admitted, withdrawn = (gate.client(app=name) for name in ("good", "admitted", "withdrawn"))
        await self.deployment.admit(good, admitted, sequence=next(self.sequence))
        quiet = await asyncio.to_thread(honest, gate, good, seconds)
        whose = {"nobody's": None, "admitted": admitted, "withdrawn": withdrawn}[KINDS[kind]]
        certificate = None if whose is None else gate.folder / f"client-{gate.clients.index(whose)}.pem"
        async with attacked(gate, kind, certificate, clients, addresses):
            await self.deployment.admit(good, admitted, sequence=next(self.sequence))
            found = await asyncio.to_thread(honest, gate, good, seconds)
            return Round(quiet, found, await self.withdrawals(10), memory_mib(gate))


def spread(ratios: list[float]) -> str:
    """The median, and the lowest and highest."""
    return f"({statistics.median(ratios):4.1f}x, {min(ratios):.1f} to {max(ratios):.1f})"


async def measured(folder: Path, clients: int, seconds: float, rounds: int, only: str) -> bool:
    """Print a row for each kind, from one address and from many; whether the goals were met in all."""
    async with HostileGate(folder).up() as gate, asyncio.TaskGroup() as switching:
        server = await asyncio.start_unix_server(
            lambda reader, writer: switching.create_task(_switch(reader, writer)), folder / "switch.sock"
        )
        deployment = GatewayDeployment(gate)
        relay = {"socket": gate.config.relay, "controller": folder / "switch.sock"}
        async with at_work(deployment.worker(relay=relay)):
            bench = Bench(deployment, rounds)
            theirs, ours = cores()
            print(f"{clients} slow clients on core {theirs}, nginx and honest clients on core {ours}, {rounds} rounds;")
            print("99th percentiles, and how many times the quiet gateway's")
            rows = [(kind, addresses) for kind in KINDS if only in kind for addresses in (1, 40)]
            met = [await bench.row(kind, clients, addresses, seconds) for kind, addresses in rows]
            print(f"goals met in {sum(met)} of {len(met)} rows")
        server.close()
    return all(met)


def main() -> None:
    """Run the benchmark, or be the process of its slow clients."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="800 clients, and less time")
    parser.add_argument("--only", default="", metavar="KIND", help="only kinds with this in their name")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each kind (default 3)")
    parser.add_argument("--clients", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.clients:
        slow_clients(json.loads(options.clients))
        return
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory(prefix="bench-hostile-") as folder:
        clients, seconds, rounds = (800, 3.0, 1) if options.quick else (8000, 5.0, options.rounds)
        os.sched_setaffinity(0, {cores()[1]})
        met = asyncio.run(measured(Path(folder), clients, seconds, rounds, options.only))
    sys.exit(not met)


if __name__ == "__main__":
    main()
