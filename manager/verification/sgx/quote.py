"""The exact parse of a version-3 ECDSA P-256 SGX quote, and of the PCK certificate chain inside it.

Layout: "Intel SGX ECDSA QuoteLibReference DCAP API", appendix A.4. Integers are little-endian. Every length is checked,
nothing may follow the quote, and reserved bytes are zero. Parsing says nothing about signatures.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import dcap_qvl
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestgate.manager.verification.x509 import Window, certificates, public_key, windows
from attestgate.schemas.base import Refusal
from attestgate.schemas.sgx import SgxType

INTEL_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
QUOTE_VERSION = 3
ECDSA_P256 = 2
TEE_SGX, TEE_TDX = 0x00000000, 0x00000081
PCK_CHAIN = 5
"""Certification data type 5: the PCK certificate chain in PEM, leaf first."""

MAX_QUOTE = 64 * 1024
"""Bytes; a real one has fewer than 6,000."""

HEADER_LENGTH = 48
SIGNED_LENGTH = 432
"""Header (48 bytes) and report body (384 bytes): what the attestation key signs."""

_HEADER = struct.Struct("<HHIHH16s20s")
_BODY = struct.Struct("<16s4sB11s16s16s32s32s32s32s64sHHH42s16s64s")
_SIGNATURE = struct.Struct("<64s64s384s64sH")
_SGX_TYPES: dict[int, SgxType] = {0: "standard", 1: "scalable", 2: "scalable_with_integrity"}
_CONFIGURATION = "1.2.840.113741.1.13.1.7"
_DEBUG = 0x02
_BLANK = b" \t\r\n\0"


class Header(NamedTuple):
    """The 48 bytes in front of the report body."""

    version: int
    attestation_key_type: int
    tee_type: int
    qe_svn: int
    pce_svn: int
    qe_vendor_id: bytes
    user_data: bytes

    @property
    def qe_id(self) -> bytes:
        """The quoting enclave's platform identifier (16 bytes); survives a TCB update."""
        return self.user_data[:16]


class ReportBody(NamedTuple):
    """An enclave report body, 384 bytes (SDM vol. 3D, table 38-21 without the MAC)."""

    cpu_svn: bytes
    misc_select: bytes
    cet_attributes: int
    isv_ext_prod_id: bytes
    attributes: bytes
    mrenclave: bytes
    mrsigner: bytes
    config_id: bytes
    isv_prod_id: int
    isv_svn: int
    config_svn: int
    isv_family_id: bytes
    report_data: bytes

    @property
    def debug(self) -> bool:
        """ATTRIBUTES.DEBUG: the host can read this enclave's memory."""
        return bool(self.attributes[0] & _DEBUG)

    def fields(self) -> dict[str, Any]:
        """The fields that an `Appraisal` shows."""
        return {
            "mrenclave": self.mrenclave.hex(),
            "mrsigner": self.mrsigner.hex(),
            "isv_prod_id": self.isv_prod_id,
            "isv_svn": self.isv_svn,
            "config_id": self.config_id.hex(),
            "config_svn": self.config_svn,
            "debug": self.debug,
            "attributes": self.attributes.hex(),
            "misc_select": self.misc_select.hex(),
            "cpu_svn": self.cpu_svn.hex(),
            "report_data": self.report_data.hex(),
        }


@dataclass(frozen=True, eq=False)
class Pck:
    """The PCK certificate chain of a quote, and what Intel's SGX extension (1.2.840.113741.1.13.1) in the leaf says.

    Compared by identity: one chain is parsed once, and what rests on it is remembered by the object.
    """

    chain: tuple[x509.Certificate, ...]
    windows: tuple[Window, ...]
    ca_key: bytes
    """The PCK CA's public key (SubjectPublicKeyInfo, DER)."""
    leaf_der: bytes
    root_der: bytes
    ppid: bytes
    fmspc: bytes
    pce_id: bytes
    cpu_svn: bytes
    """Sixteen component SVNs."""
    pce_svn: int
    sgx_type: SgxType
    dynamic_platform: bool | None
    """This and the two flags after it are None for a single-package platform: its certificate has none."""
    cached_keys: bool | None
    smt: bool | None
    ca: str
    """`platform` or `processor`: which of Intel's PCK CAs issued the leaf, and so whose CRL speaks about it."""


