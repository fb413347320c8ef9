"""One gateway worker per nginx: a second, on another bus or none, could restore entries that the first has removed."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attestgate.schemas.base import Refusal


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on nginx's folder, which is created if missing. Raises Refusal `gateway.*`.

    The folder itself is locked (flock), so no file is left behind, and the kernel releases it when this process ends.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise Refusal.because(
            "gateway.folder",
            str(folder),
            expected="nginx's folder",
            found=error.strerror,
            action="check nginx_socket and the folder's owner",
        ) from None
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Refusal.because(
            "gateway.running",
            str(folder),
            expected="an nginx without a gateway worker",
            found="another gateway worker",
            action="stop that one first",
        ) from None
