"""IAS reports signed under a root of the test's own."""

from __future__ import annotations

import base64
import json
import struct
from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

MADE = datetime(2025, 7, 1, tzinfo=UTC)
ENCLAVE = b"\x11" * 32
REPORT_DATA = bytes(range(64))


def quote_body(*, debug: bool = False, version: int = 2, sign_type: int = 1) -> bytes:
    header = struct.pack("<HH4sHH4s32s", version, sign_type, b"grup", 1, 1, b"", b"")
    attributes = bytes([7 if debug else 5]) + bytes(7) + b"\x07" + bytes(7)
    body = struct.pack(
        "<16s32s16s32s32s32s96sHHH42s16s64s",
        b"",
        b"",
        attributes,
        ENCLAVE,
        b"",
        b"",
        b"",
        1,
        2,
        0,
        b"",
        b"",
        REPORT_DATA,
    )
    return header + body


def report(quote: bytes | None = None, **fields: object) -> bytes:
    document: dict[str, object] = {
        "id": "1",
        "timestamp": "2025-07-01T00:00:00.123456",
        "version": 4,
        "isvEnclaveQuoteStatus": "OK",
        "isvEnclaveQuoteBody": base64.b64encode(quote or quote_body()).decode(),
        "nonce": "n1",
        "advisoryIDs": [],
    }
    return json.dumps({key: value for key, value in (document | fields).items() if value is not None}).encode()


@cache
def authority() -> tuple[x509.Certificate, x509.Certificate, rsa.RSAPrivateKey]:
    root_key, key = (rsa.generate_private_key(65537, 2048) for _ in range(2))
    root = issue("Root", root_key.public_key(), "Root", root_key, ca=True)
    return root, issue("Report Signing", key.public_key(), "Root", root_key, ca=False), key


def issue(
    subject: str,
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    issuer: str,
    issuer_key: rsa.RSAPrivateKey,
    *,
    ca: bool,
) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(MADE - timedelta(days=10))
        .not_valid_after(MADE + timedelta(days=100))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(issuer_key, SHA256())
    )
