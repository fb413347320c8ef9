"""Certificate chains under one given root: small, for Intel's own hierarchies.

Web PKI verifiers do not fit here: Intel's attestation certificates carry no names to match, and the IAS root writes a
date in 2049 as GeneralizedTime, which RFC 5280 forbids. So: each certificate directly issued by the next, CAs are
CAs, the end is the root. Times are not judged here; `validity` gives them to those who do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestgate.schemas.base import Reason, Refusal, shown
from attestgate.schemas.clocks import SKEW_S, stale


@dataclass(frozen=True)
class Window:
    """When something is valid: from `opens` to `closes`, both included, in Unix seconds."""

    code: str
    field: str
    opens: int
    closes: int

    def reasons(self, at: int) -> tuple[Reason, ...]:
        """Why it is not valid at `at`, with five seconds' allowance: empty if it is."""
        if stale(self.opens, at):
            return (self._reason("not_yet_valid", f"a time from {utc(self.opens)} on", at),)
        if at - SKEW_S > self.closes:
            return (self._reason("expired", f"a time until {utc(self.closes)}", at),)
        return ()

    def _reason(self, what: str, expected: str, at: int) -> Reason:
        return Reason(
            code=f"{self.code}.{what}",
            field=self.field,
            expected=expected,
            found=utc(at),
            action="check the clock; if it is right, get current evidence and collateral",
        )


def utc(seconds: int) -> str:
    """A Unix second as RFC 3339 in UTC; the bare number where the calendar has no such year."""
    try:
        return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, OSError, ValueError):
        return str(seconds)


def certificates(pem: bytes, field: str) -> tuple[x509.Certificate, ...]:
    """The certificates in PEM text, in order. Raises Refusal (`<field>.malformed`)."""
    try:
        chain = tuple(x509.load_pem_x509_certificates(pem))
        for one in chain:  # cryptography parses these only when asked
            _ = one.subject, one.issuer, one.not_valid_before_utc, one.not_valid_after_utc, one.extensions
            public_key(one)
            if one.serial_number <= 0:  # RFC 5280, 4.1.2.2; and no CRL could name it
                raise ValueError("a serial number that is not positive")
            # The signature covers all but itself, and bits that end in zeros could be written in eight ways.
            if one.public_bytes(Encoding.DER)[-len(one.signature) - 1] != 0:
                raise ValueError("a signature that is not whole bytes")
    except Exception as error:  # noqa: BLE001  cryptography has errors of many kinds for certificates, some plain Exceptions
        raise Refusal.because(
            f"{field}.malformed",
            field,
            expected="X.509 certificates in PEM",
            found=shown(error),
            action="send the chain as Intel issued it",
        ) from None
    return chain


def root_certificate(der: bytes) -> x509.Certificate:
    """The trust anchor from its DER. Raises Refusal (`root.malformed`)."""
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError as error:
        raise Refusal.because(
            "root.malformed",
            "root",
            expected="an X.509 certificate in DER",
            found=shown(error),
            action="correct the root certificate",
        ) from None


def check_chain(chain: Sequence[x509.Certificate], root: x509.Certificate, field: str) -> None:
    """Check that a chain, leaf first, ends at `root`, which it may include. Raises Refusal (`<field>.root|chain`)."""
    # Path lengths are not looked at: a CA below the root that would issue a CA could issue the leaf itself.
    links = below(chain, root)
    if links and links[-1].subject == links[-1].issuer:
        raise Refusal.because(
            f"{field}.root",
            field,
            expected=f"root {fingerprint(root)}",
            found=f"root {fingerprint(links[-1])}",
            action="evidence under another root is not accepted: check which root is trusted",
        )
    for issued, issuer in pairwise([*links, root]):
        problem = _link_problem(issued, issuer)
        if problem is not None:
            raise Refusal.because(
                f"{field}.chain",
                field,
                expected=f"{name(issued)} issued by {name(issuer)}",
                found=problem,
                action="send the chain as Intel issued it",
            )


def same_root(one: x509.Certificate, root: x509.Certificate) -> bool:
    """Whether a certificate is this root, or another edition of it: its name, its key, issued by itself.

    Intel's SGX root is in the field twice, valid until 2033 (in older quotes) and until 2049. Taking the other edition
    trusts nobody new: only the holder of this root's key can have signed it.
    """
    if one == root:
        return True
    alike = one.subject == root.subject and public_key(one) == public_key(root)
    return alike and _link_problem(one, root) is None


def below(chain: Sequence[x509.Certificate], root: x509.Certificate) -> Sequence[x509.Certificate]:
    """A chain, leaf first, without the root that it may end with."""
    end = len(chain)
    while end and same_root(chain[end - 1], root):
        end -= 1
    return chain[:end]


def _link_problem(issued: x509.Certificate, issuer: x509.Certificate) -> str | None:
    try:
        if not issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return "an issuer that is not a CA"
        issued.verify_directly_issued_by(issuer)
    except InvalidSignature:
        return "a signature that does not verify"
    except x509.ExtensionNotFound:
        return "an issuer without basic constraints"
    except Exception as error:  # noqa: BLE001  as above: another issuer's name, a key of another kind, bad extensions
        return shown(error)
    return None


def windows(chain: Sequence[x509.Certificate], field: str) -> tuple[Window, ...]:
    """The validity of each certificate."""
    return tuple(
        Window(
            f"{field}.certificate",
            f"{field}: {name(certificate)}",
            int(certificate.not_valid_before_utc.timestamp()),
            int(certificate.not_valid_after_utc.timestamp()),
        )
        for certificate in chain
    )


def name(certificate: x509.Certificate) -> str:
    """A certificate's common name, for a reason."""
    return certificate.subject.rfc4514_string()


def public_key(certificate: x509.Certificate) -> bytes:
    """A certificate's public key (SubjectPublicKeyInfo, DER)."""
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate's DER, in hexadecimal."""
    return certificate.fingerprint(SHA256()).hex()
