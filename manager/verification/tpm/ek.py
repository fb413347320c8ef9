"""An endorsement key's certificate, chained to the TPM vendors' roots that an operator has configured.

Source: TCG EK Credential Profile for TPM Family 2.0: 3.2 (fields), 3.2.16 (extended key usage 2.23.133.8.1).
Vendors' revocation lists are not fetched: enrolment happens once, under an operator's eyes.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from attestgate.manager.verification.tpm.credential import EndorsementKey
from attestgate.manager.verification.tpm.quote import refused
from attestgate.manager.verification.x509 import certificates, check_chain, fingerprint, name, windows
from attestgate.schemas.base import Refusal, shown

EK_USAGE = x509.ObjectIdentifier("2.23.133.8.1")
"""tcg-kp-EKCertificate"""

MAX_CHAIN = 5


def check_ek(der: bytes, roots: bytes, at: int) -> EndorsementKey:
    """The key in an EK certificate that is valid at `at` and chains to one of the roots.

    `roots` are PEM certificates: self-signed roots, and the intermediates under them. Raises Refusal (`ek.*`).
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        key = certificate.public_key()
        usage = _usage(certificate)
    except Exception as error:  # noqa: BLE001  cryptography has errors of many kinds for certificates
        raise refused(
            "ek.malformed", "EK certificate", "X.509 in DER", shown(error), "read it from the TPM again"
        ) from None
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise refused("ek.key", "EK certificate", "an RSA or EC key", type(key).__name__, "use another EK")
    if usage is not None and EK_USAGE not in usage:
        raise refused("ek.usage", "EK certificate", f"key usage {EK_USAGE.dotted_string}", "others", "use the EK's own")
    # Issuers come from the operator's file alone: the host cannot bring an intermediate.
    chain = _chain(certificate, certificates(roots, "ek"))
    check_chain(chain, chain[-1], "ek")
    stale = [reason for window in windows(chain, "ek") for reason in window.reasons(at)]
    if stale:
        raise Refusal(*stale)
    return key


def _chain(certificate: x509.Certificate, known: tuple[x509.Certificate, ...]) -> list[x509.Certificate]:
    """From the EK certificate to a self-signed root, each one after it out of the configured ones."""
    chain = [certificate]
    while len(chain) < MAX_CHAIN:
        issuer = next((one for one in known if one not in chain and _issued(chain[-1], one)), None)
        if issuer is None:
            break
        chain.append(issuer)
        if issuer.subject == issuer.issuer:
            return chain
    raise refused(
        "ek.root",
        "EK certificate",
        f"a chain to one of {', '.join(name(one) for one in known) or 'no roots'}",
        f"issued by {chain[-1].issuer.rfc4514_string()}, certificate {fingerprint(chain[-1])}",
        "add the vendor's root and intermediate certificates if you trust them",
    )


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _usage(certificate: x509.Certificate) -> x509.ExtendedKeyUsage | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return None
