"""An SGX enclave under Gramine, through its pseudo-files in /dev/attestation.

Source: Gramine documentation, "Attestation and secret provisioning", and facts measured on it: the pair
user_report_data and quote is one for the whole process, hence the lock.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock

from attestgate.enclave.api import REPORT_DATA_SIZE, SEALING_KEY_SIZE, EnclaveError, KeyPolicy
from attestgate.schemas.base import Refusal, Secret

DEV_ATTESTATION = Path("/dev/attestation")
_REPORT_DATA_IN_QUOTE = slice(368, 432)
_pair = Lock()


class GramineEnclave:
    """The enclave that Gramine runs this process in."""

    simulated = False

    def __init__(self, folder: Path = DEV_ATTESTATION) -> None:
        """Raises Refusal `enclave.gramine` if there is no enclave, or one without DCAP."""
        kind_file = folder / "attestation_type"
        try:
            kind = kind_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise _no_enclave(str(kind_file), getattr(error, "strerror", None) or "not text") from None
        if kind != "dcap":
            raise _no_enclave(str(kind_file), kind)
        self._folder = folder

    def quote(self, report_data: bytes) -> bytes:
        """See enclave.api.Enclave."""
        if len(report_data) != REPORT_DATA_SIZE:
            raise ValueError(f"report data has {REPORT_DATA_SIZE} bytes")
        try:
            with _pair:
                (self._folder / "user_report_data").write_bytes(report_data)
                quote = (self._folder / "quote").read_bytes()
        except OSError as error:
            raise EnclaveError(f"Gramine gave no quote: {error.strerror}; is aesmd or the in-kernel QE up?") from error
        if quote[_REPORT_DATA_IN_QUOTE] != report_data:
            raise EnclaveError(
                "Gramine's quote carries other report data: something else in this process uses the pair"
            )
        return quote

    def sealing_key(self, policy: KeyPolicy) -> Secret:
        """See enclave.api.Enclave."""
        try:
            key = (self._folder / "keys" / f"_sgx_{policy}").read_bytes()
        except OSError as error:
            raise EnclaveError(f"Gramine gave no {policy} sealing key: {error.strerror}") from error
        if len(key) != SEALING_KEY_SIZE:
            raise EnclaveError(f"Gramine's {policy} sealing key has {len(key)} bytes, not {SEALING_KEY_SIZE}")
        return Secret(key)


def _no_enclave(field: str, found: str) -> Refusal:
    return Refusal.because(
        "enclave.gramine",
        field,
        expected="dcap, read inside an SGX enclave",
        found=found,
        action='run the agent under gramine-sgx with sgx.remote_attestation = "dcap"',
    )
