"""Step 7: the certificate, its admission at the gateways, and only then `ready`.

The key in the certificate was born in the application's enclave: the request that named it was hashed into the quote.
"""

from __future__ import annotations

from manager.pki.issue import Issued
from manager.sessions.draft import Context, Draft
from manager.sessions.record import AppRecord, HostRecord
from manager.sessions.states import Input
from manager.sessions.step4_host_key import next_recheck
from manager.sessions.step5_attest_application import step_deadline
from manager.sessions.work import Applied
from schemas.admission import Lease
from schemas.messages import Certificate, Ready


def certify(record: AppRecord, context: Context, issued: Issued, host: HostRecord) -> AppRecord:
    """The session once the certificate is made: sent to the enclave, leased to the gateways. Raises NoMove."""
    draft = Draft(record, context)
    draft.move(Input.ISSUED)
    draft.set(
        serial=issued.serial,
        certificate=issued.chain,
        certificate_hash=issued.sha256,
        not_after=issued.not_after,
        deadline=step_deadline(draft),
    )
    certificate = Certificate(chain=issued.chain, serial=issued.serial, not_after=issued.not_after)
    draft.say("certificate", certificate)
    lease(draft, issued.identity, host)
    draft.current()
    draft.event("certified", serial=issued.serial, identity=issued.identity, not_after=issued.not_after)
    return draft.finish()


def take_applied(record: AppRecord, context: Context, report: Applied) -> AppRecord:
    """The session after a gateway's report: ready once enough gateways admit the certificate. Raises NoMove."""
    draft = Draft(record, context)
    if report.serial != record.serial or report.gateway in record.gateways:
        return record
    draft.set(gateways=[*record.gateways, report.gateway])
    if len(draft.record.gateways) < context.gateways.reports_before_ready:
        return draft.finish()
    draft.move(Input.APPLIED)
    draft.set(deadline=record.lease_end, next_recheck=next_recheck(context))
    ready(draft)
    draft.event("admitted", serial=record.serial, gateways=list(draft.record.gateways), lease_end=record.lease_end)
    return draft.finish()


def lease(draft: Draft[AppRecord], identity: str, host: HostRecord) -> None:
    """Lease the certificate to the gateways: no longer than its question, its host and itself allow."""
    context, record = draft.context, draft.record
    lease_end = min(record.issued_at + context.timing.lease_s, host.lease_end or 0, record.not_after)
    draft.set(lease_end=lease_end)
    if record.host_session is None or record.outcome is None or host.outcome is None:
        raise AssertionError(f"a lease without a host session in {record.state}")
    draft.post(
        Lease(
            gateways=context.gateways.name,
            serial=record.serial,
            certificate=record.certificate_hash,
            identity=identity,
            app=record.subject,
            host=record.host,
            app_session=record.session,
            host_session=record.host_session,
            issued_at=record.issued_at,
            expires_at=lease_end,
            sequence=record.revision + 1,
            integrity=host.outcome.integrity,
            simulated=record.outcome.simulated or host.outcome.simulated,
            observe_only=host.outcome.observe_only,
        )
    )


def ready(draft: Draft[AppRecord]) -> None:
    """Tell the application that it may go through, and until when."""
    record = draft.record
    lease_end = record.lease_end or draft.context.now
    message = Ready(
        gateway=draft.context.gateways.address,
        lease_end=lease_end,
        next_recheck=record.next_recheck or lease_end,
    )
    draft.say("ready", message)
