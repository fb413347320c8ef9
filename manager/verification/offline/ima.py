"""A measurement list judged from files, as `attestgate verify ima` does: binary or ASCII, policy and quote or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attestgate.manager.verification.ima.appraisal import appraise_list, inspect_list
from attestgate.manager.verification.ima.ascii import is_ascii, to_binary
from attestgate.manager.verification.ima.runtime_policy import LoadedPolicy
from attestgate.manager.verification.sgx.appraisal import LAST_SECOND, time_out_of_range
from attestgate.manager.verification.tpm.quote import QuotedPcrs, golden_pcrs, read_key, verify_quote
from attestgate.schemas.base import Reason, Refusal
from attestgate.schemas.host_policy import Bank, GoldenPcrs, HostPolicy, ListVerdict, Replay

MAX_LISTED = 16 * 1024 * 1024
"""Bytes, about, in which unknown entries are listed (50,000 or so): a verdict goes to a person, not into a message."""


@dataclass(frozen=True, slots=True)
class QuoteFiles:
    """A TPM quote in files: TPMS_ATTEST, signature, PCR values end to end, AK in PEM; and the nonce asked for."""

    message: bytes
    signature: bytes
    pcrs: bytes
    ak: bytes
    nonce: bytes


def judge_files(
    data: bytes,
    *,
    policy: LoadedPolicy | None,
    host: HostPolicy | None,
    quote: QuoteFiles | None,
    golden: Sequence[bytes] = (),
    at: int,
) -> ListVerdict:
    """The verdict on a list, binary or ASCII; bad evidence gives reasons, never an exception.

    Without a `policy` nothing is compared with anything, and the verdict names none. Without a `host` policy the list
    must be anchored in a quote. `golden` are PCR values of good boots, end to end from PCR 0 to 9 or beyond; without
    any the boot is not judged, and need not be.
    """
    if not 0 <= at <= LAST_SECOND:
        return refused([time_out_of_range(at)], at)
    quoted, refusals = _quoted(quote)
    try:
        boots = [golden_pcrs(values, quoted.bank) for values in golden] if quoted else []
        verdict = _judge(to_binary(data) if is_ascii(data) else data, policy, host, quoted, boots, at)
    except Refusal as refusal:
        return refused([*refusals, *refusal.reasons], at)
    if refusals:
        return verdict.model_copy(update={"accepted": False, "admitted": False, "reasons": refusals + verdict.reasons})
    return verdict


def refused(reasons: list[Reason], at: int) -> ListVerdict:
    """The verdict on a list that was not read at all."""
    return ListVerdict(
        accepted=False,
        admitted=False,
        mode="enforcing",
        at=at,
        policy=None,
        integrity="unanchored",
        boot_state="not_judged",
        anchored_entries=0,
        violations=0,
        excluded=0,
        unknown_entries=0,
        unknown=[],
        reasons=reasons,
        replay=Replay.start(),
    )


def _quoted(quote: QuoteFiles | None) -> tuple[QuotedPcrs | None, list[Reason]]:
    """The verified quote, or why it is none."""
    if quote is None:
        return None, []
    try:
        key = read_key(quote.ak)
        return verify_quote(quote.message, quote.signature, quote.pcrs, key, quote.nonce), []
    except Refusal as refusal:
        return None, list(refusal.reasons)


def _judge(
    data: bytes,
    policy: LoadedPolicy | None,
    host: HostPolicy | None,
    quoted: QuotedPcrs | None,
    golden: Sequence[GoldenPcrs],
    at: int,
) -> ListVerdict:
    before = Replay.start()
    if policy is None:
        return inspect_list(data, before=before, quoted=quoted, golden=golden, at=at)
    bank: Bank = quoted.bank if quoted else "sha256"
    by = host or HostPolicy(version=1, runtime_policy=policy.sha256, accept_unjudged_boot=True, bank=bank)
    return appraise_list(data, policy, by, before=before, quoted=quoted, golden=golden, at=at, room=MAX_LISTED)
