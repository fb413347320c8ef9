"""Health check of a container of the stack: `python -m attestgate.compose.images.health WHAT WHERE...` exits 0 or 1.

It runs every few seconds in every container, so it imports nothing but the standard library.
"""

from __future__ import annotations

import re
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

FRESH_S = 30.0
"""Greatest age of a worker's last sign of life."""
PATIENCE_S = 5.0
SO_ACCEPTCON = 0x10000
"""The kernel's flag of a listening socket (include/uapi/linux/net.h)."""


def answers(url: str) -> None:
    """An HTTP service of this container answers."""
    with urllib.request.urlopen(url, timeout=PATIENCE_S):  # noqa: S310  an address in the Dockerfile
        return


def recent(url: str, name: str) -> None:
    """A metric that holds a time is recent."""
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:  # noqa: S310
        found = re.search(rf"^{name} (\S+)$", answer.read().decode(), re.MULTILINE)
    if found is None or time.time() - float(found.group(1)) > FRESH_S:
        raise ValueError(f"{name} is {found.group(1) if found else 'missing'}: not of the last {FRESH_S:g} s")


def leased(path: str) -> None:
    """An agent's health file names a lease end in the future."""
    if time.time() >= int(Path(path).read_text(encoding="ascii")):
        raise ValueError("its lease has expired: it is not trusted now")


def listens(path: str) -> None:
    """A process listens on a unix socket (proc_net_unix(5)); it is not connected to, so as not to disturb it."""
    for line in Path("/proc/net/unix").read_text(encoding="utf-8").splitlines():
        fields = line.split()
        if fields[-1] == path and int(fields[3], 16) & SO_ACCEPTCON:
            return
    raise ValueError("no process listens there")


CHECKS: dict[str, Callable[..., None]] = {
    "answers": answers,
    "recent": recent,
    "leased": leased,
    "listens": listens,
}


def main(arguments: list[str]) -> int:
    """Exit codes: 0 healthy, 1 not."""
    try:
        CHECKS[arguments[0]](*arguments[1:])
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{' '.join(arguments)}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
