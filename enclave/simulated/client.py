"""The enclave's own end of its socket to the simulated platform."""

from __future__ import annotations

import os
import socket
from threading import Lock

from attestgate.enclave.api import SEALING_KEY_SIZE, EnclaveError, KeyPolicy
from attestgate.enclave.simulated.frames import ENCLAVE_FD, MAX_FRAME, KeyRequest, QuoteRequest
from attestgate.schemas.base import Model, Refusal, Secret, pack


class SimulatedEnclave:
    """The simulated enclave this process runs in. The socket is its identity: the daemon knows what it measured."""

    simulated = True

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._turn = Lock()

    @classmethod
    def inherited(cls) -> SimulatedEnclave:
        """From the socket that the daemon left open for this process; once. Raises Refusal `enclave.simulated`."""
        try:
            channel = socket.socket(fileno=int(os.environ.pop(ENCLAVE_FD)))
        except (KeyError, ValueError, OSError):
            raise Refusal.because(
                "enclave.simulated",
                ENCLAVE_FD,
                expected="a process that the simulated platform's daemon launched and measured",
                found="no socket to it, or a socket already in use",
                action="start the agent through the daemon",
            ) from None
        os.set_inheritable(channel.fileno(), False)
        return cls(channel)

    def quote(self, report_data: bytes) -> bytes:
        """See enclave.api.Enclave."""
        return self._ask(QuoteRequest(report_data=report_data))

    def sealing_key(self, policy: KeyPolicy) -> Secret:
        """See enclave.api.Enclave."""
        key = self._ask(KeyRequest(policy=policy))
        if len(key) != SEALING_KEY_SIZE:
            raise EnclaveError(f"the simulated platform's sealing key has {len(key)} bytes, not {SEALING_KEY_SIZE}")
        return Secret(key)

    def close(self) -> None:
        """Close the socket, and with it the identity."""
        self._channel.close()

    def _ask(self, request: Model) -> bytes:
        try:
            with self._turn:
                self._channel.sendall(pack(request))
                answer = self._channel.recv(MAX_FRAME)
        except OSError as error:
            raise EnclaveError(f"the simulated platform is gone: {error.strerror}") from error
        if not answer:
            raise EnclaveError("the simulated platform closed the connection")
        return answer
