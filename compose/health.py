"""Whether a container of the stack is well: `python -m compose.health WHAT WHERE...`, exit 0 or 1 with one line.

It runs every few seconds in every container, so it imports nothing but the standard library.
"""

from __future__ import annotations

import re
import socket
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

FRESH_S = 30.0
"""How old a worker's last sign of life may be."""
PATIENCE_S = 5.0


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
    """An agent's health file names an end of its lease that is still to come."""
    if time.time() >= int(Path(path).read_text(encoding="ascii")):
        raise ValueError("its lease is over: it is not trusted now")


def listens(path: str) -> None:
    """A unix stream socket takes connections; nothing is asked there."""
    _connect(path, socket.SOCK_STREAM)


def packets(path: str) -> None:
    """The simulated machine's socket takes connections."""
    _connect(path, socket.SOCK_SEQPACKET)


def _connect(path: str, kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.settimeout(PATIENCE_S)
        probe.connect(path)


CHECKS: dict[str, Callable[..., None]] = {
    "answers": answers,
    "recent": recent,
    "leased": leased,
    "listens": listens,
    "packets": packets,
}


def main(arguments: list[str]) -> int:
    """Exit codes: 0 well, 1 not."""
    try:
        CHECKS[arguments[0]](*arguments[1:])
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{' '.join(arguments)}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
