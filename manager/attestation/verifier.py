"""Steps 2, 3 and 5: evidence into a judgement. Here the attestation service is contacted, for each attestation.

Everything that has to be fetched (collateral, enrolment, policies) is fetched here; what is decided is decided by the
pure functions of manager/verification. Whether evidence is the subject's own is decided last: only a quote that
verifies, carries this session's report data, and names the enrolled platform and measurement may end a session.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TypeAlias

from attestgate.manager.attestation.integrity import judge_integrity, tried
from attestgate.manager.attestation.service import AttestationService, Wanted
from attestgate.manager.local.high_water import HighWater
from attestgate.manager.local.slices import Slices, aside
from attestgate.manager.pki.authority import Authority
from attestgate.manager.pki.issue import check_request
from attestgate.manager.policy.enrolments import Enrolments
from attestgate.manager.policy.policies import InForcePolicies, Policies
from attestgate.manager.sessions.appraisal import AppraisalResult
from attestgate.manager.sessions.enrolled import Enrolled
from attestgate.manager.sessions.record import AppRecord, Basis, HostRecord
from attestgate.manager.sessions.trusted_host import TrustedHost
from attestgate.manager.verification.sgx.same_platform import same_platform
from attestgate.schemas.base import Reason, Refusal, pack
from attestgate.schemas.binding import Role, recheck_report_data, report_data
from attestgate.schemas.enrolment import AppEnrolment, PolicyManifest
from attestgate.schemas.event_data import entries_told
from attestgate.schemas.evidence import app_evidence_hash, host_evidence_hash
from attestgate.schemas.host_policy import ListVerdict
from attestgate.schemas.messages import (
    AppEvidence,
    AppRecheckEvidence,
    HostEvidence,
    HostRecheckEvidence,
    Outcome,
)
from attestgate.schemas.sgx import IasVerdict, PlatformIdentity, SgxVerdict
from attestgate.schemas.tpm import TpmClock, TpmEnrolment

NOTHING = "00" * 32
"""In the place of a hash, where there is nothing to hash."""
Verdict: TypeAlias = SgxVerdict | IasVerdict


class Verifier:
    """Appraises evidence by what this deployment trusts."""

    def __init__(
        self,
        enrolments: Enrolments,
        policies: Policies,
        service: AttestationService,
        authority: Authority,
        high_water: HighWater,
        slices: Slices,
    ) -> None:
        self._slices = slices
        self._enrolments = enrolments
        self._policies = policies
        self._high_water = high_water
        self._service = service
        self._authority = authority

    async def host(self, record: HostRecord, evidence: HostEvidence, now: int) -> AppraisalResult:
        """First evidence of a host. Raises Refusal where nothing can be judged (enrolment, policy, service)."""
        expected = self._first_report_data(record, evidence.enclave_key, await _evidence_hash(evidence))
        return await self._host(record, evidence, expected, now)

    async def host_recheck(self, record: HostRecord, evidence: HostRecheckEvidence, now: int) -> AppraisalResult:
        """Evidence for a recheck, with what the list grew by. Raises Refusal where nothing can be judged."""
        expected = self._recheck_report_data(record, await _evidence_hash(evidence))
        return await self._host(record, evidence, expected, now)

    async def app(
        self,
        record: AppRecord,
        evidence: AppEvidence,
        host: TrustedHost | None,
        enrolled: Enrolled[AppEnrolment],
        now: int,
    ) -> AppraisalResult:
        """First evidence of an application, `host` being its host's trusted session, if there is one.

        Raises Refusal where nothing can be appraised (policy, service).
        """
        if host is None:
            return _not_appraised(NO_HOST)
        if enrolled.subject.volume(record.host) is None:
            return _not_appraised(NO_PLACEMENT)
        expected = self._first_report_data(
            record, evidence.enclave_key, app_evidence_hash(evidence.certificate_request, proxy=evidence.proxy)
        )
        result = await self._app(record, evidence.quote, host, enrolled, expected, now, proxy=evidence.proxy)
        try:
            check_request(self._authority, evidence.certificate_request, host=record.host, app=record.subject)
        except Refusal as refusal:
            return replace(result, reasons=(*result.reasons, *refusal.reasons))
        return result

    async def app_recheck(
        self,
        record: AppRecord,
        evidence: AppRecheckEvidence,
        host: TrustedHost,
        enrolled: Enrolled[AppEnrolment],
        now: int,
    ) -> AppraisalResult:
        """Evidence for an application's recheck. Raises Refusal where nothing can be judged."""
        expected = self._recheck_report_data(record, app_evidence_hash())
        return await self._app(record, evidence.quote, host, enrolled, expected, now, proxy=record.proxy)

    async def _host(
        self, record: HostRecord, evidence: HostEvidence | HostRecheckEvidence, expected: bytes, now: int
    ) -> AppraisalResult:
        in_force = await self._enrolments.host(record.subject)
        policies, enrolled = await self._policies.in_force(), in_force.subject
        verdict = await self._quote(evidence.quote, policies, enrolled.mrenclaves, expected, now)
        tied = _tied(verdict, enrolled.mrenclaves, expected, enrolled.platform)
        so_far = AppraisalResult(
            own=tied,
            reasons=(),
            outcome=_outcome(verdict, policies),
            platform=verdict.platform,
            verdict=verdict,
            hold=policies.host.after_drift == "hold",
            basis=Basis(enrolled=in_force.order, policy=policies.manifest.version),
        )
        reasons = [*verdict.reasons, *_platform_reasons(verdict, enrolled.platform), *_steady(record, verdict)]
        if not tied:  # anybody's: what a list costs to judge is spent on the host's own only
            return replace(so_far, reasons=tuple(reasons))
        tpm = enrolled.enrolled_tpm
        try:
            found = await self._slices.finish(judge_integrity(record, evidence, tpm, policies, now))
            if tpm is not None and found.clock is not None:
                # Only now, when the enrolled AK has signed the clock: else whatever answers in the TPM's place could
                # raise the high-water mark and lock the host out.
                self._check_resets(tpm, found.clock)
        except Refusal as refusal:
            reasons += refusal.reasons
            return replace(so_far, reasons=tuple(reasons))
        listed = found.verdict
        if evidence.measurements.offset and record.outcome is not None and record.outcome.observe_only:
            listed = listed.model_copy(update={"accepted": False})  # what was found then is on the list still
        if not listed.admitted:
            reasons += listed.reasons
        return replace(
            so_far,
            reasons=tuple(reasons),
            outcome=_outcome(verdict, policies, listed),
            list_size=evidence.measurements.offset + evidence.measurements.size,
            list_digest=evidence.measurements.whole,
            replay=pack(listed.replay),
            tpm=found.clock,
            listed=listed,
            notes={
                "entries": listed.entries,
                "anchored_entries": listed.anchored_entries,
                "boot_state": listed.boot_state,
                "unknown": [entry.model_dump(mode="json") for entry in entries_told(listed.unknown)],
                "pcr10": {str(bank): value for bank, value in listed.pcr10.items()},
                **({} if found.trial is None else {"trial": tried(policies, found.trial)}),
            },
        )

    async def _app(
        self,
        record: AppRecord,
        quote: bytes,
        host: TrustedHost,
        in_force: Enrolled[AppEnrolment],
        expected: bytes,
        now: int,
        *,
        proxy: bool,
    ) -> AppraisalResult:
        policies, enrolled = await self._policies.in_force(), in_force.subject
        verdict = await self._quote(quote, policies, enrolled.mrenclaves, expected, now)
        placed = enrolled.volume(record.host) is not None
        reasons = [*verdict.reasons, *_steady(record, verdict), *(() if placed else (NO_PLACEMENT,))]
        reasons += _weaker(enrolled, policies.manifest, proxy)
        apart: tuple[Reason, ...] = ()
        if verdict.platform is not None:
            apart = same_platform(host.platform, verdict.platform, policies.sgx)
        tied = _tied(verdict, enrolled.mrenclaves, expected, None) and not apart
        outcome = _outcome(verdict, policies)
        inherited = {"integrity": host.outcome.integrity, "observe_only": host.outcome.observe_only}
        outcome = outcome.model_copy(update=inherited)
        basis = Basis(enrolled=in_force.order, policy=policies.manifest.version)
        return AppraisalResult(tied, (*reasons, *apart), outcome, verdict.platform, verdict=verdict, basis=basis)

    def _check_resets(self, enrolled: TpmEnrolment, clock: TpmClock) -> None:
        """Raises Refusal `rollback` for a TPM that was reset less often than this worker has seen before."""
        name = hashlib.sha256(enrolled.ak).hexdigest()[:32]
        self._high_water.check(f"tpm.{name}.resets", clock.reset_count)

    async def _quote(
        self, quote: bytes, policies: InForcePolicies, mrenclaves: list[str], expected: bytes, now: int
    ) -> Verdict:
        """Step 2: the attestation service is contacted, and the quote appraised."""
        wanted = Wanted(policies.sgx, policies.manifest.sgx_policy, mrenclaves, expected)
        return await self._service.appraise(quote, wanted, now)

    @staticmethod
    def _first_report_data(record: HostRecord | AppRecord, enclave_key: bytes, evidence: bytes) -> bytes:
        handshake = record.handshake
        if handshake is None:
            raise AssertionError(f"no handshake under way in {record.state}")
        role: Role = record.role
        return report_data(
            role, record.session, record.subject, handshake.nonce, handshake.transcript, enclave_key, evidence
        )

    @staticmethod
    def _recheck_report_data(record: HostRecord | AppRecord, evidence: bytes) -> bytes:
        question = record.question
        if question is None:
            raise AssertionError(f"no question under way in {record.state}")
        role: Role = record.role
        return recheck_report_data(
            role, record.session, record.subject, question.nonce, question.chain, record.enclave_key_hash, evidence
        )


