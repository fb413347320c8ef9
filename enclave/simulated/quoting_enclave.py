"""The simulated quoting enclave: what it is, and the version-3 quotes it makes in Intel's byte format.

Source: Intel, "SGX ECDSA QuoteGenReference and QuoteVerification API", appendix A (quote version 3); the report body
is SDM vol. 3D, REPORT. All integers are little-endian.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import Field

from attestgate.enclave.api import REPORT_DATA_SIZE
from attestgate.schemas.base import Bytes32, Model

QE_MRSIGNER = hashlib.sha256(b"attestgate simulated quoting enclave, signer").digest()
QE_MRENCLAVE = hashlib.sha256(b"attestgate simulated quoting enclave").digest()
QE_ISV_PROD_ID = 1
QE_ISV_SVN = 8

QE_VENDOR_ID = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_VERSION = 3
_ECDSA_P256 = 2
_PCK_CHAIN = 5
_AUTH_DATA = bytes(range(32))
"""The same bytes as Intel's QE uses."""

_HEADER = struct.Struct("<HHIHH16s20s")
_REPORT = struct.Struct("<16sI28s16s32s32s32s96sHH60s64s")

_INIT, _DEBUG, _MODE64BIT, _PROVISION_KEY = 0x01, 0x02, 0x04, 0x10
_X87_SSE_AVX = 0x07


class Measurement(Model):
    """The measurement of an enclave's code, known before it runs."""

    mrenclave: Bytes32
    isv_prod_id: Annotated[int, Field(ge=0, lt=2**16)]
    isv_svn: Annotated[int, Field(ge=0, lt=2**16)]
    debug: bool

    @property
    def attributes(self) -> bytes:
        """SGX attributes, flags then XFRM: 16 bytes."""
        return _attributes(_INIT | _MODE64BIT | (_DEBUG if self.debug else 0))


class EnclaveIdentity(Measurement):
    """What the CPU knows about a running enclave: its measurement and its signer's."""

    mrsigner: Bytes32


class QuotingEnclave:
    """A quoting enclave with its attestation key, certified by one PCK.

    `qe_id` is 16 bytes that name this QE on this machine; `pck_chain` is PEM, the leaf first.
    """

    def __init__(
        self,
        attestation_key: ec.EllipticCurvePrivateKey,
        pck_key: ec.EllipticCurvePrivateKey,
        pck_chain: bytes,
        *,
        qe_id: bytes,
        cpusvn: bytes,
        pcesvn: int,
    ) -> None:
        self._attestation_key = attestation_key
        self._cpusvn = cpusvn
        self._header = _HEADER.pack(_VERSION, _ECDSA_P256, 0, QE_ISV_SVN, pcesvn, QE_VENDOR_ID, qe_id.ljust(20, b"\0"))
        self._certified = self._certify(pck_key, pck_chain)

    def quote(self, enclave: EnclaveIdentity, report_data: bytes) -> bytes:
        """The quote of a running enclave over 64 bytes that it chooses."""
        if len(report_data) != REPORT_DATA_SIZE:
            raise ValueError(f"report data has {REPORT_DATA_SIZE} bytes")
        signed = self._header + _report(self._cpusvn, enclave, enclave.attributes, report_data)
        signature_data = _sign(self._attestation_key, signed) + self._certified
        return signed + struct.pack("<I", len(signature_data)) + signature_data

    def _certify(self, pck_key: ec.EllipticCurvePrivateKey, pck_chain: bytes) -> bytes:
        """The part of the signature data that is the same in every quote: the attestation key's certification."""
        key = self._attestation_key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]
        qe = EnclaveIdentity(
            mrenclave=QE_MRENCLAVE, mrsigner=QE_MRSIGNER, isv_prod_id=QE_ISV_PROD_ID, isv_svn=QE_ISV_SVN, debug=False
        )
        report_data = hashlib.sha256(key + _AUTH_DATA).digest().ljust(REPORT_DATA_SIZE, b"\0")
        report = _report(self._cpusvn, qe, _attributes(_INIT | _MODE64BIT | _PROVISION_KEY), report_data)
        auth_data = struct.pack("<H", len(_AUTH_DATA)) + _AUTH_DATA
        certification = pck_chain + b"\0"
        return (
            key
            + report
            + _sign(pck_key, report)
            + auth_data
            + struct.pack("<HI", _PCK_CHAIN, len(certification))
            + certification
        )


def _report(cpusvn: bytes, enclave: EnclaveIdentity, attributes: bytes, report_data: bytes) -> bytes:
    """A report body: 384 bytes."""
    misc_select = 0
    return _REPORT.pack(
        cpusvn,
        misc_select,
        b"",
        attributes,
        enclave.mrenclave,
        b"",
        enclave.mrsigner,
        b"",
        enclave.isv_prod_id,
        enclave.isv_svn,
        b"",
        report_data,
    )


def _attributes(flags: int) -> bytes:
    return struct.pack("<QQ", flags, _X87_SSE_AVX)


def _sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")
