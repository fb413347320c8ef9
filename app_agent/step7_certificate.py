"""Step 7, the application's side: the certificate for the key that was generated here, and its TLS context."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from attestgate.app_agent.step5_evidence import TlsKey
from attestgate.enclave.providers.memory import file_in_memory
from attestgate.schemas.base import Refusal
from attestgate.schemas.messages import Certificate
from attestgate.schemas.settings import Measured


@dataclass(frozen=True)
class Credential:
    """One certificate of the application, ready for use. `identity` is its URI name (SAN)."""

    serial: str
    identity: str
    context: ssl.SSLContext = field(repr=False)


def accept_certificate(message: Certificate, key: TlsKey, measured: Measured) -> Credential:
    """The credential of a certificate and this enclave's key. Raises Refusal `certificate`.

    A key that the manager generated is accepted only if the measured settings allow it.
    """
    if message.private_key is not None:
        key = _given_key(message.private_key.reveal(), measured)
    try:
        leaf = x509.load_pem_x509_certificates(message.chain.encode())[0]
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        identity = names.get_values_for_type(x509.UniformResourceIdentifier)[0]
    except (ValueError, IndexError, x509.ExtensionNotFound) as error:
        raise _bad("a certificate chain in PEM with a URI name", type(error).__name__) from None
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    # The chain is not verified here: it came from the manager on the channel, and the gateway verifies it.
    if leaf.public_key().public_bytes(*spki) != key.private.public_key().public_bytes(*spki):
        raise _bad("a certificate for this enclave's key", "a certificate for another key")
    return Credential(message.serial, identity, ssl_context(key, message.chain, measured.gateway_ca))


def ssl_context(key: TlsKey, chain: str, gateway_ca: str) -> ssl.SSLContext:
    """A client context with the enclave's key. The key goes to OpenSSL through memory, never through a disk."""
    # With `cadata` no system CA is loaded: the host's trust store has no say.
    context = ssl.create_default_context(cadata=gateway_ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    pem = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with file_in_memory(pem + chain.encode()) as path:
        context.load_cert_chain(path)
    return context


def _given_key(pem: bytes, measured: Measured) -> TlsKey:
    if not measured.accept_manager_key:
        raise _bad("no private key (accept_manager_key is not in the measured settings)", "a key made by the manager")
    try:
        private = load_pem_private_key(pem, None)
    except (ValueError, TypeError):
        raise _bad("a private key in PEM", "not a private key") from None
    if not isinstance(private, EllipticCurvePrivateKey):
        raise _bad("an elliptic-curve key", type(private).__name__)
    return TlsKey(private)


def _bad(expected: str, found: str) -> Refusal:
    return Refusal.because(
        "certificate",
        "chain",
        expected=expected,
        found=found,
        action="run manager and agent of one version",
    )
