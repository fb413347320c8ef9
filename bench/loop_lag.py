"""How long a manager worker keeps its event loop: the loop's lag while the largest permitted inputs are handled.

    python -m bench.loop_lag [--rounds N]

One worker on the bus in memory, in this process, with real agents, quotes and collateral. A message is made and kept
back; the lag is measured from when it is delivered until the worker has answered. The lag is what a timer of 1 ms is
late by; the longest gap of each round is the round's figure. Other load on the machine adds to it, so what the loop's
thread computed in a gap is printed as well, but for gaps in which a hypervisor took the processor away. `floor` is the
same with nothing to do.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import statistics
import tempfile
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from attestgate.bus import subjects
from attestgate.compose.local.policies import LearnedPolicies
from attestgate.manager.verification.ima.measurement_list import entries
from attestgate.manager.verification.ima.runtime_policy import learn
from attestgate.schemas.base import MAX_MESSAGE
from attestgate.schemas.enrolment import RecheckNow
from attestgate.schemas.messages import MAX_LIST
from attestgate.schemas.sgx import policy_name
from bench.ima import entry
from tests.support.manager.deployment import Deployment, deployed
from tests.support.manager.world import World

ROOM = 192 * 1024
"""Bytes of a message left for what travels beside the list."""
TICK_S = 0.001
BOOT = entry("boot_aggregate", bytes(31) + b"\1")[0]
"""How every list begins."""


def dense(size: int = MAX_MESSAGE - ROOM) -> bytes:
    """A list of distinct entries, as many as fit into one message when compressed."""
    some, made, found = random.Random(1), [BOOT], 0
    deflate = zlib.compressobj(6)
    while found < size:
        block = b"".join(entry(f"/opt/{len(made) + n}", some.randbytes(32))[0] for n in range(1000))
        made.append(block)
        found += len(deflate.compress(block) + deflate.flush(zlib.Z_SYNC_FLUSH))
    return b"".join(made[:-1])


def long(size: int = MAX_LIST) -> bytes:
    """A list of the largest size: runs of 150 entries, repeated within the reach of the compression."""
    some, made, length = random.Random(2), [BOOT], 0
    while length < size:
        block = b"".join(entry(f"/usr/lib/{length + n}/module.py", some.randbytes(32))[0] for n in range(150)) * 20
        made.append(block)
        length += len(block)
    return b"".join(made)[:size].rpartition(pcr_10())[0]


def pcr_10() -> bytes:
    """How an entry begins."""
    return (10).to_bytes(4, "little")


def policies(known: bytes, excludes: list[str]) -> LearnedPolicies:
    """Policies under which a list is accepted."""
    learned, _ = learn([entries(known)])
    runtime = json.dumps(json.loads(learned.model_copy(update={"excludes": excludes}).text())).encode()
    host = {"version": 1, "runtime_policy": policy_name(runtime), "accept_unanchored": True}
    sgx = {"version": 1, "isv_prod_id": 1, "min_isv_svn": 1}
    return LearnedPolicies(sgx=json.dumps(sgx).encode(), host=json.dumps(host).encode(), runtime=runtime)


@dataclass
class Lag:
    """The longest gap between two turns of a timer, in ms: by the clock, and what the loop's thread computed."""

    late: float = 0.0
    computed: float = 0.0
    tick_s: float = TICK_S

    async def watch(self) -> None:
        last, used, stolen = time.perf_counter(), time.thread_time(), steal()
        while True:
            await asyncio.sleep(self.tick_s)
            now, cpu, taken = time.perf_counter(), time.thread_time(), steal()
            self.late = max(self.late, (now - last - self.tick_s) * 1000)
            if taken == stolen:
                self.computed = max(self.computed, (cpu - used) * 1000)
            last, used, stolen = now, cpu, taken


def steal() -> str:
    """For how long a hypervisor had the processors do other work (proc(5)): a thread's time includes it."""
    return Path("/proc/stat").read_text().split(maxsplit=9)[8]


Figures = tuple[float, float, float]
"""Lag by the clock and in CPU time, in ms; seconds that it all took."""


async def measured(work: Awaitable[object]) -> Figures:
    """The figures of something that is done."""
    gc.collect()
    lag, began = Lag(), time.perf_counter()
    watching = asyncio.create_task(lag.watch())
    await asyncio.sleep(0.01)
    await work
    await asyncio.sleep(0.01)
    watching.cancel()
    return lag.late, lag.computed, time.perf_counter() - began


