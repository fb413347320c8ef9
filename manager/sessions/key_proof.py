"""The proof of K: an HMAC-SHA512 over this session's nonce and transcript, which only the attested enclave can make."""

from __future__ import annotations

from dataclasses import dataclass

from attestgate.manager.sessions.handshake import open_proof
from attestgate.manager.sessions.record import AppRecord, Basis, Handshake, HostRecord
from attestgate.manager.sessions.states import Input, InvalidTransition
from attestgate.manager.sessions.trusted_host import TrustedHost
from attestgate.schemas.base import Reason
from attestgate.schemas.binding import application_key, colocation_proof, host_proof, same
from attestgate.schemas.messages import Outcome

WRONG_PROOF = Reason(
    code="proof.hmac",
    field="proof",
    expected="HMAC-SHA512 with this session's key over its nonce",
    found="another value",
    action="the sender does not have the key: it is not the attested enclave, or not on that machine",
)


@dataclass(frozen=True)
class KeyProven:
    """An enclave has shown that it has its session's key. Made by the two checks below alone.

    `basis` and `outcome` are of the evidence that the key was granted for.
    """

    basis: Basis
    outcome: Outcome


def prove_host(record: HostRecord, data: bytes) -> KeyProven | None:
    """Check a host's proof of K over n1; None for a wrong one.

    Raises InvalidTransition where nothing was granted, and Refusal for bytes that do not open.
    """
    handshake, n1 = _granted(record)
    if record.k is None:
        raise AssertionError(f"a grant without K in {record.state}")
    expected = host_proof(record.k, n1, handshake.transcript)
    return _proven(record, open_proof(handshake, "host", record.session, data), expected)


def prove_application(record: AppRecord, host: TrustedHost, data: bytes) -> KeyProven | None:
    """Check an application's proof of K_app over n2; None for a wrong one. Raises as `prove_host` does."""
    handshake, n2 = _granted(record)
    # K_app follows from the host's K: to have it, the enclave has read what the host's own wrote, on that machine.
    k_app = application_key(host.k, record.session, handshake.t2)
    expected = colocation_proof(k_app, n2, handshake.transcript)
    return _proven(record, open_proof(handshake, "app", record.session, data), expected)


def _granted(record: HostRecord | AppRecord) -> tuple[Handshake, bytes]:
    handshake = record.handshake
    if handshake is None or handshake.challenge_nonce is None:
        raise InvalidTransition(record.state, Input.PROOF_GOOD)
    return handshake, handshake.challenge_nonce


def _proven(record: HostRecord | AppRecord, proof: bytes, expected: bytes) -> KeyProven | None:
    if record.basis is None or record.outcome is None:
        raise AssertionError(f"a grant without a verdict in {record.state}")
    return KeyProven(record.basis, record.outcome) if same(proof, expected) else None
