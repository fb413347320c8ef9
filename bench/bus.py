"""Throughput of the bus alone, by durability: one server, one that flushes each write, a cluster of three.

    python -m bench.bus [--rounds N] [--count N]

"writes" are plain compare-and-set writes of 2 KiB to a bucket; "transitions" are the bus operations of one transition
(read, compare-and-set, summary, event, deadline) with nothing in between. One client, 64 in flight. Figures are the
median and spread of the rounds; the kinds of server alternate within a round.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from secrets import token_hex

from attestgate.bus import subjects
from attestgate.bus.auth import credentials
from attestgate.bus.client.nats import NatsBus, connect
from attestgate.bus.client.setup import ensure
from attestgate.bus.server.cluster import EmbeddedCluster
from attestgate.bus.server.embedded import EmbeddedServer

IN_FLIGHT = 64
RECORD, LINE = bytes(2048), bytes(400)
Once = Callable[[NatsBus, str], Awaitable[None]]


async def write(bus: NatsBus, session: str) -> None:
    """A plain compare-and-set write."""
    await bus.bucket("sessions").create(f"host.{session}", RECORD)


async def transition(bus: NatsBus, session: str) -> None:
    """The bus operations of one transition."""
    key = f"host.{session}"
    sessions = bus.bucket("sessions")
    await sessions.get(key)
    await sessions.create(key, RECORD)
    await asyncio.gather(
        bus.bucket("summaries").put(f"host.h.{session}", LINE),
        bus.publish(subjects.event("host", f"h{session[:8]}", "rechecking"), LINE),
        bus.schedule(subjects.deadline(session), b"host", at=4_000_000_000),
    )


async def rate(bus: NatsBus, once: Once, count: int) -> float:
    """Operations per second."""
    room = asyncio.Semaphore(IN_FLIGHT)

    async def one() -> None:
        async with room:
            await once(bus, token_hex(16))

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(count)))
    return count / (time.perf_counter() - started)


def shown(figures: Sequence[float], unit: str = "/s") -> str:
    """Median and spread."""
    return f"{statistics.median(figures):,.0f}{unit} ({min(figures):,.0f} to {max(figures):,.0f})"


async def measure(rounds: int, count: int) -> None:
    """Print the table."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="attestgate-bench-")))
        trust = credentials.create(folder / "keys")
        credentials.issue(folder / "keys", "manager", "bench", folder / "creds")
        servers: dict[str, tuple[EmbeddedServer | EmbeddedCluster, int]] = {
            "one server, flushed every 2 min": (EmbeddedServer(folder / "one", trust), 1),
            "one server, flushed each time": (EmbeddedServer(folder / "sync", trust, sync_interval="always"), 1),
            "three servers": (EmbeddedCluster(folder / "three", trust), 3),
        }
        buses = {}
        for name, (server, replicas) in servers.items():
            await stack.enter_async_context(server)
            buses[name] = await connect([server.url], folder / "creds")
            stack.push_async_callback(buses[name].close)
            await ensure(buses[name], replicas)
        figures: dict[tuple[str, str], list[float]] = defaultdict(list)
        for _ in range(rounds):
            for name, bus in buses.items():
                figures[name, "writes"].append(await rate(bus, write, count))
                figures[name, "transitions"].append(await rate(bus, transition, count))
        for name in buses:
            writes, transitions = figures[name, "writes"], figures[name, "transitions"]
            ratio = statistics.median(t / w for t, w in zip(transitions, writes, strict=True))
            print(f"{name:34} writes {shown(writes)}, transitions {shown(transitions)}, ratio {ratio:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=2000)
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.rounds, arguments.count))
