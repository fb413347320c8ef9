"""Evidence with one thing changed and signed again by whoever signs it: what only a verifier's own checks can catch."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from attestgate.enclave.simulated.certificates import Issuer
from attestgate.enclave.simulated.files import read_certificate, read_p256_key
from attestgate.manager.verification.sgx.collateral import Collateral
from attestgate.manager.verification.sgx.quote import SIGNED_LENGTH, parse
from tests.support.sgx.simulated import NOW, SimulatedSgx

DAY = 86_400


def issuer(sgx: SimulatedSgx, part: str) -> Issuer:
    """One of the authority's own: root, platform, processor or tcb_signing."""
    folder = sgx.folder / "authority"
    return Issuer(read_certificate(folder / f"{part}.pem"), read_p256_key(folder / f"{part}.key"))


def signed(sgx: SimulatedSgx, piece: str, **changes: object) -> Collateral:
    """Collateral with fields of one document changed (None takes a field away), signed as the authority signs."""
    collateral = sgx.collateral()
    body = json.loads(getattr(collateral, piece)) | changes
    document = sgx.authority.sign(json.dumps({k: v for k, v in body.items() if v is not None}).encode())
    return collateral.model_copy(update={piece: document.body.decode(), f"{piece}_signature": document.signature})


def crl(
    by: Issuer,
    *,
    revoked: Iterable[int] = (),
    number: int | None = 1,
    opens: int = NOW - DAY,
    closes: int = NOW + DAY,
    name: x509.Name | None = None,
) -> bytes:
    """A CRL, DER."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(name or by.certificate.subject)
        .last_update(moment(opens))
        .next_update(moment(closes))
    )
    if number is not None:
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(moment(opens)).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(by.key, SHA256()).public_bytes(Encoding.DER)


def reissued(
    certificate: x509.Certificate, by: ec.EllipticCurvePrivateKey, opens: int, closes: int, *, ca: bool | None = None
) -> x509.Certificate:
    """The same certificate with another validity, and other basic constraints if `ca` is given."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(certificate.subject)
        .issuer_name(certificate.issuer)
        .public_key(certificate.public_key())
        .serial_number(certificate.serial_number)
        .not_valid_before(moment(opens))
        .not_valid_after(moment(closes))
    )
    for extension in certificate.extensions:
        value = extension.value
        if ca is not None and isinstance(value, x509.BasicConstraints):
            value = x509.BasicConstraints(ca=ca, path_length=None)
        builder = builder.add_extension(value, extension.critical)
    return builder.sign(by, SHA256())


def with_chain(quote: bytes, *chain: x509.Certificate) -> bytes:
    """A quote with another PCK chain; every length fits again."""
    pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)
    before = quote[SIGNED_LENGTH + 4 : -len(parse(quote).pck_chain_pem) - 4]
    data = before + struct.pack("<I", len(pem)) + pem
    return quote[:SIGNED_LENGTH] + struct.pack("<I", len(data)) + data


def with_qe_report(sgx: SimulatedSgx, quote: bytes, at: int, value: bytes) -> bytes:
    """A quote whose quoting enclave's report has other bytes at `at`, signed by the machine's PCK all the same."""
    start = SIGNED_LENGTH + 4 + 128
    report = bytearray(quote[start : start + 384])
    report[at : at + len(value)] = value
    pck = read_p256_key(sgx.folder / sgx.machine / "pck.key")
    r, s = decode_dss_signature(pck.sign(bytes(report), ec.ECDSA(SHA256())))
    signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    return quote[:start] + report + signature + quote[start + 448 :]


def moment(second: int) -> datetime:
    """A Unix second as an aware datetime."""
    return datetime.fromtimestamp(second, UTC)


def rfc3339(second: int) -> str:
    """A Unix second as Intel's documents write it."""
    return moment(second).strftime("%Y-%m-%dT%H:%M:%SZ")
