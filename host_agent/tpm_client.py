"""The agent's client for its host's TPM: `attestgate tpm serve`, outside the enclave, asked for one quote at a time.

The TPM's bindings stay out of the enclave: a quote is signed by the TPM and answers a fresh nonce, so the service can
only withhold it.
"""

from __future__ import annotations

import socket
from time import monotonic

from attestgate.schemas.base import Refusal, unpack
from attestgate.schemas.tpm import TpmQuote

NONCE_BYTES = 32
MAX_ANSWER = 8192
PATIENCE_S = 10.0
"""How long one quote may take; a TPM needs up to a second for it."""


class TpmClient:
    """Asks the service at `address`, `host:port` on loopback."""

    def __init__(self, address: str) -> None:
        self._address = address

    def quote(self, nonce: bytes) -> TpmQuote:
        """A quote over PCR 0-10 that answers `nonce`, 32 bytes. Raises Refusal (`host.tpm`, `message.*`)."""
        host, _, port = self._address.rpartition(":")
        answer, until = b"", monotonic() + PATIENCE_S
        try:
            with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as service:
                service.sendall(nonce)
                while len(answer) <= MAX_ANSWER and (piece := _receive(service, until)):
                    answer += piece
        except OSError as error:
            raise self._silent(error.strerror or type(error).__name__) from None
        if not answer:
            raise self._silent("an answer without a quote")
        return unpack(TpmQuote, answer, limit=MAX_ANSWER)

    def _silent(self, found: str) -> Refusal:
        return Refusal.because(
            "host.tpm",
            f"TPM service {self._address}",
            expected="a TPM quote",
            found=found,
            action="run `attestgate tpm serve` on this host, and check its log",
        )


def _receive(service: socket.socket, until: float) -> bytes:
    """The next bytes, or empty at the end. Raises OSError, TimeoutError if nothing has come by then."""
    left = until - monotonic()
    if left <= 0:
        raise TimeoutError
    service.settimeout(left)
    return service.recv(MAX_ANSWER)
