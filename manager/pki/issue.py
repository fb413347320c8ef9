"""Certificates: an application's, from its enclave's PKCS #10 request and for one identity; a gateway server's.

An application's certificate is an X.509-SVID (SPIFFE): no subject, one URI name, clientAuth, a short life. What is
weaker about it than it should be is marked in an extension of its own, `MARKS`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from attestgate.manager.pki.authority import BACKDATED, Authority, key_id, key_usage, new_serial, signable
from attestgate.schemas.admission import serial_hex, spiffe_id
from attestgate.schemas.base import Refusal, Secret

MAX_REQUEST = 4096
"""Largest certificate request, in bytes of DER."""
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*")
_EXTENSION_REQUEST = "1.2.840.113549.1.9.14"
"""PKCS #9 extensionRequest: the one attribute a request may carry (RFC 2985, section 5.4.2)."""
MARKS = x509.ObjectIdentifier("2.25.326183947711027684411917366187264170871")
"""Extension, not critical: a UTF8String with words and commas between them (`proxy,manager-key`). The object identifier
is made from a random UUID (X.667), so that nobody had to be asked for it."""
PROXY, MANAGER_KEY, OBSERVE_ONLY = "proxy", "manager-key", "observe-only"


@dataclass(frozen=True)
class IssuedCertificate:
    """A certificate as it is handed out. `chain`: PEM, the leaf and then the issuing CA, without the root."""

    chain: str
    serial: str
    """Lower-case hexadecimal, as `schemas.admission.Serial`."""
    sha256: str
    """Of the leaf's DER, lower-case hexadecimal."""
    key_sha256: str
    """Of its SubjectPublicKeyInfo in DER, likewise."""
    identity: str
    not_after: int
    issuer: str
    """Subject key identifier of the issuing CA, lower-case hexadecimal."""
    key: Secret | None = None
    """The private key where it was made here, PKCS #8 in PEM."""


@dataclass(frozen=True)
class ServerCertificate:
    """A gateway's certificate with the key made for it. `key`: PKCS #8 in PEM, in the clear, for nginx to read."""

    chain: str
    key: Secret
    not_after: int


def issue(
    authority: Authority,
    request: bytes,
    *,
    host: str,
    app: str,
    lifetime_s: int,
    at: int,
    marks: Collection[str] = (),
) -> IssuedCertificate:
    """The certificate of an application on a host, for the key in its request (PKCS #10, DER).

    The request proves possession of an EC P-256 key and asks for nothing: no subject, no attribute, no extension but,
    if it likes, the one name it gets. The life is `lifetime_s` from `at`, and never longer than the issuing CA's.
    Raises Refusal (`pki.*`).
    """
    identity = spiffe_id(authority.trust_domain, host, app)
    name = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)])
    return _issued(authority, _requested_key(request, name), identity, lifetime_s, at, marks)


def issue_with_key(
    authority: Authority, *, host: str, app: str, lifetime_s: int, at: int, marks: Collection[str] = ()
) -> IssuedCertificate:
    """The same with a new EC P-256 key, made here and marked so: the prototype's way. Raises Refusal (`pki.*`)."""
    key = generate_private_key(SECP256R1())
    identity = spiffe_id(authority.trust_domain, host, app)
    issued = _issued(authority, key.public_key(), identity, lifetime_s, at, [*marks, MANAGER_KEY])
    return replace(issued, key=_pem(key))


def read_marks(certificate: x509.Certificate) -> list[str]:
    """The marks in a certificate; none if it has no such extension."""
    try:
        value = certificate.extensions.get_extension_for_oid(MARKS).value
    except x509.ExtensionNotFound:
        return []
    if not isinstance(value, x509.UnrecognizedExtension):
        raise AssertionError("a known extension under our own object identifier")
    return value.value[2:].decode("utf-8").split(",")


def _issued(
    authority: Authority, key: EllipticCurvePublicKey, identity: str, lifetime_s: int, at: int, marks: Collection[str]
) -> IssuedCertificate:
    builder, not_after = _leaf(authority, key, lifetime_s, at)
    if marks:
        text = ",".join(marks).encode()
        # DER of a UTF8String (X.690, section 8.23): tag 12, a length below 128, the text.
        builder = builder.add_extension(
            x509.UnrecognizedExtension(MARKS, bytes([12, len(text)]) + text), critical=False
        )
    certificate = (
        builder.subject_name(x509.Name([]))
        # Critical where the subject is empty (RFC 5280, section 4.2.1.6).
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(authority.key, SHA256())
    )
    return IssuedCertificate(
        chain=_chain(authority, certificate),
        serial=serial_hex(certificate.serial_number),
        sha256=sha256(certificate.public_bytes(Encoding.DER)).hexdigest(),
        key_sha256=sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest(),
        identity=identity,
        not_after=not_after,
        issuer=key_id(authority.certificate),
    )


