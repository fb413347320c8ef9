"""EKs, their certificates, and the TPM's half of MakeCredential."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from attestgate.manager.verification.tpm.ek import EK_USAGE
from tests.support.ima.lists import NOW

EK = ec.generate_private_key(ec.SECP256R1())
EkPrivate = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class Vendor:
    """A TPM vendor's root and intermediate CA."""

    def __init__(self, common_name: str = "vendor") -> None:
        self.root_key, self.key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        self.root_name, self.name = self._name(f"{common_name} root"), self._name(common_name)
        self.root = self.issue(self.root_key.public_key(), self.root_name, by=(self.root_name, self.root_key), ca=True)
        self.intermediate = self.issue(self.key.public_key(), self.name, by=(self.root_name, self.root_key), ca=True)

    @property
    def bundle(self) -> bytes:
        return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in (self.root, self.intermediate))

    def ek(
        self, key: EkPrivate | ed25519.Ed25519PrivateKey = EK, *, usage: str | None = EK_USAGE.dotted_string
    ) -> bytes:
        made = self.issue(key.public_key(), x509.Name([]), by=(self.name, self.key), ca=False, usage=usage)
        return made.public_bytes(serialization.Encoding.DER)

    @staticmethod
    def _name(common_name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])

    @staticmethod
    def issue(
        public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey,
        name: x509.Name,
        *,
        by: tuple[x509.Name, ec.EllipticCurvePrivateKey],
        ca: bool,
        usage: str | None = None,
    ) -> x509.Certificate:
        start = datetime.fromtimestamp(NOW, UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(by[0])
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start - timedelta(days=1))
            .not_valid_after(start + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([x509.ObjectIdentifier(usage)]), critical=False)
        return builder.sign(by[1], hashes.SHA256())


VENDOR, OTHER = Vendor(), Vendor("other")
