"""Public revocation lists: copies from the bus into files that nginx serves under `/crl/`.

Clients verify the CA's signature themselves. The gateway does not decide by these lists: it admits by leases.
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
"""Most lists at a time, one for each issuing CA: a hostile bus cannot fill the disk."""


def publish(folder: Path, key: str, der: bytes) -> Path:
    """Write a list to `crl/<issuer>.crl` atomically. Raises Refusal (`crl.*`)."""
    issuer = key.removeprefix(CRL)
    try:
        # The key comes from the bus: letters and digits only, so that it cannot name a path outside the folder.
        if len(der) > _MAX or not issuer.isalnum():
            raise ValueError("too long, or without an issuer")
        x509.load_der_x509_crl(der)
    except ValueError as error:
        raise _refused(key, "a revocation list (RFC 5280) in DER", str(error)) from None
    target = folder / "crl" / f"{issuer}.crl"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() and len(list(target.parent.glob("*.crl"))) >= MOST:
            raise _refused(key, f"at most {MOST} issuers", "one more")
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
            file.write(der)
            os.fchmod(file.fileno(), 0o644)
        Path(file.name).replace(target)
    except OSError as error:
        raise _refused(str(target), "a writable folder", str(error.strerror)) from None
    return target


def _refused(field: str, expected: str, found: str) -> Refusal:
    action = "check nginx_public, and who may write to the bus"
    return Refusal.because("crl.publish", field, expected=expected, found=found, action=action)
