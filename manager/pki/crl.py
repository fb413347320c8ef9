"""The revocation list of an issuing CA, as one document that grows: what it says of now, and one more entry.

It stands beside the gateways' leases, and decides nothing there: it is for those who check certificates without them.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestgate.manager.pki.authority import Issuer, revocation_list
from attestgate.manager.sessions.states import State
from attestgate.manager.sessions.work import Revoked
from attestgate.schemas.base import Refusal

LIFE = timedelta(days=1)
"""From a list to the time by which there is a newer one."""
MAX_ENTRIES = 5000
"""Most entries, so that a list fits into the bus; the oldest go first. Entries end with their certificates anyway."""
_REASONS = {
    State.REVOKED: x509.ReasonFlags.privilege_withdrawn,
    State.UNTRUSTED: x509.ReasonFlags.key_compromise,
    State.SUPERSEDED: x509.ReasonFlags.superseded,
}
"""RFC 5280, section 5.3.1; any other end: cessation of operation. An untrusted host may have leaked the key."""


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
            found="something else",
            action="find out who may write the bucket admissions; the list is made anew",
        )
    return found


def extend(
    issuer: Issuer,
    before: x509.CertificateRevocationList | None,
    revoked: Iterable[Revoked],
    *,
    at: int,
    longest_s: int,
) -> bytes:
    """The next list, in DER: with the entries given, without those whose certificates have ended by themselves.

    `longest_s` is the longest life of a certificate, so that no entry is needed longer than that after its revocation.
    """
    now = datetime.fromtimestamp(at, UTC)
    present = {entry.serial_number: entry for entry in before or ()}
    for one in revoked:
        present.setdefault(int(one.serial, 16), _entry(one))
    oldest = now - timedelta(seconds=longest_s)
    kept = sorted(
        (entry for entry in present.values() if entry.revocation_date_utc > oldest),
        key=lambda entry: entry.revocation_date_utc,
    )[-MAX_ENTRIES:]
    return revocation_list(issuer, kept, _number(before) + 1, now, LIFE).public_bytes(Encoding.DER)


def _entry(revoked: Revoked) -> x509.RevokedCertificate:
    reason = _REASONS.get(State(revoked.state), x509.ReasonFlags.cessation_of_operation)
    return (
        x509.RevokedCertificateBuilder()
        .serial_number(int(revoked.serial, 16))
        .revocation_date(datetime.fromtimestamp(revoked.at, UTC))
        .add_extension(x509.CRLReason(reason), critical=False)
        .build()
    )


def _number(crl: x509.CertificateRevocationList | None) -> int:
    return 0 if crl is None else crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
