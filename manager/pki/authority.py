"""The deployment's certificate authority: made once, its keys encrypted at rest, the issuing half loaded by a manager.

A root (EC P-256, path length 1) signs one issuing CA (path length 0) at a time; the root's key is needed again only to
replace that one (manager/pki/rotation.py) and is best kept elsewhere. Files in the folder:

    root-ca.pem               what applications trust for the gateway's name
    root-ca.key.pem           PKCS #8, encrypted
    root-ca.crl.pem           the root's revocation list: it revokes no issuing CA
    issuing-ca.pem
    issuing-ca.key.pem        PKCS #8, encrypted; what a manager loads
    retired-<id>.pem, .key.pem  issuing CAs before this one, for as long as their certificates live
    client-ca.pem             issuing CAs and root: nginx's `ssl_client_certificate`
    trust-domain              the name in front of every identity
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID
from pydantic import TypeAdapter, ValidationError

from attestgate.schemas.admission import TrustDomain
from attestgate.schemas.base import Refusal, Secret

_ROOT_LIFE = timedelta(days=3650)
_ISSUING_LIFE = timedelta(days=365)
BACKDATED = timedelta(seconds=60)
"""How far before its issue a certificate is valid, for clocks that run late."""


@dataclass(frozen=True)
class Issuer:
    """A CA that signs: certificates, while it is the present one, and its revocation list. The key is in no repr."""

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey = field(repr=False)


@dataclass(frozen=True)
class Authority(Issuer):
    """The issuing CA as a manager holds it, and those before it whose certificates may still live."""

    trust_domain: str
    root: x509.Certificate
    retired: tuple[Issuer, ...] = ()

    def issuer(self, identifier: str) -> Issuer | None:
        """The CA with a subject key identifier, if it is one of these."""
        return next((ca for ca in (self, *self.retired) if key_id(ca.certificate) == identifier), None)


def create_ca(folder: Path, trust_domain: str, passphrase: Secret, at: int) -> None:
    """Make root and issuing CA and write them. `at` is the time of making, Unix seconds.

    Raises Refusal (`pki.exists`, `pki.trust_domain`, `pki.folder`); an existing CA is never overwritten.
    """
    check_trust_domain(trust_domain)
    now = datetime.fromtimestamp(at, UTC)
    root_key, issuing_key = generate_private_key(SECP256R1()), generate_private_key(SECP256R1())
    root_name = _name(trust_domain, "root CA")
    root = _ca(root_name, root_key.public_key(), now, _ROOT_LIFE, path_length=1)
    root_certificate = root.issuer_name(root_name).sign(root_key, SHA256())
    issuing_certificate = new_issuing(Issuer(root_certificate, root_key), issuing_key.public_key(), trust_domain, now)
    root_pem, issuing_pem = (c.public_bytes(Encoding.PEM) for c in (root_certificate, issuing_certificate))
    root_crl = revocation_list(Issuer(root_certificate, root_key), [], 1, now, _ROOT_LIFE)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_new(folder / "root-ca.key.pem", encrypted(root_key, passphrase), 0o600)
        write_new(folder / "issuing-ca.key.pem", encrypted(issuing_key, passphrase), 0o600)
        write_new(folder / "root-ca.pem", root_pem, 0o644)
        write_new(folder / "root-ca.crl.pem", root_crl.public_bytes(Encoding.PEM), 0o644)
        write_new(folder / "issuing-ca.pem", issuing_pem, 0o644)
        write_new(folder / "client-ca.pem", issuing_pem + root_pem, 0o644)
        write_new(folder / "trust-domain", f"{trust_domain}\n".encode(), 0o644)
    except FileExistsError as error:
        raise Refusal.because(
            "pki.exists",
            str(error.filename),
            expected="a folder without a CA",
            found="one that has this file already",
            action="choose another folder; a CA in use is never overwritten",
        ) from None
    except OSError as error:
        raise Refusal.because(
            "pki.folder",
            str(error.filename or folder),
            expected="a folder that can be written",
            found=error.strerror,
            action="check the path and its permissions",
        ) from None


def expiries(folder: Path) -> dict[str, int]:
    """When the CAs of a folder expire, Unix seconds by name; one that cannot be read is left out."""
    ends: dict[str, int] = {}
    for name in ("root-ca", "issuing-ca"):
        with suppress(OSError, ValueError):
            certificate = x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes())
            ends[name] = int(certificate.not_valid_after_utc.timestamp())
    return ends


def load_authority(folder: Path, passphrase: Secret) -> Authority:
    """Read the issuing CA. Raises Refusal (`pki.load`, `pki.trust_domain`). The root's key is not touched."""
    try:
        trust_domain = (folder / "trust-domain").read_text(encoding="ascii").strip()
        root = x509.load_pem_x509_certificate((folder / "root-ca.pem").read_bytes())
        present = load_issuer(folder, "issuing-ca", passphrase)
        names = sorted(path.name.removesuffix(".key.pem") for path in folder.glob("retired-*.key.pem"))
        retired = tuple(load_issuer(folder, name, passphrase) for name in names)
        for issuer in (present, *retired):
            issuer.certificate.verify_directly_issued_by(root)
    except Refusal:
        raise
    except OSError as error:
        raise _not_loaded(str(error.filename), "a readable file", str(error.strerror)) from None
    # The library's messages name no secret, but they do not help either: the kind of error is enough.
    except Exception as error:  # noqa: BLE001  ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm
        raise _not_loaded(str(folder), "a CA and its passphrase", type(error).__name__) from None
    check_trust_domain(trust_domain)
    return Authority(present.certificate, present.key, trust_domain, root, retired)


