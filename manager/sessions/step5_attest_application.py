"""Step 5: the second attestation, with the application's enclave.

hello -> challenge -> evidence (quote and certificate request). Once the quote matches the application's enrolment,
the host is trusted and both quotes name one platform, the host's session is asked to deliver the key (step 6).
"""

from __future__ import annotations

from pydantic import JsonValue

from attestgate.bus.crypto.envelope import SuiteName
from attestgate.manager.sessions.appraisal import AppraisalResult
from attestgate.manager.sessions.draft import Context, Draft
from attestgate.manager.sessions.handshake import accept_evidence, open_session, settle_evidence
from attestgate.manager.sessions.inter_session import Deliver
from attestgate.manager.sessions.record import AppRecord
from attestgate.manager.sessions.states import Input
from attestgate.manager.sessions.trusted_host import TrustedHost
from attestgate.schemas.messages import AppEvidence, AppHello


def challenge_application(
    session: str, hello: AppHello, hello_bytes: bytes, context: Context, suite: SuiteName
) -> AppRecord:
    """The record of a new application session, its challenge in the outbox."""
    shown: dict[str, JsonValue] = {"host": hello.host, "agent_version": hello.agent_version}
    return open_session(AppRecord, session, hello.app, hello.host, hello_bytes, context, suite, ["sgx"], shown)


def take_application_evidence(
    record: AppRecord,
    context: Context,
    data: bytes,
    evidence: AppEvidence,
    result: AppraisalResult,
    *,
    host: TrustedHost | None,
    volume: int,
) -> AppRecord:
    """The record after first evidence. A good result comes with the trusted `host` that it depends on."""
    draft = Draft(record, context)
    if settle_evidence(draft, data, result) is None:
        return draft.finish()
    if host is None:
        raise AssertionError("good evidence without a trusted host")
    draft.move(Input.EVIDENCE_GOOD)
    t2 = accept_evidence(draft, data, evidence.enclave_key)
    draft.set(
        certificate_request=evidence.certificate_request,
        proxy=evidence.proxy,
        host_session=host.session,
        deadline=step_deadline(draft),
    )
    request = Deliver(
        app=record.subject,
        app_session=record.session,
        enclave_key=evidence.enclave_key,
        suite=record.suite,
        t2=t2,
        volume=volume,
    )
    draft.work("host", host.session, "deliver", request)
    outcome = result.outcome.model_dump(mode="json")
    draft.event("waiting-for-key", outcome=outcome, host_session=host.session, **draft.ear(result))
    return draft.finish()


def step_deadline(draft: Draft[AppRecord]) -> int:
    """The deadline of the next step: one window from now, but no later than a lease from the challenge would end."""
    timing = draft.context.timing
    return min(draft.context.now + timing.evidence_window_s, draft.record.issued_at + timing.lease_s)
