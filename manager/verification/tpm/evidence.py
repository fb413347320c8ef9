"""A host's TPM quote judged against its enrolment: the pinned AK, the nonce and PCRs asked for, a clock that rises.

The PCR values that come out are what the measurement list and the golden values are then compared with (ima.py).
Source: TCG TPM 2.0 Library, Part 1: 36 "Timing Components" (Clock, resetCount, restartCount).
"""

from __future__ import annotations

from attestgate.manager.verification.tpm.public_area import attestation_key
from attestgate.manager.verification.tpm.quote import QuotedPcrs, refused, verify_quote
from attestgate.schemas.base import Refusal
from attestgate.schemas.host_policy import BOOT_PCRS, IMA_PCR, Bank
from attestgate.schemas.tpm import TpmClock, TpmEnrolment, TpmQuote

SELECTION = (*BOOT_PCRS, IMA_PCR)
"""PCR 0-10: what every quote has to be over."""


def judge_quote(
    enrolled: TpmEnrolment | None, given: TpmQuote | None, nonce: bytes, bank: Bank, before: TpmClock | None
) -> QuotedPcrs | None:
    """The PCR values that the enrolled TPM vouches for; None for a host without one.

    Raises Refusal (`tpm.*`, `host.tpm`).

    `before` is the clock of the session's last quote. A TPM that was reset since has begun a new list, which belongs
    into a new session; one whose counters went back is not the same TPM, or was restored from a copy.
    """
    if enrolled is None:
        if given is None:
            return None
        raise _host(
            "no TPM quote (no TPM is enrolled)", "a TPM quote", "enrol the host's TPM, or send what was requested only"
        )
    if given is None:
        raise _host(
            "a quote by the enrolled TPM",
            "no TPM quote",
            "run `attestgate tpm serve`, and name it in the agent's settings",
        )
    key = attestation_key(enrolled.ak).key
    quoted = verify_quote(given.message, given.signature, given.pcrs, key, nonce)
    attest = quoted.attest
    # Stops a true quote over PCRs that software may reset (16, 23), over none, or of a weaker bank (CVE-2024-29039).
    if attest.selection != ((bank, SELECTION),):
        found = "; ".join(f"{other} {', '.join(map(str, pcrs))}" for other, pcrs in attest.selection)
        raise refused("tpm.selection", "pcrSelect", f"{bank}: PCR 0 to {IMA_PCR}", found, "quote what was asked for")
    if before is not None:
        check_clock(before, clock(quoted))
    return quoted


def clock(quoted: QuotedPcrs) -> TpmClock:
    """The clock and counters of a quote."""
    attest = quoted.attest
    return TpmClock(reset_count=attest.reset_count, restart_count=attest.restart_count, clock_ms=attest.clock_ms)


def check_clock(before: TpmClock, now: TpmClock) -> None:
    """Within one session nothing goes back, and the TPM is not reset. Raises Refusal (`tpm.reset`, `tpm.clock`)."""
    if now.reset_count > before.reset_count:
        action = "nothing, if the host was rebooted: its next session begins a new list"
        raise refused("tpm.reset", "resetCount", before.reset_count, now.reset_count, action)
    if now.reset_count < before.reset_count or now.restart_count < before.restart_count:
        expected = f"{before.reset_count}.{before.restart_count} or later"
        found = f"{now.reset_count}.{now.restart_count}"
        raise refused("tpm.clock", "resetCount.restartCount", expected, found, _ROLLED_BACK)
    # `safe` may be NO: that warns of a Clock set back by a disorderly shutdown, which makes a TPM Reset, refused above.
    if now.clock_ms < before.clock_ms:
        raise refused("tpm.clock", "clock", f"{before.clock_ms} ms or later", f"{now.clock_ms} ms", _ROLLED_BACK)


_ROLLED_BACK = "find out who restored this TPM's state from a copy"


def _host(expected: str, found: str, action: str) -> Refusal:
    return Refusal.because("host.tpm", "host evidence, TPM quote", expected=expected, found=found, action=action)
