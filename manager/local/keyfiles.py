"""Keys on disk: Ed25519 identities in PKCS #8 PEM, secrets as hexadecimal text; both of mode 0600, or refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from attestgate.schemas.base import Refusal, Secret


def write_private(path: Path, data: bytes) -> None:
    """Write a new file that only its owner reads. Raises Refusal `keys.exists`."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Refusal.because(
            "keys.exists",
            str(path),
            expected="no file there yet",
            found="an existing file",
            action="choose another folder; a key in use is never overwritten",
        ) from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def create_identity(path: Path) -> bytes:
    """A new Ed25519 key in a new file. Returns the public half, 32 bytes."""
    key = Ed25519PrivateKey.generate()
    write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key.public_key().public_bytes_raw()


def read_identity(path: Path) -> Ed25519PrivateKey:
    """An Ed25519 key from its file. Raises Refusal `keys.*`."""
    try:
        key = load_pem_private_key(read_private(path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _bad(path, "an Ed25519 key in PEM", type(error).__name__) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _bad(path, "an Ed25519 key", type(key).__name__)
    return key


def read_secret(path: Path) -> Secret:
    """Secret bytes from a file of hexadecimal text. Raises Refusal `keys.*`."""
    try:
        return Secret(bytes.fromhex(read_private(path).decode("ascii").strip()))
    except ValueError:
        raise _bad(path, "hexadecimal text", "other text") from None


def read_private(path: Path) -> bytes:
    """A secret file's bytes. Raises Refusal `keys.*` if others may read it."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise _bad(path, "a file that only its owner may read (mode 0600)", f"mode {mode:04o}")
        return path.read_bytes()
    except OSError as error:
        raise _bad(path, "a readable file", error.strerror or type(error).__name__) from None


def _bad(path: Path, expected: str, found: str) -> Refusal:
    return Refusal.because(
        "keys.file", str(path), expected=expected, found=found, action="see: attestgate keys init --help"
    )
