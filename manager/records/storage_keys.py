"""Rotation of the storage keys, in epochs: add one, encrypt the records again under it, destroy the others.

Once an epoch's key is destroyed, old copies of its records on the bus are unreadable: forward secrecy of stored
sessions depends on that. Where workers run on several machines, give each the new file before encrypting again.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from secrets import token_bytes

from attestgate.bus.api import Bus, Conflict
from attestgate.manager.local.atomic_file import atomic_write
from attestgate.manager.local.keyfiles import read_private
from attestgate.manager.records.current import POINTERS, Hold, Pointer
from attestgate.manager.records.record_cipher import RecordCipher, StorageKeys, epoch_of
from attestgate.manager.sessions.record import AppRecord, HostRecord
from attestgate.schemas.base import Refusal, parse_json


class StorageKeyFile:
    """The storage keys file, read again whenever it was replaced. Raises Refusal (`keys.file`)."""

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
    """Add a fresh epoch to the file; new records are encrypted under it from now on. Returns its number."""
    keys = read(path)
    epoch = max(map(int, keys.epochs)) + 1
    atomic_write(
        path, StorageKeys(epochs={**keys.epochs, str(epoch): token_bytes(32).hex()}).model_dump_json().encode()
    )
    return epoch


def destroy_old_epochs(path: Path) -> list[int]:
    """Remove every epoch but the newest from the file. Returns the numbers of those removed."""
    keys = read(path)
    newest = max(keys.epochs, key=int)
    atomic_write(path, StorageKeys(epochs={newest: keys.epochs[newest]}).model_dump_json().encode())
    return sorted(int(epoch) for epoch in keys.epochs if epoch != newest)


async def seal_again(bus: Bus, cipher: RecordCipher) -> int:
    """Encrypt every record under the newest epoch. Returns how many were found under another: call until it is 0.

    Safe beside running workers: a record that changes meanwhile keeps that change, and is looked at by the next call.
    Ended sessions stay until their retention is over: they hold no secret, and their last message may not be sent yet.
    """
    bucket, newest = bus.bucket(POINTERS), cipher.newest
    found = 0
    for key in await bucket.keys():
        entry = await bucket.get(key)
        if entry is None or entry.value is None or epoch_of(entry.value) == newest:
            continue
        found += 1
        record = _open(cipher, key, entry.value)
        counter = record.counter if isinstance(record, Pointer | Hold) else record.revision
        with suppress(Conflict):
            await bucket.update(key, cipher.seal(POINTERS, key, counter, record), entry.revision)
    return found


def _open(cipher: RecordCipher, key: str, value: bytes) -> HostRecord | AppRecord | Pointer | Hold:
    match key.split(".")[0]:
        case "host":
            return cipher.open(HostRecord, POINTERS, key, value)
        case "app":
            return cipher.open(AppRecord, POINTERS, key, value)
        case "held":
            return cipher.open(Hold, POINTERS, key, value)
        case _:
            return cipher.open(Pointer, POINTERS, key, value)
