"""A network of one's own: a network namespace with nothing but loopback, in which the kernel's rules limit nobody else.

Every address in 127.0.0.0/8 is a machine there, and so is every IPv6 address that is asked for.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from attestgate.bus.server.firewall import MACHINES, Network, rules

T = TypeVar("T")
HINT = "needs root, ip and nft for a network of its own: make setup-firewall"
_CLONE_NEWNET = 0x4000_0000
_libc = ctypes.CDLL(None, use_errno=True)


def possible() -> bool:
    """Whether this process can make one; if not, HINT says what it takes."""
    return os.getuid() == 0 and all(shutil.which(program) for program in ("ip", "nft"))


def own_network(addresses: Sequence[str] = ()) -> None:
    """Move this thread, and what it starts from now on, to a new network. Raises OSError, CalledProcessError."""
    if _libc.unshare(_CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"unshare: {os.strerror(number)}; {HINT}")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for address in addresses:
        subprocess.run(["ip", "address", "add", address, "dev", "lo"], check=True)


def load(ports: Sequence[int], unlimited: Sequence[Network] = (), machines: int = MACHINES) -> None:
    """Load the rules for servers' ports, in this thread's network. Raises CalledProcessError."""
    subprocess.run(["nft", "-f", "-"], input=rules(ports, unlimited, machines), text=True, check=True)


def within(work: Callable[[], Coroutine[None, None, T]], addresses: Sequence[str] = ()) -> T:
    """Run to its end, in a thread, what stays in a network of its own."""

    def run() -> T:
        own_network(addresses)
        return asyncio.run(work())

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(run).result()
