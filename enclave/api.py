"""The interface of the platform that an agent runs on."""

from __future__ import annotations

from typing import Literal, Protocol

from attestgate.schemas.base import Secret

KeyPolicy = Literal["mrenclave", "mrsigner"]
"""What a sealing key is bound to besides the platform: this code, or its signer (SDM vol. 3D, KEYPOLICY)."""

REPORT_DATA_SIZE = 64
SEALING_KEY_SIZE = 16
"""Bytes in a key from EGETKEY, on hardware and in the simulation."""


class EnclaveError(Exception):
    """The platform failed: no enclave, or an invalid answer. Never a verdict."""


class Enclave(Protocol):
    """The enclave this process runs in. Calls are short, blocking and safe from any thread."""

    @property
    def simulated(self) -> bool:
        """True if only software vouches for the quotes."""
        ...

    def quote(self, report_data: bytes) -> bytes:
        """A DCAP quote, version 3, whose report carries these 64 bytes. Raises EnclaveError."""
        ...

    def sealing_key(self, policy: KeyPolicy) -> Secret:
        """16 bytes that this platform gives only to this MRENCLAVE, or this MRSIGNER. Raises EnclaveError.

        Both also depend on the product id, the SVN and the CPU's microcode: what they seal must be replaceable.
        """
        ...
