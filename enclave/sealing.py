"""Sealed data: only this platform, and there only this code or code of its signer, can read it again.

A sealed blob is magic (4 bytes) || salt (32) || AES-256-GCM ciphertext. Its key is HKDF-SHA512 of the sealing key under
that fresh salt, so the nonce may be fixed: no key is used twice. Sealing does not stop an old blob from being put back:
what is sealed has to say itself which session it belongs to.
"""

from __future__ import annotations

from secrets import token_bytes

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from attestgate.enclave.api import Enclave, KeyPolicy
from attestgate.schemas.base import Refusal
from attestgate.schemas.binding import canonical, derive

_MAGIC = b"AGS1"
_SALT_SIZE = 32
_TAG_SIZE = 16
_NONCE = bytes(12)
OVERHEAD = len(_MAGIC) + _SALT_SIZE + _TAG_SIZE
"""Bytes that sealing adds."""


def seal(enclave: Enclave, policy: KeyPolicy, purpose: str, data: bytes) -> bytes:
    """Seal data for one purpose. Raises EnclaveError."""
    salt = token_bytes(_SALT_SIZE)
    return _MAGIC + salt + _aead(enclave, policy, purpose, salt).encrypt(_NONCE, data, _associated(policy, purpose))


def unseal(enclave: Enclave, policy: KeyPolicy, purpose: str, blob: bytes) -> bytes:
    """The data in a sealed blob. Raises Refusal (`seal.format`, `seal.open`), EnclaveError."""
    if len(blob) < OVERHEAD or not blob.startswith(_MAGIC):
        raise Refusal.because(
            "seal.format",
            purpose,
            expected=f"a sealed blob of at least {OVERHEAD} bytes",
            found=f"{len(blob)} bytes that are not a sealed blob",
            action="remove the file; it will be created again",
        )
    salt, ciphertext = blob[len(_MAGIC) :][:_SALT_SIZE], blob[len(_MAGIC) + _SALT_SIZE :]
    try:
        return _aead(enclave, policy, purpose, salt).decrypt(_NONCE, ciphertext, _associated(policy, purpose))
    except InvalidTag:
        raise Refusal.because(
            "seal.open",
            purpose,
            expected=f"data sealed by this platform for this {policy} and purpose",
            found="a blob that does not unseal",
            action="provision it again: it is from another platform, enclave or microcode level, or was changed",
        ) from None


def _aead(enclave: Enclave, policy: KeyPolicy, purpose: str, salt: bytes) -> AESGCM:
    return AESGCM(derive(enclave.sealing_key(policy), canonical("sealing key", policy, purpose), 32, salt))


def _associated(policy: KeyPolicy, purpose: str) -> bytes:
    return canonical("sealed data", _MAGIC, policy, purpose)
