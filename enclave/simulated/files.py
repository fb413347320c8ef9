"""Private files of the simulated parts: created with mode 0600, replaced atomically, read with a clear refusal."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509 import Certificate, load_pem_x509_certificate

from attestgate.schemas.base import Refusal


def new_folder(path: Path) -> None:
    """Create a private folder. Raises Refusal `simulated.exists` if it is not empty."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise Refusal.because(
            "simulated.exists", str(path), expected="an empty folder", found="files", action="choose another folder"
        )


def write_private(path: Path, data: bytes) -> None:
    """Write a file atomically, with mode 0600."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
    draft.replace(path)


def write_key(path: Path, key: PrivateKeyTypes) -> None:
    """Write a private key as PKCS #8 in PEM, mode 0600."""
    write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def read_bytes(path: Path) -> bytes:
    """A file's bytes. Raises Refusal `file.read`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Refusal.because(
            "file.read", str(path), expected="a readable file", found=error.strerror, action="check the path"
        ) from None


def read_p256_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A P-256 private key in PEM. Raises Refusal (`file.*`)."""
    key = read_key(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise not_a(path, "P-256 private key")
    return key


def read_key(path: Path) -> PrivateKeyTypes:
    """A private key in PEM. Raises Refusal (`file.*`)."""
    try:
        return load_pem_private_key(read_bytes(path), password=None)
    except (ValueError, TypeError):
        raise not_a(path, "private key") from None


def read_certificate(path: Path) -> Certificate:
    """A certificate in PEM. Raises Refusal (`file.*`)."""
    try:
        return load_pem_x509_certificate(read_bytes(path))
    except ValueError:
        raise not_a(path, "certificate") from None


def not_a(path: Path, kind: str) -> Refusal:
    """The refusal of a file that does not hold what it should."""
    return Refusal.because(
        "file.content", str(path), expected=f"a {kind} in PEM", found="other content", action="create the folder again"
    )
