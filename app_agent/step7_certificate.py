"""Step 7, the application's side: the certificate for the key that was born here, and the word that it is admitted."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from app_agent.step5_evidence import TlsKey
from schemas.base import Refusal
from schemas.messages import Certificate


def accept_certificate(message: Certificate, key: TlsKey) -> str:
    """The identity in the certificate (its URI name), once it is for this enclave's key. Raises Refusal."""
    try:
        leaf = x509.load_pem_x509_certificates(message.chain.encode())[0]
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        identity = names.get_values_for_type(x509.UniformResourceIdentifier)[0]
    except (ValueError, IndexError, x509.ExtensionNotFound) as error:
        raise _bad("a certificate chain in PEM with a URI name", type(error).__name__) from None
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if leaf.public_key().public_bytes(*spki) != key.private.public_key().public_bytes(*spki):
        raise _bad("a certificate for this enclave's key", "one for another key")
    return identity


def _bad(expected: str, found: str) -> Refusal:
    return Refusal.because(
        "certificate", "chain", expected=expected, found=found, action="run manager and agent of one version"
    )
