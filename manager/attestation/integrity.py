"""Step 3: what a host measured, appraised in order: the TPM's quote first, then the list that it vouches for."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from dataclasses import dataclass

from pydantic import JsonValue

from attestgate.manager.policy.policies import InForcePolicies, manifest_name
from attestgate.manager.sessions.record import HostRecord
from attestgate.manager.verification.ima.appraisal import ListAppraisal
from attestgate.manager.verification.tpm.evidence import clock, judge_quote
from attestgate.schemas.base import Refusal, unpack
from attestgate.schemas.binding import recheck_tpm_nonce, tpm_nonce
from attestgate.schemas.event_data import PolicyTried, entries_told
from attestgate.schemas.evidence import measured_pieces
from attestgate.schemas.host_policy import ListVerdict, Replay
from attestgate.schemas.messages import HostEvidence, HostRecheckEvidence, MeasurementList
from attestgate.schemas.tpm import TpmClock, TpmEnrolment


@dataclass(frozen=True)
class IntegrityResult:
    """The list's verdict, the clock of the quote that it was compared with, and the verdict by policies on trial."""

    verdict: ListVerdict
    clock: TpmClock | None
    trial: ListVerdict | None


def judge_integrity(
    record: HostRecord,
    evidence: HostEvidence | HostRecheckEvidence,
    enrolled: TpmEnrolment | None,
    policies: InForcePolicies,
    now: int,
) -> Generator[None, None, IntegrityResult]:
    """The verdict on a list, which is judged as it is decompressed and never held whole. Yields after each slice.

    Raises Refusal for a quote that is not the enrolled TPM's answer, or a list that does not go on from before.
    """
    quoted = judge_quote(enrolled, evidence.tpm, _asked(record), policies.host.bank, record.tpm)
    seen = b"" if record.question is not None and record.question.whole else record.replay
    before = unpack(Replay, seen) if seen else Replay.start(policies.host.bank)
    golden = enrolled.golden if enrolled else []
    if not _goes_on(record, evidence.measurements, whole=not seen):
        raise _rewritten(record, evidence.measurements)

    def appraisal(by: InForcePolicies, before: Replay) -> ListAppraisal:
        return ListAppraisal(by.runtime, by.host, before=before, quoted=quoted, golden=golden, at=now)

    verdict = appraisal(policies, before)
    trial = None
    if policies.trial is not None and before.entries == 0:
        trial = appraisal(policies.trial, Replay.start(policies.trial.host.bank))
    both = [verdict] if trial is None else [trial, verdict]
    prefix = _Prefix(0 if seen else record.list_size)
    for piece in measured_pieces(evidence.measurements):
        prefix.take(piece)
        yield
        for each in both:
            yield from each.take(piece)
            yield
    if not seen and prefix.digest() != (record.list_digest or hashlib.sha256(b"").digest()):
        raise _rewritten(record, evidence.measurements)
    for each in both:
        yield from each.take(b"", last=True)
    return IntegrityResult(verdict.verdict(), clock(quoted) if quoted else None, trial.verdict() if trial else None)


class _Prefix:
    """The hash of a list's first bytes, of which the list may have fewer."""

    def __init__(self, size: int) -> None:
        self._hash, self._left = hashlib.sha256(), size

    def take(self, piece: bytes) -> None:
        self._hash.update(piece[: self._left])
        self._left -= min(self._left, len(piece))

    def digest(self) -> bytes:
        return self._hash.digest()


def tried(policies: InForcePolicies, verdict: ListVerdict) -> JsonValue:
    """What an event says of a trial."""
    if policies.trial is None:
        raise AssertionError("a verdict by policies that are not on trial")
    return PolicyTried(
        manifest=manifest_name(policies.trial.manifest),
        admitted=verdict.admitted,
        reasons=verdict.reasons,
        unknown=entries_told(verdict.unknown),
    ).model_dump(mode="json")


def _asked(record: HostRecord) -> bytes:
    """The nonce that the TPM's quote has to carry."""
    if record.question is not None:
        return recheck_tpm_nonce(record.question.nonce, record.question.chain)
    if record.handshake is None:
        raise AssertionError(f"nothing was asked in {record.state}")
    return tpm_nonce(record.handshake.nonce, record.handshake.transcript)


def _goes_on(record: HostRecord, measurements: MeasurementList, *, whole: bool) -> bool:
    """Whether a list claims to go on from what was seen of it before."""
    if whole:
        return measurements.offset == 0
    return measurements.offset == record.list_size and measurements.prefix == record.list_digest


def _rewritten(record: HostRecord, measurements: MeasurementList) -> Refusal:
    return Refusal.because(
        "ima.rewritten",
        "measurement list",
        expected=f"the {record.list_size} bytes seen before, unchanged, and what came after",
        found=f"a list whose first {measurements.offset} bytes differ",
        action="a kernel's list only grows: find out what changed it; a reboot is a new session",
    )