class Quote(NamedTuple):
    """A quote, read but not verified."""

    raw: bytes
    header: Header
    report: ReportBody
    signature: bytes
    attestation_key: bytes
    qe_report: ReportBody
    qe_report_signature: bytes
    qe_auth_data: bytes
    pck_chain_pem: bytes

    @property
    def identity(self) -> str:
        """SHA-256 of the signed bytes: bits outside them carry no meaning, and must not make another quote."""
        return hashlib.sha256(self.raw[:SIGNED_LENGTH]).hexdigest()

    @property
    def pck(self) -> Pck:
        """The PCK chain, parsed. Raises Refusal (`quote.pck*`)."""
        return _pck(self.pck_chain_pem)


def parse(raw: bytes) -> Quote:
    """Read a quote. Raises Refusal (`quote.*`) that names the field, what was expected and what was found."""
    if len(raw) > MAX_QUOTE:
        raise _bad("size", f"at most {MAX_QUOTE} bytes", f"{len(raw)} bytes")
    if len(raw) < SIGNED_LENGTH + 4:
        raise _bad("size", f"at least {SIGNED_LENGTH + 4} bytes", f"{len(raw)} bytes")
    header = _header(raw[:48])
    report = parse_body(raw[48:SIGNED_LENGTH], "report")
    declared = int.from_bytes(raw[SIGNED_LENGTH : SIGNED_LENGTH + 4], "little")
    rest = raw[SIGNED_LENGTH + 4 :]
    # dcap_qvl verifies a quote with bytes after it: refused, so that one quote has one encoding.
    if declared != len(rest):
        code = "trailing" if declared < len(rest) else "size"
        raise _bad(code, f"{declared} bytes of signature data", f"{len(rest)} bytes", field="signature_data_len")
    if len(rest) < _SIGNATURE.size:
        raise _bad("size", f"at least {_SIGNATURE.size} bytes", f"{len(rest)} bytes", field="signature_data")
    signature, key, qe_report, qe_signature, auth_size = _SIGNATURE.unpack_from(rest)
    auth, rest = _take(rest[_SIGNATURE.size :], auth_size, "qe_auth_data")
    kind_and_size, rest = _take(rest, 6, "certification_data")
    kind, size = struct.unpack("<HI", kind_and_size)
    if kind != PCK_CHAIN:
        raise _bad("certification_data", f"type {PCK_CHAIN} (PCK chain)", f"type {kind}", field="certification_data")
    chain, rest = _take(rest, size, "certification_data")
    if rest:
        raise _bad("trailing", "nothing after the certification data", f"{len(rest)} bytes", field="signature_data")
    return Quote(
        raw=raw,
        header=header,
        report=report,
        signature=signature,
        attestation_key=key,
        qe_report=_qe_report(qe_report),
        qe_report_signature=qe_signature,
        qe_auth_data=auth,
        pck_chain_pem=chain,
    )


def _header(raw: bytes) -> Header:
    header = Header(*_HEADER.unpack(raw))
    if header.tee_type == TEE_TDX:
        raise _bad("tdx", "an SGX quote (TEE type 0)", "a TDX quote (TEE type 0x81)", field="tee_type")
    for name, expected, found in (
        ("version", QUOTE_VERSION, header.version),
        ("attestation_key_type", ECDSA_P256, header.attestation_key_type),
        ("tee_type", TEE_SGX, header.tee_type),
    ):
        if expected != found:
            raise _bad(name, str(expected), str(found))
    if header.qe_vendor_id != INTEL_QE_VENDOR:
        raise _bad("qe_vendor_id", INTEL_QE_VENDOR.hex(), header.qe_vendor_id.hex())
    return header