async def _evidence_hash(evidence: HostEvidence | HostRecheckEvidence) -> bytes:
    listed = evidence.measurements
    return await aside(len(listed.zlib), host_evidence_hash, listed, evidence.tpm)


def _tied(verdict: Verdict, mrenclaves: list[str], expected: bytes, platform: str | None) -> bool:
    """Whether the quote is the enrolled subject's: it verifies, answers this challenge, names its measurement.

    `platform` is None for an application: it is compared with its host's by `same_platform`, not pinned.
    """
    verified = verdict.verified and verdict.report_data == expected.hex()
    return (
        verified
        and verdict.mrenclave in mrenclaves
        and verdict.platform is not None
        and platform in (None, verdict.platform.ppid)
    )


def _platform_reasons(verdict: Verdict, enrolled: str) -> list[Reason]:
    if verdict.platform is None or verdict.platform.ppid == enrolled:
        return []
    return [
        Reason(
            code="host.platform",
            field="platform.ppid",
            expected=f"the enrolled platform {enrolled}",
            found=verdict.platform.ppid,
            action="this id belongs to another machine; enrol the host again if its machine was replaced",
        )
    ]


def _weaker(enrolled: AppEnrolment, manifest: PolicyManifest, proxy: bool) -> list[Reason]:
    """Why an application is not let in whose key or program is not within its enclave, unless the policy says so."""
    asked = [
        ("proxy", proxy, manifest.allow_proxy, "allow_proxy", "an enclave that carries a program's requests"),
        (
            "certificate_key",
            enrolled.certificate_key == "manager",
            manifest.allow_manager_keys,
            "allow_manager_keys",
            "a private key that the manager makes",
        ),
    ]
    return [
        Reason(
            code=f"policy.{field}",
            field=field,
            expected="a program and a key within the enclave",
            found=found,
            action=f"sign a policy set with {key} = true, if that is good enough",
        )
        for field, wanted, allowed, key, found in asked
        if wanted and not allowed
    ]


