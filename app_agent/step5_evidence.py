"""Step 5, the application's side: a key pair generated in the enclave, a certificate request, a quote over both."""

from __future__ import annotations

from dataclasses import dataclass, field
from secrets import token_bytes

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from attestgate.bus.agent.link import AgentSession
from attestgate.enclave.api import Enclave
from attestgate.schemas.binding import PROTOCOL, enclave_key_hash, recheck_report_data, report_data
from attestgate.schemas.evidence import app_evidence_hash
from attestgate.schemas.messages import AppEvidence, AppHello, AppRecheckEvidence, Challenge, Recheck

AGENT_VERSION = "attestgate-app/1"


@dataclass(frozen=True)
class TlsKey:
    """The application's TLS key: generated here, and never written anywhere."""

    private: EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> TlsKey:
        """A fresh EC P-256 key."""
        return cls(generate_private_key(SECP256R1()))

    def request(self) -> bytes:
        """A certificate request (PKCS #10, DER) that asks for nothing but this key."""
        builder = x509.CertificateSigningRequestBuilder(subject_name=x509.Name([]))
        return builder.sign(self.private, SHA256()).public_bytes(Encoding.DER)


def hello(app: str, host: str) -> AppHello:
    """A hello with a fresh random value, so that no older challenge answers it."""
    return AppHello(version=PROTOCOL, app=app, host=host, random=token_bytes(32), agent_version=AGENT_VERSION)


def first_evidence(
    enclave: Enclave, session: AgentSession, challenge: Challenge, app: str, request: bytes, *, proxy: bool
) -> AppEvidence:
    """The answer to a challenge. `proxy`: the program only forwards the requests of another, outside."""
    data = report_data(
        "app",
        session.session,
        app,
        challenge.nonce,
        session.transcript,
        session.public_key,
        app_evidence_hash(request, proxy=proxy),
    )
    return AppEvidence(
        enclave_key=session.public_key, quote=enclave.quote(data), certificate_request=request, proxy=proxy
    )


def recheck_evidence(enclave: Enclave, session: AgentSession, question: Recheck, app: str) -> AppRecheckEvidence:
    """The answer to a recheck: a fresh quote."""
    data = recheck_report_data(
        "app",
        session.session,
        app,
        question.nonce,
        session.channel.opened_chain,
        enclave_key_hash(session.public_key),
        app_evidence_hash(),
    )
    return AppRecheckEvidence(nonce=question.nonce, quote=enclave.quote(data))
