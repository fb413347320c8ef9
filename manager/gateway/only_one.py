"""One gateway worker at one nginx: a second, with another bus or none, would put back what the first has taken out."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attestgate.schemas.base import Refusal


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold nginx's folder, made if missing. The kernel lets go of it with this process. Raises Refusal `gateway.*`."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise Refusal.because(
            "gateway.folder",
            str(folder),
            expected="nginx's folder",
            found=error.strerror,
            action="check nginx_socket, and whose folder it is",
        ) from None
    try:
        _hold(held, folder)
        yield
    finally:
        os.close(held)


def _hold(held: int, folder: Path) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Refusal.because(
            "gateway.running",
            str(folder),
            expected="an nginx that no worker keeps",
            found="another gateway worker",
            action="stop that one first",
        ) from None
