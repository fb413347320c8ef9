"""Known-good digests from a directory tree: an image or a package unpacked, before any host has run it."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Algorithm = Literal["sha1", "sha256", "sha384", "sha512"]
"""The kernel's `ima_hash`: what it hashes files with."""


def measured_files(root: Path, algorithm: Algorithm, *, below: bytes = b"/") -> Iterator[tuple[bytes, bytes]]:
    """Path, as a host's kernel will write it, and digest of every regular file under `root`, which is its `below`.

    Symbolic links are not followed: the kernel measures what they lead to. It writes spaces as underscores
    (ima_template_lib.c). Raises OSError for what cannot be read.
    """
    top = os.fsencode(root)
    for folder, folders, names in os.walk(top, onerror=_raise):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)  # noqa: PTH118  bytes: a path need not be text
            if stat.S_ISREG(os.lstat(path).st_mode):
                with open(path, "rb") as file:  # noqa: PTH123
                    digest = hashlib.file_digest(file, algorithm).digest()
                yield _joined(below, path[len(top) :]).replace(b" ", b"_"), digest


def _joined(below: bytes, path: bytes) -> bytes:
    return below.rstrip(b"/") + b"/" + path.lstrip(b"/")


def _raise(error: OSError) -> None:
    raise error
