"""The worst sender for an hour: python -m bench.hostile_hour [--seconds 3600] [--all]

Five honest hosts with an application each are rechecked as their own schedule has it, with the default times. One
machine sends without a pause what costs the others most of all that bench.hostile_floods tries: with a viewer's
credential, calls of JetStream's API, and requests whose answers it does not read. With --all there are five machines
more, with a stolen credential of each other role, or none. The kernel's rules are in force (root). Printed each minute,
and at the end: sessions whose lease has lapsed (goal: none), the longest that one was without a renewal, as a part of a
lease, all renewals, and the most memory that nats-server and the worker have had. The exit status is 1 if a lease
lapsed, or nats-server took 4 GiB, at which the floods are stopped. Ctrl-C ends it with the figures so far.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from asyncio.subprocess import Process
from contextlib import AsyncExitStack, suppress

import structlog

from attestgate.schemas.settings import Timing
from bench.hostile_floods import LOOK_S, WORK_CORE, Attack, Ground, ground, own_network
from bench.sessions import peak_mib
from tests.support.manager.world import AUTHOR

HOSTS = 5
TIMING = Timing()
SAY_S = 60.0
WORST = [[Attack("viewer", "viewer", "calls", "viewer, calls"), Attack("viewer", "viewer", "unread", "viewer, unread")]]
"""What each machine sends."""
ALL = [
    *WORST,
    [Attack("host", "thief", "small", "host, small")],
    [Attack("app", "host-0.thief", "large", "app, large")],
    [Attack("gateway", "gateway-2", "reports", "gateway, signed reports")],
    [Attack("operator", AUTHOR, "large", "operator, large")],
    [Attack("", "", "connections", "no credential, connections")],
]


async def hour(seconds: float, machines: list[list[Attack]]) -> bool:
    """Flood, and print what came of it; whether no lease lapsed."""
    os.sched_setaffinity(0, WORK_CORE)
    async with ground(HOSTS, HOSTS, TIMING) as place, AsyncExitStack() as stack:
        told = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, told.set)
        place.fleet.begin()
        begun = time.monotonic()
        flooders = {}
        for address, attacks in enumerate(machines, 2):
            for attack in attacks:
                flooding = place.flooder(attack, place.site.server.url, f"127.0.0.{address}")
                flooders[attack.what], _ = await stack.enter_async_context(flooding)
        said = begun
        while not told.is_set() and not place.full() and time.monotonic() < begun + seconds:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await told.wait()
            if time.monotonic() >= said + SAY_S:
                said += SAY_S
                say(place, flooders, said - begun)
        say(place, flooders, time.monotonic() - begun)
        return not place.fleet.lapsed and not place.full()


def say(place: Ground, flooders: dict[str, Process], took: float) -> None:
    """Print a line of figures, and each session whose lease has lapsed by now."""
    fleet = place.fleet
    fleet.overdue()
    gap, server, worker = fleet.longest_gap_s(), peak_mib(place.site.server.pid), peak_mib(place.worker.pid)
    print(
        f"{took:6,.0f} s  leases lapsed {len(fleet.lapsed):2} of {len(fleet.honest)}"
        f"  longest without a renewal {gap:5.1f} s = {gap / TIMING.lease_s:.2f} of a lease"
        f"  renewals {fleet.renewals:6,}  at most: nats-server {server:6,.0f} MiB, worker {worker:5,.0f} MiB",
        flush=True,
    )
    for (kind, id), how in sorted(fleet.lapsed.items()):
        print(f"  {kind} {id}: {how}", flush=True)
    for what, flooder in flooders.items():
        if flooder.returncode is not None:
            raise RuntimeError(f"the flooder {what!r} has ended: {flooder.returncode}")


def main() -> None:
    """See the module."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--all", action="store_true", help="six machines at once")
    given = parser.parse_args()
    own_network()
    sys.exit(not asyncio.run(hour(given.seconds, ALL if given.all else WORST)))


if __name__ == "__main__":
    main()
