"""Storage keys come and go in epochs: add one, seal the live records again under it, destroy the others.

Once an epoch's key is destroyed, whatever the bus kept of its records stays closed: that is what forward secrecy of
stored sessions rests on. Where workers run on several machines, hand each the new file before sealing again.
"""

from __future__ import annotations

from pathlib import Path
from secrets import token_bytes

from bus.api import Bus, Conflict
from manager.keyfiles import read_private
from manager.outbox import POINTERS, Pointer
from manager.sessions.record import AppRecord, HostRecord
from manager.vault import StorageKeys, Vault, epoch_of
from manager.whole_file import replace_file
from schemas.base import Refusal, parse_json


class StorageKeyFile:
    """The storage keys file as a vault reads it: again whenever it was replaced. Raises Refusal (`keys.file`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int] | None = None

    def __call__(self) -> StorageKeys | None:
        try:
            found = self.path.stat()
        except OSError as error:
            raise Refusal.because(
                "keys.file",
                str(self.path),
                expected="the storage keys",
                found=error.strerror,
                action="restore the file",
            ) from None
        if self._seen == (found.st_ino, found.st_mtime_ns):
            return None
        keys = read(self.path)
        self._seen = (found.st_ino, found.st_mtime_ns)
        return keys


def read(path: Path) -> StorageKeys:
    """The storage keys in a file. Raises Refusal (`keys.file`, `file.*`)."""
    return parse_json(StorageKeys, read_private(path), source=str(path))


def add_epoch(path: Path) -> int:
    """Add a fresh epoch to the file; records are sealed under it from now on. Returns its number."""
    keys = read(path)
    epoch = max(map(int, keys.epochs)) + 1
    replace_file(path, StorageKeys(epochs={**keys.epochs, str(epoch): token_bytes(32).hex()}).model_dump_json())
    return epoch


def destroy_old_epochs(path: Path) -> list[int]:
    """Remove every epoch but the newest from the file. Returns the numbers that are gone."""
    keys = read(path)
    newest = max(keys.epochs, key=int)
    replace_file(path, StorageKeys(epochs={newest: keys.epochs[newest]}).model_dump_json())
    return sorted(int(epoch) for epoch in keys.epochs if epoch != newest)


async def seal_again(bus: Bus, vault: Vault) -> tuple[int, int]:
    """Seal every live record under the newest epoch; delete what has ended. Returns how many of each.

    Safe beside running workers: a record that changes meanwhile was sealed anew by who changed it.
    """
    bucket, newest = bus.bucket(POINTERS), vault.newest
    sealed = deleted = 0
    for key in await bucket.keys():
        entry = await bucket.get(key)
        if entry is None or entry.value is None or epoch_of(entry.value) == newest:
            continue
        record = _open(vault, key, entry.value)
        if isinstance(record, HostRecord | AppRecord) and record.over:
            await bucket.delete(key)
            deleted += 1
            continue
        counter = record.counter if isinstance(record, Pointer) else record.revision
        try:
            await bucket.update(key, vault.seal(POINTERS, key, counter, record), entry.revision)
        except Conflict:
            continue
        sealed += 1
    return sealed, deleted


def _open(vault: Vault, key: str, value: bytes) -> HostRecord | AppRecord | Pointer:
    match key.split(".")[0]:
        case "host":
            return vault.open(HostRecord, POINTERS, key, value)
        case "app":
            return vault.open(AppRecord, POINTERS, key, value)
        case _:
            return vault.open(Pointer, POINTERS, key, value)
