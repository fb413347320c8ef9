"""An EPID quote (sgx_quote_t), read but not verified: only Intel's attestation service can do that.

Source: "Intel SGX SDK for Linux OS, Developer Reference", sgx_quote_t. Integers are little-endian.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from attestgate.manager.verification.sgx.quote import MAX_QUOTE, SIGNED_LENGTH
from attestgate.schemas.base import Refusal

VERSIONS = (1, 2)
UNLINKABLE, LINKABLE = 0, 1
_HEADER = struct.Struct("<HH4sHH4s32s")


class EpidHeader(NamedTuple):
    """The 48 bytes in front of the report body. `basename` begins with the SPID where the quote is linkable."""

    version: int
    sign_type: int
    group_id: bytes
    qe_svn: int
    pce_svn: int
    xeid: bytes
    basename: bytes

    @property
    def linkable(self) -> bool:
        """Whether two quotes of one platform for one SPID show one pseudonym."""
        return self.sign_type == LINKABLE

    @property
    def group(self) -> str:
        """The EPID group as the service's URLs name it: big-endian, hexadecimal."""
        return self.group_id[::-1].hex()


def quote_header(quote_body: bytes) -> EpidHeader:
    """The header of an EPID quote, at least 48 bytes. Raises Refusal (`quote.version`, `quote.sign_type`)."""
    header = EpidHeader(*_HEADER.unpack_from(quote_body))
    if header.version not in VERSIONS:
        raise _bad("version", "1 or 2", str(header.version))
    if header.sign_type not in (UNLINKABLE, LINKABLE):
        raise _bad("sign_type", "0 or 1", str(header.sign_type))
    return header


def parse_quote(raw: bytes) -> EpidHeader:
    """Check the form of a whole EPID quote; its header. Raises Refusal (`quote.*`)."""
    if not SIGNED_LENGTH + 4 <= len(raw) <= MAX_QUOTE:
        raise _bad("size", f"{SIGNED_LENGTH + 4} to {MAX_QUOTE} bytes", f"{len(raw)} bytes")
    declared = int.from_bytes(raw[SIGNED_LENGTH : SIGNED_LENGTH + 4], "little")
    if declared != len(raw) - SIGNED_LENGTH - 4:
        raise _bad("size", f"{declared} bytes of signature", f"{len(raw) - SIGNED_LENGTH - 4} bytes")
    return quote_header(raw)


def _bad(code: str, expected: str, found: str) -> Refusal:
    return Refusal.because(
        f"quote.{code}", f"quote.{code}", expected=expected, found=found, action="send an EPID quote for this service"
    )
