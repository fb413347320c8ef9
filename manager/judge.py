"""Steps 2, 3 and 5: evidence into a judgement. Here the attestation service is contacted, for each attestation.

Everything that has to be fetched (collateral, enrolment, policies) is fetched here; what is decided is decided by the
pure functions of manager/verification. Whether evidence is the subject's own is decided last: only a quote that
verifies, carries this session's report data, and names the enrolled platform and measurement may end a session.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass

from manager.pki.authority import Authority
from manager.pki.issue import check_request
from manager.registry import InForce, Registry
from manager.sessions.draft import Judgement
from manager.sessions.record import AppRecord, HostRecord
from manager.verification.collateral_client import CollateralClient
from manager.verification.colocation import same_platform
from manager.verification.ima import appraise_list
from manager.verification.sgx import appraise
from schemas.base import Reason, Refusal, pack, unpack
from schemas.binding import Role, recheck_report_data, report_data
from schemas.evidence import app_evidence_hash, host_evidence_hash, unpack_measurements
from schemas.host_policy import ListVerdict, Replay
from schemas.messages import (
    AppEvidence,
    AppRecheckEvidence,
    HostEvidence,
    HostRecheckEvidence,
    MeasurementList,
    Outcome,
)
from schemas.sgx import PlatformIdentity, SgxVerdict


@dataclass(frozen=True)
class Root:
    """The root that quotes must chain to, in DER; `simulated` unless it is Intel's."""

    der: bytes
    simulated: bool


class Judge:
    """Judges evidence with what this deployment trusts."""

    def __init__(
        self, registry: Registry, collateral: CollateralClient, root: Root, salt: bytes, authority: Authority
    ) -> None:
        self._registry = registry
        self._collateral = collateral
        self._root = root
        self._salt = salt
        self._authority = authority

    async def host(self, record: HostRecord, evidence: HostEvidence, now: int) -> Judgement:
        """First evidence of a host. Raises Refusal where nothing can be judged (enrolment, policy, service)."""
        expected = self._first_report_data(record, evidence.enclave_key, host_evidence_hash(evidence.measurements))
        return await self._host(record, evidence.quote, evidence.measurements, expected, now)

    async def host_recheck(self, record: HostRecord, evidence: HostRecheckEvidence, now: int) -> Judgement:
        """Evidence for a recheck, with what the list grew by. Raises Refusal where nothing can be judged."""
        expected = self._recheck_report_data(record, host_evidence_hash(evidence.measurements))
        return await self._host(record, evidence.quote, evidence.measurements, expected, now)

    async def app(self, record: AppRecord, evidence: AppEvidence, host: HostRecord, now: int) -> Judgement:
        """First evidence of an application on a trusted host. Raises Refusal where nothing can be judged."""
        expected = self._first_report_data(
            record, evidence.enclave_key, app_evidence_hash(evidence.certificate_request)
        )
        judgement = await self._app(record, evidence.quote, host, expected, now)
        try:
            check_request(self._authority, evidence.certificate_request, host=record.host, app=record.subject)
        except Refusal as refusal:
            reasons = (*judgement.reasons, *refusal.reasons)
            return Judgement(judgement.own, reasons, judgement.outcome, judgement.platform)
        return judgement

    async def app_recheck(
        self, record: AppRecord, evidence: AppRecheckEvidence, host: HostRecord, now: int
    ) -> Judgement:
        """Evidence for an application's recheck. Raises Refusal where nothing can be judged."""
        expected = self._recheck_report_data(record, app_evidence_hash())
        return await self._app(record, evidence.quote, host, expected, now)

    async def _host(
        self, record: HostRecord, quote: bytes, measurements: MeasurementList, expected: bytes, now: int
    ) -> Judgement:
        enrolled = await self._registry.host(record.subject)
        policies = await self._registry.policies()
        verdict = await self._quote(quote, policies, enrolled.mrenclaves, expected, now)
        tied = _tied(verdict, enrolled.mrenclaves, expected, enrolled.platform)
        reasons = [*verdict.reasons, *_platform_reasons(verdict, enrolled.platform), *_steady(record, verdict)]
        if not tied:  # anybody's: what a list costs to judge is spent on the host's own only
            return Judgement(False, tuple(reasons), _outcome(verdict, policies), _platform(verdict))
        listed = await asyncio.to_thread(_appraise_measurements, record, measurements, policies, now)
        if isinstance(listed, Refusal):
            return Judgement(True, (*reasons, *listed.reasons), _outcome(verdict, policies), _platform(verdict))
        if not listed.admitted:
            reasons += listed.reasons
        return Judgement(
            own=True,
            reasons=tuple(reasons),
            outcome=_outcome(verdict, policies, listed),
            platform=_platform(verdict),
            list_size=measurements.offset + measurements.size,
            list_digest=measurements.whole,
            replay=pack(listed.replay),
            notes={
                "entries": listed.entries,
                "unknown": [entry.model_dump(mode="json") for entry in listed.unknown],
                "pcr10": {str(bank): value for bank, value in listed.pcr10.items()},
            },
        )

    async def _app(self, record: AppRecord, quote: bytes, host: HostRecord, expected: bytes, now: int) -> Judgement:
        enrolled = await self._registry.app(record.subject)
        policies = await self._registry.policies()
        verdict = await self._quote(quote, policies, enrolled.mrenclaves, expected, now)
        placed = any(place.host == record.host for place in enrolled.placements)
        reasons = [*verdict.reasons, *_steady(record, verdict), *(() if placed else (NO_PLACEMENT,))]
        apart: tuple[Reason, ...] = ()
        if verdict.platform is not None:
            apart = same_platform(PlatformIdentity(**host.platform), verdict.platform, policies.sgx)
        tied = _tied(verdict, enrolled.mrenclaves, expected, None) and not apart
        outcome = _outcome(verdict, policies)
        if host.outcome is not None:
            inherited = {"integrity": host.outcome.integrity, "observe_only": host.outcome.observe_only}
            outcome = outcome.model_copy(update=inherited)
        return Judgement(tied, (*reasons, *apart), outcome, _platform(verdict))

    async def _quote(
        self, quote: bytes, policies: InForce, mrenclaves: list[str], expected: bytes, now: int
    ) -> SgxVerdict:
        """Step 2: collateral from the attestation service, then the appraisal."""
        collateral = await self._collateral.for_quote(quote, now)
        return await asyncio.to_thread(
            appraise,
            quote,
            collateral,
            policies.sgx,
            policy_hash=policies.manifest.sgx_policy,
            mrenclaves=mrenclaves,
            report_data=expected,
            root_der=self._root.der,
            simulated=self._root.simulated,
            salt=self._salt,
            at=now,
        )

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
            role, record.session, record.subject, question.nonce, question.chain, record.enclave_key, evidence
        )


