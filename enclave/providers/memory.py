"""Bytes as a file in memory, for libraries that read secrets only from files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

from attestgate.enclave.providers.gramine import DEV_ATTESTATION

GRAMINE_TMPFS = Path("/tmp")  # noqa: S108
"""A tmpfs, as the measured manifest mounts it: the enclave's own memory."""


@contextmanager
def file_in_memory(data: bytes) -> Iterator[Path]:
    """A path to read them from, within the block. Raises OSError if only a disk could hold them."""
    if DEV_ATTESTATION.is_dir():  # Gramine, which has no memfd_create
        with NamedTemporaryFile(dir=GRAMINE_TMPFS) as file:
            file.write(data)
            file.flush()
            yield Path(file.name)
    else:
        with os.fdopen(os.memfd_create("private", os.MFD_CLOEXEC), "wb") as file:
            file.write(data)
            file.flush()
            yield Path(f"/proc/self/fd/{file.fileno()}")