@asynccontextmanager
async def site(folder: Path, world: World, by: LearnedPolicies) -> AsyncIterator[Deployment]:
    """A deployment under these policies, with host h1 enrolled; its worker holds collateral."""
    async with deployed(world, folder) as deployment:
        await deployment.enrol_host("h2", "machine-b")
        other = await deployment.host("h2", "machine-b")
        await deployment.until("host", "h2", "trusted")
        await other.stop()
        await deployment.order(by.command(world.author, version=2))
        await deployment.enrol_host()
        yield deployment


async def evidence(folder: Path, world: World, by: LearnedPolicies, data: bytes) -> Figures:
    """A host's first evidence with this list; the policy was read for its last session, whose list was short."""
    async with site(folder, world, by) as deployment:
        deployment.measurement_list.write_bytes(BOOT)
        other = await deployment.host()
        await deployment.until("host", "h1", "trusted")
        await other.stop()
        await deployment.advance(2)
        since = len(deployment.events)
        deployment.measurement_list.write_bytes(data)
        kept = deployment.wire.hold(subjects.inbound("host", "h1", "evidence"))
        await deployment.host()
        held = await kept
        granted = deployment.until("host", "h1", "granted", since=since)
        deployment.wire.inject(*held)
        return await measured(granted)


async def recheck(folder: Path, world: World, by: LearnedPolicies, data: bytes) -> Figures:
    """A recheck's evidence, the list having grown from its first entry to this."""
    async with site(folder, world, by) as deployment:
        deployment.measurement_list.write_bytes(BOOT)
        await deployment.host()
        await deployment.until("host", "h1", "trusted")
        deployment.measurement_list.write_bytes(data)
        kept = deployment.wire.hold(subjects.inbound("host", "h1", "recheck_evidence"))
        await deployment.order(RecheckNow(kind="host", id="h1"))
        held = await kept
        passed = deployment.until("host", "h1", "rechecked")
        deployment.wire.inject(*held)
        return await measured(passed)


async def policy(folder: Path, world: World, by: LearnedPolicies, _: bytes) -> Figures:
    """A policy set put in force and used for the first time, by a recheck with a short list."""
    async with site(folder, world, world.policies) as deployment:
        await deployment.host()
        await deployment.until("host", "h1", "trusted")

        command = deployment.command(by.command(world.author, version=3))

        async def put() -> None:
            await deployment.send_command(command)
            since = len(deployment.events)
            await deployment.order(RecheckNow(kind="host", id="h1"))
            await deployment.seen(lambda e: e.subject == "h1" and e.what in ("rechecked", "untrusted"), since=since)

        return await measured(put())


async def nothing(folder: Path, world: World, by: LearnedPolicies, _: bytes) -> Figures:
    """Nothing to do."""
    return await measured(asyncio.sleep(1.0))


Case = Callable[[Path, World, LearnedPolicies, bytes], Awaitable[Figures]]


async def bench(rounds: int, only: str) -> None:
    """Every case, `rounds` times."""
    with tempfile.TemporaryDirectory(prefix="attestgate-bench-") as name:
        folder = Path(name)
        world = World(folder / "world")
        largest, densest = long(), dense()
        known = dense(4 * 1024 * 1024)
        broad = ["/opt/", *(f"/srv/{n}/[a-z]+/" for n in range(3000))]
        cases: dict[str, tuple[Case, LearnedPolicies, bytes]] = {
            "floor": (nothing, world.policies, b""),
            "first evidence, 64 MiB": (evidence, policies(largest, []), largest),
            "first evidence, 8 MiB compressed": (evidence, policies(known, ["/opt/"]), densest),
            "recheck, 64 MiB": (recheck, policies(largest, []), largest),
            "recheck, 8 MiB compressed": (recheck, policies(known, ["/opt/"]), densest),
            "policy, 7 MiB": (
                policy,
                policies(dense(6 * 1024 * 1024), broad),
                b"",
            ),
        }
        for number, (what, (case, by, data)) in enumerate(cases.items()):
            if only not in what:
                continue
            late, computed, took = zip(
                *[await case(folder / f"{number}-{turn}", world, by, data) for turn in range(rounds)], strict=True
            )
            count = len(list(entries(data))) if data else 0
            print(
                f"{what:34} {count:8} entries  policy {len(by.runtime) / 2**20:5.1f} MiB"
                f"  lag {spread(late)} ms, of CPU {spread(computed)} ms  took {spread(took, 2)} s",
                flush=True,
            )


def spread(figures: tuple[float, ...], digits: int = 1) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(figures):.{digits}f} ({min(figures):.{digits}f} to {max(figures):.{digits}f})"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    given = parser.parse_args()
    asyncio.run(bench(given.rounds, given.only))


if __name__ == "__main__":
    main()
