"""Revocation lists for anybody: what the bus has, as files that nginx serves under `/crl/`.

Whoever takes one checks its CA's signature; nothing at the gateway decides on it while it has leases.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from cryptography import x509

from attestgate.schemas.admission import CRL
from attestgate.schemas.base import Refusal

_MAX = 1024 * 1024
MOST = 64
"""Lists at once, one an issuing CA: nobody fills the disk by naming more."""


def publish(folder: Path, key: str, der: bytes) -> Path:
    """Put a list into place, whole or not at all: `crl/<issuer>.crl`. Raises Refusal (`crl.*`)."""
    issuer = key.removeprefix(CRL)
    try:
        if len(der) > _MAX or not issuer.isalnum():
            raise ValueError("too long, or without an issuer")
        x509.load_der_x509_crl(der)
    except ValueError as error:
        raise _refused(key, "a revocation list (RFC 5280) in DER", str(error)) from None
    target = folder / "crl" / f"{issuer}.crl"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() and len(list(target.parent.glob("*.crl"))) >= MOST:
            raise _refused(key, f"{MOST} issuers at most", "one more")
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
            file.write(der)
            os.fchmod(file.fileno(), 0o644)
        Path(file.name).replace(target)
    except OSError as error:
        raise _refused(str(target), "a folder that can be written", str(error.strerror)) from None
    return target


def _refused(field: str, expected: str, found: str) -> Refusal:
    action = "check nginx_public, and who writes the bus"
    return Refusal.because("crl.publish", field, expected=expected, found=found, action=action)
