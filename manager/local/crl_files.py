"""A worker's own copy of each revocation list that it published last: the bus cannot take that back."""

from __future__ import annotations

from pathlib import Path

import structlog

from attestgate.manager.local.atomic_file import atomic_write

log = structlog.get_logger(__name__)


class CrlFiles:
    """Lists in DER by their issuer's subject key identifier, in memory and in a folder.

    Where the folder cannot be written, the copy in memory serves until the worker ends: a revocation must not wait for
    a disk.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, bytes] = {}

    def read(self, issuer: str) -> bytes | None:
        """The list published last, or None. Not checked: it is worth what its signature is worth."""
        if issuer not in self._held:
            try:
                self._held[issuer] = self._path(issuer).read_bytes()
            except OSError:
                return None
        return self._held[issuer]

    def write(self, issuer: str, der: bytes) -> None:
        """Keep a list."""
        self._held[issuer] = der
        try:
            atomic_write(self._path(issuer), der)
        except OSError as error:
            log.error("copy of a revocation list not written", path=str(self._path(issuer)), error=str(error))

    def _path(self, issuer: str) -> Path:
        return self._folder / f"{issuer}.crl"
