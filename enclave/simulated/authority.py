"""The simulated Intel: root CA, PCK CAs, TCB signing, and everything they sign.

Its state is a folder: keys (mode 0600), certificates, and documents.json, which lists TCBs and revocations. Nothing is
cached in memory: a change of documents.json shows in the next document.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from attestgate.enclave.simulated import certificates
from attestgate.enclave.simulated.certificates import Issuer
from attestgate.enclave.simulated.documents import (
    Documents,
    PckCa,
    QeIdentity,
    QeTcb,
    QeTcbLevel,
    Tcb,
    TcbInfo,
    TcbLevel,
    dated,
)
from attestgate.enclave.simulated.files import new_folder, read_certificate, read_p256_key, write_key, write_private
from attestgate.enclave.simulated.quoting_enclave import QE_ISV_PROD_ID, QE_ISV_SVN, QE_MRSIGNER
from attestgate.enclave.simulated.sgx_extension import PckFacts, sgx_extension
from attestgate.schemas.base import read_json

FMSPC = bytes.fromhex("51a700000000")
PCEID = bytes(2)
CPUSVN = bytes((14, 14, 3, 3, 255, 255, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0))
"""Up to date, unless documents.json says otherwise."""
OLD_CPUSVN = bytes((13, 13, 3, 3, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))
PCESVN = 13

_ROOT, _TCB_SIGNING, _DOCUMENTS = "root", "tcb_signing", "documents.json"
_CA_NAMES: dict[PckCa, str] = {
    "platform": "Simulated SGX PCK Platform CA",
    "processor": "Simulated SGX PCK Processor CA",
}
_YEAR = 365
_ISSUED_EVERY_S = 3600


@dataclass(frozen=True)
class SignedDocument:
    """A JSON document and its ECDSA P-256 signature, r || s (64 bytes), over exactly those bytes."""

    body: bytes
    signature: bytes


def create(folder: Path) -> None:
    """Create an authority in an empty folder. Raises Refusal `simulated.exists`."""
    new_folder(folder)
    now = _now()
    root_key = _new_key()
    root = Issuer(certificates.root(root_key, "Simulated SGX Root CA", now, 30 * _YEAR), root_key)
    _keep(folder, _ROOT, root)
    for ca, common_name in _CA_NAMES.items():
        key = _new_key()
        _keep(folder, ca, Issuer(certificates.intermediate(key.public_key(), common_name, root, now, 15 * _YEAR), key))
    key = _new_key()
    signing = certificates.leaf(key.public_key(), "Simulated SGX TCB Signing", root, now, 7 * _YEAR)
    _keep(folder, _TCB_SIGNING, Issuer(signing, key))
    write_documents(folder, _first_documents())


def read_documents(folder: Path) -> Documents:
    """The authority's current documents. Raises Refusal (`file.*`)."""
    return read_json(Documents, folder / _DOCUMENTS)


def write_documents(folder: Path, documents: Documents) -> None:
    """Replace the authority's documents."""
    write_private(folder / _DOCUMENTS, documents.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode())


def revoke_pck(folder: Path, certificate: x509.Certificate) -> None:
    """Put a platform's PCK certificate on the next CRL."""
    documents = read_documents(folder)
    revoked = (*documents.revoked_pcks, f"{certificate.serial_number:x}")
    write_documents(
        folder, documents.model_copy(update={"revoked_pcks": revoked, "crl_number": documents.crl_number + 1})
    )


