"""Records at rest: each is one ciphertext under a storage key that is kept off the bus.

A record = [epoch, salt, counter, AES-256-GCM]; its key = HKDF-SHA512(storage key of the epoch, salt, [label, bucket,
key]); associated data = [label, bucket, key, counter]. Storage keys have epochs: new records use the newest; an old
one is destroyed once every record is encrypted under the newest, and any copy that the bus kept becomes unreadable.
"""

from __future__ import annotations

from collections.abc import Callable
from secrets import token_bytes
from typing import Annotated, Self, TypeVar

import msgpack
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import BaseModel, Field, StringConstraints

from attestgate.schemas.base import MAX_MESSAGE, Bytes32, Count, Hex32, Model, Refusal, Secret, decoded, unpack_own
from attestgate.schemas.binding import canonical, derive
from attestgate.schemas.bounds import Bounds

M = TypeVar("M", bound=BaseModel)
_NONCE = bytes(12)
"""Constant: the salt makes each key single-use."""


KeyEpoch = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,8}$", max_length=9)]


class StorageKeys(Model):
    """The storage keys file: epoch number to key. Held by manager workers only, mode 0600."""

    epochs: Annotated[dict[KeyEpoch, Hex32], Field(min_length=1, max_length=64)]


_RECORD = Bounds(size=MAX_MESSAGE, items=5, elements=4, data=MAX_MESSAGE)


class SealedRecord(Model):
    """An encrypted record. In the bucket it is an array: names would be a tenth of it."""

    epoch: Count
    salt: Bytes32
    counter: Count
    ciphertext: Annotated[bytes, Field(max_length=MAX_MESSAGE)]

    def body(self) -> bytes:
        """The bytes for the bucket."""
        return bytes(msgpack.packb([self.epoch, self.salt, self.counter, self.ciphertext]))

    @classmethod
    def read(cls, data: bytes) -> Self:
        """What `body` made. Raises Refusal `record.open`."""
        try:
            epoch, salt, counter, ciphertext = decoded(data, _RECORD)
            return cls(epoch=epoch, salt=salt, counter=counter, ciphertext=ciphertext)
        except Exception as error:  # noqa: BLE001  msgpack raises ValueError, TypeError, UnicodeError and its own kinds
            raise Refusal.because(
                "record.open",
                "record",
                expected="a sealed record: epoch, salt, counter, ciphertext",
                found=type(error).__name__,
                action="the bus was tampered with, or workers of two versions run",
            ) from None


class RecordCipher:
    """Seals and opens the records of a bucket (envelope encryption).

    `read_keys` gives the storage keys, and None while they are unchanged: a running worker picks up a rotation at its
    next record.
    """

    def __init__(self, read_keys: Callable[[], StorageKeys | None]) -> None:
        self._read_keys = read_keys
        self._keys: dict[int, Secret] = {}
        self._refresh()

    @property
    def newest(self) -> int:
        """The epoch of the key that encrypts new records."""
        self._refresh()
        return max(self._keys)

    def _refresh(self) -> None:
        keys = self._read_keys()
        if keys is not None:
            self._keys = {int(epoch): Secret(bytes.fromhex(key)) for epoch, key in keys.epochs.items()}

    def seal(self, bucket: str, key: str, counter: int, record: BaseModel) -> bytes:
        """A record's bytes for the bucket. `counter` is the record's own revision."""
        salt, epoch = token_bytes(32), self.newest
        cipher = self._aead(epoch, bucket, key, salt)
        plaintext = msgpack.packb(record.model_dump(exclude_defaults=True))  # saves space: most records are at rest
        ciphertext = cipher.encrypt(_NONCE, plaintext, canonical("record data", bucket, key, counter))
        return SealedRecord(epoch=epoch, salt=salt, counter=counter, ciphertext=ciphertext).body()

    def open(self, kind: type[M], bucket: str, key: str, data: bytes) -> M:
        """The record. Raises Refusal `record.open`: one that does not decrypt counts as absent.

        The bus may return an older record of the same key, and it decrypts: manager/records/record_memory.py refuses
        what this worker has seen a newer one of. Where no worker has, a lease counts from its challenge, and a gateway
        takes nothing below its floors.
        """
        stored = SealedRecord.read(data)
        # The epoch is not authenticated: a false one names a key that does not decrypt the record.
        if stored.epoch not in self._keys:
            self._refresh()
        try:
            cipher = self._aead(stored.epoch, bucket, key, stored.salt)
            plaintext = cipher.decrypt(_NONCE, stored.ciphertext, canonical("record data", bucket, key, stored.counter))
        except (InvalidTag, KeyError):
            raise Refusal.because(
                "record.open",
                f"{bucket}/{key}",
                expected=f"a record sealed under a storage key in {sorted(self._keys)}",
                found=f"a record of epoch {stored.epoch} that does not decrypt",
                action="the bus was tampered with, or this worker lacks a storage key",
            ) from None
        return unpack_own(kind, plaintext)

    def _aead(self, epoch: int, bucket: str, key: str, salt: bytes) -> AESGCM:
        return AESGCM(derive(self._keys[epoch], canonical("record", bucket, key), 32, salt))


def epoch_of(data: bytes) -> int:
    """The epoch of a record's key; not authenticated. Raises Refusal `record.open`.

    A bus that lies about it keeps a record from being encrypted again: it is lost with its epoch, as if deleted.
    """
    return SealedRecord.read(data).epoch