def _steady(record: HostRecord | AppRecord, verdict: Verdict) -> list[Reason]:
    """Measurement and platform may not change within a session."""
    if record.question is None or record.outcome is None:
        return []
    before = {"mrenclave": record.outcome.mrenclave, **_parts(record.platform)}
    after = {"mrenclave": verdict.mrenclave or "", **_parts(verdict.platform)}
    return [
        Reason(
            code=f"recheck.{name}",
            field=name,
            expected=f"{value}, as when the session began",
            found=after.get(name, "no value"),
            action="start a new session",
        )
        for name, value in before.items()
        if after.get(name) != value
    ]


def _parts(platform: PlatformIdentity | None) -> dict[str, str]:
    return platform.model_dump() if platform is not None else {}


def _not_appraised(reason: Reason) -> AppraisalResult:
    """What there is to say of evidence that was not appraised: it ends nothing."""
    outcome = Outcome(
        simulated=False,
        integrity="unanchored",
        observe_only=False,
        quote_id=NOTHING,
        mrenclave=NOTHING,
        tcb_status="none",
        policy={},
    )
    return AppraisalResult(own=False, reasons=(reason,), outcome=outcome)


def _outcome(verdict: Verdict, policies: InForcePolicies, listed: ListVerdict | None = None) -> Outcome:
    return Outcome(
        simulated=verdict.simulated,
        integrity=listed.integrity if listed is not None else "unanchored",
        observe_only=listed is not None and listed.admitted and not listed.accepted,
        quote_id=verdict.quote_id or NOTHING,
        mrenclave=verdict.mrenclave or NOTHING,
        tcb_status=(verdict.status or "none")[:64],
        policy=policies.names,
    )


NO_PLACEMENT = Reason(
    code="enrolment.placement",
    field="host",
    expected="a host that this application may run on",
    found="another host",
    action="enrol the application for this host: attestgate enrol app --host",
)
NO_HOST = Reason(
    code="host.not-trusted",
    field="host",
    expected="a host session that is trusted now",
    found="no trusted session",
    action="start the host's agent and wait until it is accepted; the application retries automatically",
)
