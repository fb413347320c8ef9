"""Step 3: what a host measured, appraised in order: the TPM's quote first, then the list that it vouches for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from pydantic import JsonValue

from attestgate.manager.policy.policies import InForce, manifest_name
from attestgate.manager.sessions.record import HostRecord
from attestgate.manager.verification.ima.appraisal import appraise_list
from attestgate.manager.verification.tpm.evidence import clock, judge_quote
from attestgate.schemas.base import Refusal, unpack
from attestgate.schemas.binding import recheck_tpm_nonce, tpm_nonce
from attestgate.schemas.event_data import PolicyTried
from attestgate.schemas.evidence import unpack_measurements
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
    policies: InForce,
    now: int,
) -> IntegrityResult:
    """Raises Refusal for a quote that is not the enrolled TPM's answer, or a list that does not go on from before."""
    bank = policies.host.bank
    quoted = judge_quote(enrolled, evidence.tpm, _asked(record), bank, record.tpm)
    seen = b"" if record.question is not None and record.question.whole else record.replay
    before = unpack(Replay, seen) if seen else Replay.start(bank)
    data = unpack_measurements(evidence.measurements)
    if not _goes_on(record, evidence.measurements, data, whole=not seen):
        raise Refusal.because(
            "ima.rewritten",
            "measurement list",
            expected=f"the {record.list_size} bytes seen before, unchanged, and what came after",
            found=f"a list whose first {evidence.measurements.offset} bytes differ",
            action="a kernel's list only grows: find out what changed it; a reboot is a new session",
        )
    golden = enrolled.golden if enrolled else []
    tried = None
    if policies.trial is not None and before.entries == 0:
        by = policies.trial
        start = Replay.start(by.host.bank)
        tried = appraise_list(data, by.runtime, by.host, before=start, quoted=quoted, golden=golden, at=now)
    verdict = appraise_list(data, policies.runtime, policies.host, before=before, quoted=quoted, golden=golden, at=now)
    return IntegrityResult(verdict, clock(quoted) if quoted else None, tried)


def tried(policies: InForce, verdict: ListVerdict) -> JsonValue:
    """What an event says of a trial."""
    if policies.trial is None:
        raise AssertionError("a verdict by policies that are not on trial")
    return PolicyTried(
        manifest=manifest_name(policies.trial.manifest),
        admitted=verdict.admitted,
        reasons=verdict.reasons,
        unknown=verdict.unknown,
    ).model_dump(mode="json")


def _asked(record: HostRecord) -> bytes:
    """The nonce that the TPM's quote has to carry."""
    if record.question is not None:
        return recheck_tpm_nonce(record.question.nonce, record.question.chain)
    if record.handshake is None:
        raise AssertionError(f"nothing was asked in {record.state}")
    return tpm_nonce(record.handshake.nonce, record.handshake.transcript)


def _goes_on(record: HostRecord, measurements: MeasurementList, data: bytes, *, whole: bool) -> bool:
    """Whether the list still begins with what was seen of it before."""
    if not whole:
        return measurements.offset == record.list_size and measurements.prefix == record.list_digest
    known = record.list_digest or hashlib.sha256(b"").digest()
    return measurements.offset == 0 and hashlib.sha256(data[: record.list_size]).digest() == known
