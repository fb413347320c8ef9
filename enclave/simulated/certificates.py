"""X.509 certificates and CRLs with the profile of Intel's SGX PKI, under names that mark them as simulated.

Source: Intel, "SGX PCK Certificate and Certificate Revocation List Profile Specification", 1.5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

_LEEWAY = timedelta(days=1)
SubjectKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


@dataclass(frozen=True)
class Issuer:
    """A CA: its certificate and its P-256 key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        """The certificate in PEM."""
        return self.certificate.public_bytes(Encoding.PEM)


def name(common_name: str) -> x509.Name:
    """A simulated subject; verifiers find "Platform" or "Processor" in an issuer's, as in Intel's."""
    organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "attestgate simulation")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name), organization])


def root(key: ec.EllipticCurvePrivateKey, common_name: str, now: datetime, days: int) -> x509.Certificate:
    """A self-signed root that may issue one level of CAs."""
    builder = _builder(common_name, key.public_key(), name(common_name), key.public_key(), now, days)
    return _as_ca(builder, path_length=1).sign(key, SHA256())


def intermediate(
    key: ec.EllipticCurvePublicKey, common_name: str, issuer: Issuer, now: datetime, days: int
) -> x509.Certificate:
    """A CA that issues PCK certificates."""
    return _as_ca(_issued(key, common_name, issuer, now, days), path_length=0).sign(issuer.key, SHA256())


def leaf(
    key: SubjectKey,
    common_name: str,
    issuer: Issuer,
    now: datetime,
    days: int,
    *extensions: x509.ExtensionType,
) -> x509.Certificate:
    """A certificate that signs but issues nothing; extra extensions are not critical."""
    builder = _issued(key, common_name, issuer, now, days)
    builder = builder.add_extension(_usage(signs=True), critical=True)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(issuer.key, SHA256())


def crl(issuer: Issuer, revoked: Iterable[int], number: int, now: datetime, lifetime: timedelta) -> bytes:
    """A CRL in DER: serial numbers revoked, CRL number, valid from now for a lifetime."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(now)
        .next_update(now + lifetime)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(_authority(issuer.key.public_key()), critical=False)
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(issuer.key, SHA256()).public_bytes(Encoding.DER)


def _issued(key: SubjectKey, common_name: str, issuer: Issuer, now: datetime, days: int) -> x509.CertificateBuilder:
    return _builder(common_name, key, issuer.certificate.subject, issuer.key.public_key(), now, days)


def _builder(
    common_name: str,
    key: SubjectKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePublicKey,
    now: datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name(common_name))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _LEEWAY)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(_authority(issuer_key), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _as_ca(builder: x509.CertificateBuilder, path_length: int) -> x509.CertificateBuilder:
    builder = builder.add_extension(_usage(signs=False), critical=True)
    return builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)


def _authority(key: ec.EllipticCurvePublicKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signs,
        content_commitment=signs,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=not signs,
        crl_sign=not signs,
        encipher_only=False,
        decipher_only=False,
    )