def check_request(authority: Authority, request: bytes, *, host: str, app: str) -> None:
    """Whether `issue` would take this request. Raises Refusal (`pki.*`) if not."""
    identity = spiffe_id(authority.trust_domain, host, app)
    _requested_key(request, x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]))


def issue_server(authority: Authority, *, names: list[str], lifetime_s: int, at: int) -> ServerCertificate:
    """A gateway's server certificate for DNS names and IP addresses, with a new EC P-256 key.

    Raises Refusal (`pki.names`, `pki.expired`).
    """
    key = generate_private_key(SECP256R1())
    builder, not_after = _leaf(authority, key.public_key(), lifetime_s, at)
    certificate = (
        builder.subject_name(x509.Name([]))
        .add_extension(x509.SubjectAlternativeName(_server_names(names)), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(authority.key, SHA256())
    )
    return ServerCertificate(
        chain=_chain(authority, certificate),
        key=_pem(key),
        not_after=not_after,
    )


def _pem(key: EllipticCurvePrivateKey) -> Secret:
    return Secret(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _requested_key(request: bytes, allowed: x509.SubjectAlternativeName) -> EllipticCurvePublicKey:
    if len(request) > MAX_REQUEST:
        raise _refused("size", f"at most {MAX_REQUEST} bytes", f"{len(request)} bytes")
    try:
        csr = x509.load_der_x509_csr(request)
        key = signable(csr.public_key())
        if key is None:
            raise _refused("key", "an EC P-256 key", type(csr.public_key()).__name__)
        if not isinstance(csr.signature_hash_algorithm, SHA256 | SHA384 | SHA512):
            raise _refused(
                "signature", "ECDSA with SHA-256, SHA-384 or SHA-512", csr.signature_algorithm_oid.dotted_string
            )
        if not csr.is_signature_valid:
            raise _refused("possession", "a signature by the requested key", "a signature that does not verify")
        if csr.subject:
            raise _refused("names", "no subject", csr.subject.rfc4514_string())
        if extra := [a.oid.dotted_string for a in csr.attributes if a.oid.dotted_string != _EXTENSION_REQUEST]:
            raise _refused("attributes", "none but extensionRequest", extra[0])
        for extension in csr.extensions:
            if extension.oid != ExtensionOID.SUBJECT_ALTERNATIVE_NAME:
                raise _refused("extensions", "none but subjectAltName", extension.oid.dotted_string)
            if extension.value != allowed:
                raise _refused("names", next(iter(allowed)).value, _names(extension.value))
    except Refusal:
        raise
    except Exception as error:  # noqa: BLE001  the parser is lazy and has many kinds: ValueError, DuplicateExtension...
        raise _refused("encoding", "one PKCS #10 request in DER", type(error).__name__) from None
    return key


def _names(value: object) -> str:
    return ", ".join(str(name.value) for name in value) if isinstance(value, x509.SubjectAlternativeName) else "other"


def _leaf(
    authority: Authority, key: EllipticCurvePublicKey, lifetime_s: int, at: int
) -> tuple[x509.CertificateBuilder, int]:
    """What both kinds of certificate have, and when it ends (Unix seconds)."""
    now = datetime.fromtimestamp(at, UTC)
    ends = min(now + timedelta(seconds=lifetime_s), authority.certificate.not_valid_after_utc)
    if ends <= now:
        raise Refusal.because(
            "pki.expired",
            "life of the certificate",
            expected="an issuing CA with time left, and a life of at least a second",
            found=f"an end at {ends.isoformat()}",
            action="replace the issuing CA",
        )
    builder = (
        x509.CertificateBuilder()
        .issuer_name(authority.certificate.subject)
        .public_key(key)
        .serial_number(new_serial())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage("digital_signature"), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            ),
            critical=False,
        )
    )
    return builder, int(ends.timestamp())


def _chain(authority: Authority, certificate: x509.Certificate) -> str:
    return "".join(c.public_bytes(Encoding.PEM).decode() for c in (certificate, authority.certificate))


def _server_names(names: list[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ip_address(name)))
        except ValueError:
            if _DNS_NAME.fullmatch(name) is None:
                found.clear()
                break
            found.append(x509.DNSName(name))
    if not found:
        raise Refusal.because(
            "pki.names",
            "names of the gateway",
            expected="DNS names (A-labels) or IP addresses",
            found=", ".join(names) or "none",
            action="correct the gateway's address",
        )
    return found


def _refused(what: str, expected: object, found: object) -> Refusal:
    return Refusal.because(
        f"pki.{what}",
        f"certificate request: {what}",
        expected=expected,
        found=found,
        action="have the application's enclave create the request again",
    )
