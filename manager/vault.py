"""Records at rest: each one ciphertext under a storage key that is kept off the bus.

A record = [epoch, salt, counter, AES-256-GCM]; its key = HKDF-SHA512(storage key of the epoch, salt, [label, bucket,
key]); associated data = [label, bucket, key, counter]. Storage keys are short epochs: new records use the newest, an
epoch is destroyed after live records were sealed again, and with it goes whatever the bus kept of it.
"""

from __future__ import annotations

from secrets import token_bytes
from typing import Annotated, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import BaseModel, Field

from schemas.base import Bytes32, Hex32, Model, Refusal, Secret, pack, unpack
from schemas.binding import canonical, derive

M = TypeVar("M", bound=BaseModel)
_NONCE = bytes(12)
"""A constant nonce: the salt makes each key new."""


class StorageKeys(Model):
    """The storage keys file: epoch number to key. Held by manager workers only, mode 0600."""

    epochs: Annotated[dict[str, Hex32], Field(min_length=1)]


class Stored(Model):
    """A sealed record."""

    epoch: int
    salt: Bytes32
    counter: Annotated[int, Field(ge=0)]
    ciphertext: bytes


class Vault:
    """Seals and opens what stands in a bucket."""

    def __init__(self, keys: StorageKeys) -> None:
        self._keys = {int(epoch): Secret(bytes.fromhex(key)) for epoch, key in keys.epochs.items()}
        self.newest = max(self._keys)

    def seal(self, bucket: str, key: str, counter: int, record: BaseModel) -> bytes:
        """A record's bytes for the bucket. `counter` is the record's own revision."""
        salt = token_bytes(32)
        cipher = self._cipher(self.newest, bucket, key, salt)
        ciphertext = cipher.encrypt(_NONCE, pack(record), canonical("record data", bucket, key, counter))
        return pack(Stored(epoch=self.newest, salt=salt, counter=counter, ciphertext=ciphertext))

    def open(self, kind: type[M], bucket: str, key: str, data: bytes) -> M:
        """The record. Raises Refusal `record.open`: one that does not open is as good as absent."""
        stored = unpack(Stored, data)
        try:
            cipher = self._cipher(stored.epoch, bucket, key, stored.salt)
            plaintext = cipher.decrypt(_NONCE, stored.ciphertext, canonical("record data", bucket, key, stored.counter))
        except (InvalidTag, KeyError):
            raise Refusal.because(
                "record.open",
                f"{bucket}/{key}",
                expected=f"a record sealed under a storage key in {sorted(self._keys)}",
                found=f"epoch {stored.epoch}, which does not open it",
                action="the bus was tampered with, or this worker lacks a storage key",
            ) from None
        return unpack(kind, plaintext)

    def _cipher(self, epoch: int, bucket: str, key: str, salt: bytes) -> AESGCM:
        return AESGCM(derive(self._keys[epoch], canonical("record", bucket, key), 32, salt))
