"""Step 7: the certificate, its admission at the gateways, and only then `ready`.

The key in the certificate was generated in the application's enclave: the quote covers a hash of the certificate
request. (In the prototype's mode the manager generates it, and everything that names the certificate says so.) Before a
certificate expires, a recheck that was answered well brings the next one; the previous one stays leased for one more
period, in which the application changes over.
"""

from __future__ import annotations

from attestgate.manager.pki.issue import IssuedCertificate
from attestgate.manager.sessions.draft import Context, Draft
from attestgate.manager.sessions.enrolled import Enrolled
from attestgate.manager.sessions.inter_session import AppliedAtGateway
from attestgate.manager.sessions.record import AppRecord, Retiring
from attestgate.manager.sessions.states import Input, State
from attestgate.manager.sessions.step4_host_key import next_recheck
from attestgate.manager.sessions.step5_attest_application import step_deadline
from attestgate.manager.sessions.termination import withdraw
from attestgate.manager.sessions.trusted_host import TrustedHost
from attestgate.schemas import audit
from attestgate.schemas.admission import Lease
from attestgate.schemas.enrolment import AppEnrolment
from attestgate.schemas.event_data import SessionWhat
from attestgate.schemas.messages import Certificate, Ready


def certify(
    record: AppRecord,
    context: Context,
    issued: IssuedCertificate,
    host: TrustedHost,
    enrolled: Enrolled[AppEnrolment],
) -> AppRecord:
    """The session with a certificate: sent to the enclave, leased to the gateways. Raises InvalidTransition."""
    draft = Draft(record, context)
    draft.move(Input.ISSUED)
    _take_certificate(draft, issued)
    draft.set(deadline=step_deadline(draft))
    draft.say("certificate", _message(issued))
    lease(draft, issued.identity, host, enrolled)
    draft.current()
    draft.enter(_decided(issued))
    draft.event("certified", **_shown(issued))
    return draft.finish()


def renewal_due(record: AppRecord, context: Context) -> bool:
    """Whether a recheck should renew the certificate: under a third of its life is left, or too little for a lease."""
    timing = context.timing
    return record.not_after - context.now < max(timing.certificate_s // 3, timing.lease_s + timing.recheck_s)


def renew(draft: Draft[AppRecord], issued: IssuedCertificate) -> None:
    """Send the next certificate; the application uses it once `ready` names it."""
    record = draft.record
    retiring = Retiring(
        serial=record.serial, sha256=record.certificate_hash, issuer=record.issuer, not_after=record.not_after
    )
    _take_certificate(draft, issued)
    draft.set(retiring=retiring, gateways=[])
    draft.say("renew", _message(issued))
    draft.note(_decided(issued, before=retiring.serial))
    draft.event("renewing", **_shown(issued), before_serial=retiring.serial)


def retire(draft: Draft[AppRecord]) -> None:
    """Withdraw the previous certificate, once the application has had a period to change over."""
    record = draft.record
    if record.retiring is not None and record.ready == record.serial:
        withdraw(draft, f"cert.{record.retiring.serial}", "certificate.renewed")
        draft.note(audit.WithdrawnFact(serial=record.retiring.serial))
        draft.set(retiring=None)


def take_applied(record: AppRecord, context: Context, report: AppliedAtGateway) -> AppRecord:
    """The session after a gateway's report: ready once enough gateways admit it. Raises InvalidTransition."""
    draft = Draft(record, context)
    if record.ready == record.serial or report.serial != record.serial or report.gateway in record.gateways:
        return record
    draft.set(gateways=[*record.gateways, report.gateway])
    if len(draft.record.gateways) < context.gateways.reports_before_ready:
        return draft.finish()
    draft.move(Input.APPLIED)
    if record.state is State.CERTIFIED:
        draft.set(deadline=record.lease_end, next_recheck=next_recheck(context))
    draft.set(ready=record.serial)
    ready(draft)
    draft.note(audit.Admitted(serial=record.serial, gateways=draft.record.gateways))
    what: SessionWhat = "renewed" if record.retiring else "admitted"
    draft.event(what, serial=record.serial, gateways=list(draft.record.gateways), lease_end=record.lease_end)
    return draft.finish()


def lease(draft: Draft[AppRecord], identity: str, host: TrustedHost, enrolled: Enrolled[AppEnrolment]) -> None:
    """Lease the certificate to the gateways: no longer than its challenge, its host and the certificate allow."""
    context, record = draft.context, draft.record
    lease_end = min(record.issued_at + context.timing.lease_s, host.lease_end, record.not_after)
    draft.set(lease_end=lease_end)
    if record.outcome is None or record.basis is None:
        raise AssertionError(f"a lease without a verdict in {record.state}")
    statement = Lease(
        gateways=context.gateways.name,
        serial=record.serial,
        certificate=record.certificate_hash,
        identity=identity,
        app=record.subject,
        host=record.host,
        app_session=record.session,
        host_session=host.session,
        issued_at=record.issued_at,
        expires_at=lease_end,
        sequence=record.revision + 1,
        rank=record.rank,
        enrolled=record.basis.enrolled,
        policy=record.basis.policy,
        integrity=host.outcome.integrity,
        simulated=record.outcome.simulated or host.outcome.simulated,
        observe_only=host.outcome.observe_only,
        proxy=record.proxy,
        manager_key=record.manager_key,
        allow=enrolled.subject.allow,
    )
    draft.post(statement)
    before = record.retiring
    if before is not None and before.not_after > record.issued_at:
        ends = min(lease_end, before.not_after)
        draft.post(
            statement.model_copy(update={"serial": before.serial, "certificate": before.sha256, "expires_at": ends})
        )


def ready(draft: Draft[AppRecord]) -> None:
    """Notify the application that it is admitted, with which certificate, and until when."""
    record = draft.record
    lease_end = record.lease_end or draft.context.now
    message = Ready(
        serial=record.ready,
        gateway=draft.context.gateways.address,
        lease_end=lease_end,
        next_recheck=record.next_recheck or lease_end,
    )
    draft.say("ready", message)


def _take_certificate(draft: Draft[AppRecord], issued: IssuedCertificate) -> None:
    draft.set(
        serial=issued.serial,
        certificate=issued.chain,
        certificate_hash=issued.sha256,
        issuer=issued.issuer,
        not_after=issued.not_after,
        manager_key=issued.key is not None,
    )


def _message(issued: IssuedCertificate) -> Certificate:
    return Certificate(chain=issued.chain, serial=issued.serial, not_after=issued.not_after, private_key=issued.key)


def _decided(issued: IssuedCertificate, before: str | None = None) -> audit.IssuedFact:
    return audit.IssuedFact(
        serial=issued.serial,
        certificate=issued.sha256,
        key=issued.key_sha256,
        key_made_by="enclave" if issued.key is None else "manager",
        identity=issued.identity,
        issuer=issued.issuer,
        not_after=issued.not_after,
        before=before,
    )


def _shown(issued: IssuedCertificate) -> dict[str, str | int]:
    return {
        "serial": issued.serial,
        "identity": issued.identity,
        "not_after": issued.not_after,
        "key": "made in the enclave" if issued.key is None else "made by the manager: weaker",
    }