def parse_body(raw: bytes, field: str) -> ReportBody:
    """Read a 384-byte report body. Raises Refusal (`quote.reserved`, `quote.size`) that names `field`."""
    if len(raw) != _BODY.size:
        raise _bad("size", f"{_BODY.size} bytes", f"{len(raw)} bytes", field=field)
    (cpu, misc, cet, reserved1, ext, attributes, enclave, reserved2, signer, reserved3, *tail) = _BODY.unpack(raw)
    config, product, svn, config_svn, reserved4, family, data = tail
    for reserved in (reserved1, reserved2, reserved3, reserved4):
        if reserved.count(0) != len(reserved):
            raise _bad("reserved", "zero bytes", reserved.hex(), field=f"{field}.reserved")
    return ReportBody(
        cpu_svn=cpu,
        misc_select=misc,
        cet_attributes=cet,
        isv_ext_prod_id=ext,
        attributes=attributes,
        mrenclave=enclave,
        mrsigner=signer,
        config_id=config,
        isv_prod_id=product,
        isv_svn=svn,
        config_svn=config_svn,
        isv_family_id=family,
        report_data=data,
    )


def _take(data: bytes, size: int, field: str) -> tuple[bytes, bytes]:
    if size > len(data):
        raise _bad("size", f"{size} bytes", f"{len(data)} bytes left", field=field)
    return data[:size], data[size:]


@lru_cache(maxsize=256)
def _qe_report(raw: bytes) -> ReportBody:
    # A platform's quoting enclave makes one report for each attestation key: the same in every quote. Not verified
    # here, so the cache holds how bytes read, and no trust.
    return parse_body(raw, "qe_report")


@lru_cache(maxsize=256)
def _pck(pem: bytes) -> Pck:
    # Many quotes come from one platform with the same chain; parsing it is the dearest part of a parse.
    chain = certificates(pem, "quote.pck_chain")
    if len(chain) != 3:
        raise _bad("pck_chain", "PCK leaf, PCK CA and root", f"{len(chain)} certificates", field="pck_chain")
    # dcap_qvl has a PEM reader of its own: text that two readers could take differently is refused.
    canonical = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)
    if pem.translate(None, _BLANK) != canonical.translate(None, _BLANK):
        raise _bad("pck_chain", "three PEM certificates and nothing else", "other text", field="pck_chain")
    try:
        extension = dcap_qvl.parse_pck_extension_from_pem(pem)
    except ValueError as error:
        raise _bad("pck_extension", "Intel's SGX extension in the leaf", str(error), field="pck_chain[0]") from None
    # A PPID that is empty or cut short would be one identity for many platforms.
    sgx_type = _SGX_TYPES.get(extension.sgx_type)
    if sgx_type is None or len(extension.ppid) != 16:
        found = f"SGX type {extension.sgx_type}, PPID of {len(extension.ppid)} bytes"
        raise _bad("pck_extension", "SGX type 0, 1 or 2 and a PPID of 16 bytes", found, field="pck_chain[0]")
    return Pck(
        chain=chain,
        windows=windows(chain[:-1], "quote.pck_chain"),
        ca_key=public_key(chain[1]),
        leaf_der=chain[0].public_bytes(Encoding.DER),
        root_der=chain[2].public_bytes(Encoding.DER),
        ppid=extension.ppid,
        fmspc=extension.fmspc,
        pce_id=extension.pce_id,
        cpu_svn=extension.cpu_svn,
        pce_svn=extension.pce_svn,
        sgx_type=sgx_type,
        dynamic_platform=_flag(extension, 1),
        cached_keys=_flag(extension, 2),
        smt=_flag(extension, 3),
        ca="platform" if "PCK Platform CA" in chain[0].issuer.rfc4514_string() else "processor",
    )


def _flag(extension: dcap_qvl.PckExtension, number: int) -> bool | None:
    """A flag of the platform's configuration (1.2.840.113741.1.13.1.7): a DER BOOLEAN's content, or absent."""
    value = extension.get_value(f"{_CONFIGURATION}.{number}")
    return None if value is None else value != b"\0"


def _bad(code: str, expected: str, found: str, *, field: str | None = None) -> Refusal:
    return Refusal.because(
        f"quote.{code}",
        f"quote.{field or code}",
        expected=expected,
        found=found,
        action="send a complete SGX DCAP quote, version 3, with its PCK chain",
    )
