"""Step 3, the host's side: the TPM's quote, then the kernel's measurement list, and an SGX quote that covers both."""

from __future__ import annotations

from pathlib import Path

from attestgate.bus.agent.link import AgentSession
from attestgate.enclave.api import Enclave
from attestgate.host_agent.tpm_client import TpmClient
from attestgate.schemas.base import Refusal, read_at_most
from attestgate.schemas.binding import enclave_key_hash, recheck_report_data, recheck_tpm_nonce, report_data, tpm_nonce
from attestgate.schemas.evidence import host_evidence_hash, pack_measurements
from attestgate.schemas.messages import MAX_LIST, Challenge, HostEvidence, HostRecheckEvidence, Recheck


def read_list(path: Path) -> bytes:
    """The kernel's binary measurement list, to its end (its size says 0). Raises Refusal `host.list`."""
    try:
        data = read_at_most(path, MAX_LIST)
    except OSError as error:
        raise Refusal.because(
            "host.list",
            str(path),
            expected="the kernel's binary measurement list",
            found=error.strerror or type(error).__name__,
            action="boot with an IMA policy (ima_policy=tcb), mount securityfs, run the agent as root",
        ) from None
    if len(data) > MAX_LIST:
        raise Refusal.because(
            "host.list",
            str(path),
            expected=f"at most {MAX_LIST} bytes",
            found="a longer list",
            action="reboot the host: its list has outgrown what can be appraised",
        )
    return data


def first_evidence(
    enclave: Enclave, session: AgentSession, challenge: Challenge, host: str, list_path: Path, tpm: TpmClient | None
) -> HostEvidence:
    """The answer to a challenge. `tpm` gives the TPM quote, if one is wanted: made first, for the list only grows.

    The SGX quote covers the list and the TPM quote, so that the three are one answer, and none can come from another.
    """
    quoted = None if tpm is None else tpm.quote(tpm_nonce(challenge.nonce, session.transcript))
    measurements = pack_measurements(read_list(list_path), 0)
    data = report_data(
        "host",
        session.session,
        host,
        challenge.nonce,
        session.transcript,
        session.public_key,
        host_evidence_hash(measurements, quoted),
    )
    return HostEvidence(
        enclave_key=session.public_key, quote=enclave.quote(data), measurements=measurements, tpm=quoted
    )


def recheck_evidence(
    enclave: Enclave, session: AgentSession, question: Recheck, host: str, list_path: Path, tpm: TpmClient | None
) -> HostRecheckEvidence:
    """The answer to a recheck: what the list grew by, and fresh quotes."""
    quoted = None if tpm is None else tpm.quote(recheck_tpm_nonce(question.nonce, session.channel.opened_chain))
    measurements = pack_measurements(read_list(list_path), question.list_offset)
    data = recheck_report_data(
        "host",
        session.session,
        host,
        question.nonce,
        session.channel.opened_chain,
        enclave_key_hash(session.public_key),
        host_evidence_hash(measurements, quoted),
    )
    return HostRecheckEvidence(nonce=question.nonce, quote=enclave.quote(data), measurements=measurements, tpm=quoted)
