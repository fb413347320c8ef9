"""The revocation list of an issuing CA, as one document that grows: its entries, and one more.

It decides nothing at the gateways, which admit by leases: it is for those who check certificates without them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestgate.manager.pki.authority import Issuer, revocation_list
from attestgate.schemas.base import Refusal

LIFE = timedelta(days=1)
"""From a list to the time by which there is a newer one."""
MAX_ENTRIES = 5000
"""Most entries, so that a list fits into the bus; the oldest go first. Entries end with their certificates anyway."""


@dataclass(frozen=True)
class Revocation:
    """One certificate to be listed: its serial, the Unix second of its revocation, and why (RFC 5280, 5.3.1)."""

    serial: int
    at: int
    reason: x509.ReasonFlags


def read(issuer: Issuer, der: bytes) -> x509.CertificateRevocationList:
    """A list that this CA has signed. Raises Refusal `crl.read`: one from elsewhere is as good as none."""
    try:
        found = x509.load_der_x509_crl(der)
        genuine = found.is_signature_valid(issuer.key.public_key()) and found.issuer == issuer.certificate.subject
    except ValueError:
        genuine = False
    if not genuine:
        raise Refusal.because(
            "crl.read",
            "revocation list",
            expected="a CRL signed by this CA",
            found="another signer, or no CRL",
            action="find out who may write the bucket admissions; the next list rests on the workers' own copies",
        )
    return found


def extend(
    issuer: Issuer,
    before: Sequence[x509.CertificateRevocationList],
    revoked: Iterable[Revocation],
    *,
    at: int,
    longest_s: int,
    passed: int | None = None,
) -> bytes:
    """The next list, in DER: all that stood on those before, and the entries given.

    Entries whose certificates have expired are left out. Numbers rise (RFC 5280, section 5.2.3), and none is below the
    Unix second `at`: who has lost every earlier list still goes on above it. `longest_s` is the
    longest life of a certificate, so that no entry is needed longer than that after its revocation: by `passed`, where
    the clock that says `at` may be ahead.
    """
    now = datetime.fromtimestamp(at, UTC)
    present = {entry.serial_number: entry for earlier in before for entry in earlier}
    for one in revoked:
        present.setdefault(one.serial, _entry(one))
    oldest = datetime.fromtimestamp(at if passed is None else passed, UTC) - timedelta(seconds=longest_s)
    kept = sorted(
        (entry for entry in present.values() if entry.revocation_date_utc > oldest),
        key=lambda entry: entry.revocation_date_utc,
    )[-MAX_ENTRIES:]
    number = max([at, *(_number(earlier) + 1 for earlier in before)])
    return revocation_list(issuer, kept, number, now, LIFE).public_bytes(Encoding.DER)


def _entry(revoked: Revocation) -> x509.RevokedCertificate:
    return (
        x509.RevokedCertificateBuilder()
        .serial_number(revoked.serial)
        .revocation_date(datetime.fromtimestamp(revoked.at, UTC))
        .add_extension(x509.CRLReason(revoked.reason), critical=False)
        .build()
    )


def _number(crl: x509.CertificateRevocationList) -> int:
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