def _appraise_measurements(
    record: HostRecord, measurements: MeasurementList, policies: InForce, now: int
) -> ListVerdict | Refusal:
    """The list's verdict, or why it does not go on from what was seen before."""
    seen = b"" if record.question is not None and record.question.whole else record.replay
    before = unpack(Replay, seen) if seen else Replay.start("sha256")
    try:
        data = unpack_measurements(measurements)
        if not _goes_on(record, measurements, data, whole=not seen):
            raise Refusal.because(
                "ima.rewritten",
                "measurement list",
                expected=f"the {record.list_size} bytes seen before, unchanged, and what came after",
                found=f"a list whose first {measurements.offset} bytes are others",
                action="a kernel's list only grows: find out what changed it; a reboot is a new session",
            )
    except Refusal as refusal:
        return refusal
    return appraise_list(data, policies.runtime, policies.host, before=before, quoted=None, at=now)


def _goes_on(record: HostRecord, measurements: MeasurementList, data: bytes, *, whole: bool) -> bool:
    """Whether the list still begins with what was seen of it before."""
    if not whole:
        return measurements.offset == record.list_size and measurements.prefix == record.list_digest
    known = record.list_digest or hashlib.sha256(b"").digest()
    return measurements.offset == 0 and hashlib.sha256(data[: record.list_size]).digest() == known


def _tied(verdict: SgxVerdict, mrenclaves: list[str], expected: bytes, platform: str | None) -> bool:
    """Whether the quote is the enrolled subject's: it verifies, answers this question, names its measurement."""
    verified = verdict.tcb_status is not None and verdict.report_data == expected.hex()
    return (
        verified
        and verdict.mrenclave in mrenclaves
        and verdict.platform is not None
        and platform in (None, verdict.platform.ppid)
    )


def _platform_reasons(verdict: SgxVerdict, enrolled: str) -> list[Reason]:
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


def _steady(record: HostRecord | AppRecord, verdict: SgxVerdict) -> list[Reason]:
    """Measurement and platform may not change within a session."""
    if record.question is None or record.outcome is None:
        return []
    before = {"mrenclave": record.outcome.mrenclave, **record.platform}
    after = {"mrenclave": verdict.mrenclave or "", **_platform(verdict)}
    return [
        Reason(
            code=f"recheck.{name}",
            field=name,
            expected=f"{value}, as when the session began",
            found=after.get(name, "none"),
            action="start a new session",
        )
        for name, value in before.items()
        if after.get(name) != value
    ]


def _platform(verdict: SgxVerdict) -> dict[str, str]:
    return verdict.platform.model_dump() if verdict.platform is not None else {}


def _outcome(verdict: SgxVerdict, policies: InForce, listed: ListVerdict | None = None) -> Outcome:
    return Outcome(
        simulated=verdict.simulated,
        integrity=listed.integrity if listed is not None else "unanchored",
        observe_only=listed is not None and not listed.accepted,
        quote_id=verdict.quote_id or "00" * 32,
        mrenclave=verdict.mrenclave or "00" * 32,
        tcb_status=verdict.tcb_status or "none",
        policy=policies.names,
    )


NO_PLACEMENT = Reason(
    code="enrolment.placement",
    field="host",
    expected="a host that this application may run on",
    found="another",
    action="enrol the application for this host: attestgate enrol app --host",
)