class Authority:
    """An authority's folder, opened to sign. Raises Refusal (`file.*`) for a folder that is not one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._root = _read(folder, _ROOT)
        self._cas = {ca: _read(folder, ca) for ca in _CA_NAMES}
        self._tcb_signing = _read(folder, _TCB_SIGNING)

    @property
    def root_der(self) -> bytes:
        """The root certificate, for a verifier to trust."""
        return self._root.certificate.public_bytes(Encoding.DER)

    @property
    def documents(self) -> Documents:
        """The current content of documents.json."""
        return read_documents(self._folder)

    def issue_pck(self, key: ec.EllipticCurvePublicKey, ca: PckCa, facts: PckFacts) -> x509.Certificate:
        """A PCK certificate for one platform at one TCB."""
        extension = sgx_extension(facts)
        return certificates.leaf(key, "Simulated SGX PCK Certificate", self._cas[ca], _now(), 7 * _YEAR, extension)

    def ca_chain(self, ca: PckCa) -> bytes:
        """PEM of a PCK CA and the root: what follows a PCK certificate in a quote, and issues its CRL."""
        return self._cas[ca].pem + self._root.pem

    @property
    def signing_chain(self) -> bytes:
        """PEM of the TCB signing certificate and the root."""
        return self._tcb_signing.pem + self._root.pem

    def tcb_info(self, now: datetime) -> SignedDocument:
        """TCB info v3 as of now."""
        return self._dated(self.documents.tcb_info, now)

    def qe_identity(self, now: datetime) -> SignedDocument:
        """QE identity v2 as of now."""
        return self._dated(self.documents.qe_identity, now)

    def pck_crl(self, ca: PckCa, now: datetime) -> bytes:
        """A PCK CA's CRL, DER."""
        return self._crl(self._cas[ca], self.documents.revoked_pcks, now)

    def root_crl(self, now: datetime) -> bytes:
        """The root's CRL, DER."""
        return self._crl(self._root, self.documents.revoked_cas, now)

    def sign(self, body: bytes) -> SignedDocument:
        """Any document, signed as TCB info and QE identity are."""
        r, s = decode_dss_signature(self._tcb_signing.key.sign(body, ec.ECDSA(SHA256())))
        return SignedDocument(body, r.to_bytes(32, "big") + s.to_bytes(32, "big"))

    def _dated(self, document: TcbInfo | QeIdentity, now: datetime) -> SignedDocument:
        return self.sign(dated(document, _issue_time(now), timedelta(seconds=self.documents.lifetime_s)))

    def _crl(self, issuer: Issuer, serials: tuple[str, ...], now: datetime) -> bytes:
        documents = self.documents
        revoked = [int(serial, 16) for serial in serials]
        lifetime = timedelta(seconds=documents.lifetime_s)
        return certificates.crl(issuer, revoked, documents.crl_number, _issue_time(now), lifetime)


def _first_documents() -> Documents:
    levels = (
        TcbLevel(tcb=Tcb.of(CPUSVN, PCESVN), tcb_date="2025-11-12T00:00:00Z", tcb_status="UpToDate"),
        TcbLevel(
            tcb=Tcb.of(OLD_CPUSVN, PCESVN),
            tcb_date="2024-03-13T00:00:00Z",
            tcb_status="OutOfDate",
            advisory_ids=("INTEL-SA-00828",),
        ),
    )
    qe_level = QeTcbLevel(tcb=QeTcb(isvsvn=QE_ISV_SVN), tcb_date="2025-11-12T00:00:00Z", tcb_status="UpToDate")
    evaluation = 20
    return Documents(
        tcb_info=TcbInfo(
            fmspc=FMSPC.hex().upper(),
            pce_id=PCEID.hex().upper(),
            tcb_evaluation_data_number=evaluation,
            tcb_levels=levels,
        ),
        qe_identity=QeIdentity(
            tcb_evaluation_data_number=evaluation,
            miscselect="00000000",
            miscselect_mask="FFFFFFFF",
            attributes="11000000000000000000000000000000",
            attributes_mask="FBFFFFFFFFFFFFFF0000000000000000",
            mrsigner=QE_MRSIGNER.hex().upper(),
            isvprodid=QE_ISV_PROD_ID,
            tcb_levels=(qe_level,),
        ),
        crl_number=1,
        lifetime_s=30 * 24 * 3600,
    )


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _issue_time(now: datetime) -> datetime:
    """The last full hour: a document stays the same for a while, and no clock is ahead of it."""
    seconds = int(now.timestamp())
    return datetime.fromtimestamp(seconds - seconds % _ISSUED_EVERY_S, UTC)


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _keep(folder: Path, part: str, issuer: Issuer) -> None:
    write_key(folder / f"{part}.key", issuer.key)
    write_private(folder / f"{part}.pem", issuer.pem)


def _read(folder: Path, part: str) -> Issuer:
    return Issuer(read_certificate(folder / f"{part}.pem"), read_p256_key(folder / f"{part}.key"))
