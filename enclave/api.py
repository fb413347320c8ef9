"""What an agent asks of the platform it runs on."""

from __future__ import annotations

from typing import Literal, Protocol

from attestgate.schemas.base import Secret

KeyPolicy = Literal["mrenclave", "mrsigner"]
"""What a sealing key is bound to besides the platform: this code, or whoever signed it (SDM vol. 3D, KEYPOLICY)."""

REPORT_DATA_SIZE = 64
SEALING_KEY_SIZE = 16
"""Bytes in a key from EGETKEY, on hardware and here."""


class EnclaveError(Exception):
    """The platform could not do it: no enclave, or it answered what it must not. Never a verdict."""


class Enclave(Protocol):
    """The enclave this process runs in. Calls are short, blocking and safe from any thread."""

    @property
    def simulated(self) -> bool:
        """True where nothing but software stands behind the quotes."""
        ...

    def quote(self, report_data: bytes) -> bytes:
        """A DCAP quote, version 3, whose report carries these 64 bytes. Raises EnclaveError."""
        ...

    def sealing_key(self, policy: KeyPolicy) -> Secret:
        """16 bytes that this platform gives only to this MRENCLAVE, or this MRSIGNER. Raises EnclaveError.

        Both also depend on the product id, the SVN and the CPU's microcode: what they seal must be replaceable.
        """
        ...