def load_issuer(folder: Path, name: str, passphrase: Secret) -> Issuer:
    """One CA with its key. Raises Refusal `pki.load` for another's key, and what the library and the files raise."""
    certificate = x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes())
    key = load_pem_private_key((folder / f"{name}.key.pem").read_bytes(), passphrase.reveal())
    if not isinstance(key, EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise _not_loaded(f"{name}.key.pem", f"the key of {name}.pem", "another key")
    return Issuer(certificate, key)


def new_issuing(root: Issuer, key: EllipticCurvePublicKey, trust_domain: str, now: datetime) -> x509.Certificate:
    """The certificate of an issuing CA under the root."""
    # The name tells issuing CAs apart: a revocation list is found by its issuer's name.
    identifier = x509.SubjectKeyIdentifier.from_public_key(key).digest.hex()
    return (
        _ca(_name(trust_domain, f"issuing CA {identifier[:8]}"), key, now, _ISSUING_LIFE, path_length=0)
        .issuer_name(root.certificate.subject)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root.key.public_key()), critical=False)
        .sign(root.key, SHA256())
    )


def revocation_list(
    issuer: Issuer, revoked: Iterable[x509.RevokedCertificate], number: int, now: datetime, life: timedelta
) -> x509.CertificateRevocationList:
    """A CRL (RFC 5280, section 5) of a CA. `number` rises with each; it is valid for `life`, or as long as the CA.

    After the CA's end (by a clock that is ahead, if it is in use) its last moment: a revocation is never refused.
    """
    end = issuer.certificate.not_valid_after_utc
    now = min(now, end)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(now - BACKDATED)
        .next_update(min(now + life, end))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
    )
    for entry in revoked:
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(issuer.key, SHA256())


def key_id(certificate: x509.Certificate) -> str:
    """A CA's subject key identifier, lower-case hexadecimal."""
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()


def new_serial() -> int:
    """A random serial number of 128 bits, the first byte never zero so that its text has one length."""
    while (serial := secrets.randbits(128)) < 1 << 120:
        pass
    return serial


def check_trust_domain(name: str) -> None:
    """Raises Refusal (`pki.trust_domain`) for what is no trust domain."""
    try:
        TypeAdapter[str](TrustDomain).validate_python(name)
    except ValidationError:
        raise Refusal.because(
            "pki.trust_domain",
            "trust domain",
            expected="lower-case DNS labels with dots between them",
            found=name,
            action="choose a name such as sdn.example.org",
        ) from None


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that must not exist yet, with its final permissions from the first byte on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def signable(key: object) -> EllipticCurvePublicKey | None:
    """The key if certificates are issued for its kind (EC P-256), else None."""
    return key if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1) else None


def _ca(
    name: x509.Name, key: EllipticCurvePublicKey, now: datetime, life: timedelta, *, path_length: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .public_key(key)
        .serial_number(new_serial())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + life)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(key_usage("key_cert_sign", "crl_sign"), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def key_usage(*uses: str) -> x509.KeyUsage:
    """A KeyUsage extension with the bits named, by the names of `x509.KeyUsage`."""
    bits = dict.fromkeys(
        (
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(**bits | dict.fromkeys(uses, True))


def _name(trust_domain: str, what: str) -> x509.Name:
    # X.520 allows 64 characters; the trust domain is told apart by the file, not by this.
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain[:64]),
            x509.NameAttribute(NameOID.COMMON_NAME, f"attestgate {what}"),
        ]
    )


def encrypted(key: EllipticCurvePrivateKey, passphrase: Secret) -> bytes:
    """PKCS #8 in PEM under a passphrase."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase.reveal()))


def _not_loaded(field_: str, expected: str, found: str) -> Refusal:
    return Refusal.because(
        "pki.load", field_, expected=expected, found=found, action="check the CA's folder and the passphrase file"
    )
