"""How a session ends: its agent is notified, its admissions are withdrawn, dependent sessions are informed."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import JsonValue

from attestgate.manager.sessions.appraisal import AppraisalResult
from attestgate.manager.sessions.draft import Context, Draft, R
from attestgate.manager.sessions.inter_session import HostLost, Order, RevokedCertificate
from attestgate.manager.sessions.record import AppRecord, HostRecord, tenure_of
from attestgate.manager.sessions.states import Input, State
from attestgate.schemas import audit
from attestgate.schemas.admission import Withdrawal
from attestgate.schemas.base import Reason
from attestgate.schemas.event_data import SessionWhat
from attestgate.schemas.messages import REFUSED, Ended, Refused

TOLD: dict[State, SessionWhat] = {
    State.REFUSED: "refused",
    State.UNTRUSTED: "untrusted",
    State.EXPIRED: "expired",
    State.REVOKED: "revoked",
    State.SUPERSEDED: "superseded",
}
"""The event of each end."""


def terminate(
    draft: Draft[R], given: Input, step: str, reasons: Sequence[Reason], result: AppraisalResult | None = None
) -> None:
    """Take the table's transition into an end; `result` is the appraisal that caused it, if one did.

    Raises InvalidTransition where the table has no row for the input.
    """
    hello = draft.record.handshake.hello if draft.record.handshake else None
    state = draft.move(given)
    draft.set(reasons=list(reasons), unacknowledged=[])
    if draft.record.channel is not None:
        draft.say("ended", Ended(state=state, reasons=list(reasons)))
    elif hello is not None:
        notice = Refused(session=draft.record.session, hello=hello, step=step, reasons=list(reasons))
        draft.say_signed(REFUSED, notice)
    record = draft.record
    if isinstance(record, HostRecord):
        _withdraw_host(draft, record, reasons)
    else:
        _withdraw_certificates(draft, record, reasons)
    verdict: dict[str, JsonValue] = draft.ear(result) if result else {}
    if record.outcome is not None:
        verdict["outcome"] = record.outcome.model_dump(mode="json")
    if state is State.REFUSED or record.decisions:  # else there was no trust to remove
        draft.note(_ended(record, state, step, reasons))
    draft.event(TOLD[state], step=step, reasons=[reason.model_dump() for reason in reasons], **verdict)


def revoke(record: R, context: Context, order: Order) -> R:
    """The session after an operator's revocation. Raises InvalidTransition if it is over."""
    return _ordered(record, context, Input.REVOKE, "revoke", order.reasons)


def supersede(record: R, context: Context, order: Order) -> R:
    """The session after a newer one of its subject is trusted. Raises InvalidTransition if it is over."""
    return _ordered(record, context, Input.SUPERSEDE, "supersede", order.reasons)


def superseded_by(session: str) -> Reason:
    """Why a session ends that a newer one of its place has replaced."""
    return Reason(
        code="session.superseded",
        field="session",
        expected="the newest session of this subject",
        found=f"superseded by {session}",
        action="nothing, if you restarted the agent; otherwise find out who runs a second agent",
    )


def replace_unfinished(record: R, context: Context, order: Order) -> R:
    """The session after a newer hello of its subject: a handshake is replaced, a session past it stays."""
    if record.over or record.channel is not None:
        return record
    return _ordered(record, context, Input.SUPERSEDE, "replaced", order.reasons)


def lose_host(record: AppRecord, context: Context, lost: HostLost) -> AppRecord:
    """The application session after its host's has ended. Raises InvalidTransition if it is over."""
    return _ordered(record, context, Input.HOST_LOST, "host-lost", lost.reasons)


def _ordered(record: R, context: Context, given: Input, step: str, reasons: list[Reason]) -> R:
    draft = Draft(record, context)
    terminate(draft, given, step, reasons)
    return draft.finish()


def _ended(record: HostRecord | AppRecord, state: State, step: str, reasons: Sequence[Reason]) -> audit.EndedFact:
    """The end as an entry of the decision log."""
    return audit.EndedFact(
        state=state,
        step=step,
        reasons=list(reasons)[: audit.MAX_REASONS],
        quote=record.outcome.quote_id if record.outcome else None,
        certificates=[serial for _, serial in _held(record)],
    )


def _held(record: HostRecord | AppRecord) -> list[tuple[str, str]]:
    """The certificates of a session that are in use: issuer and serial of each."""
    if isinstance(record, HostRecord) or not record.serial:
        return []
    before = record.retiring
    return [(record.issuer, record.serial), *([(before.issuer, before.serial)] if before else [])]


def _withdraw_host(draft: Draft[R], record: HostRecord, reasons: Sequence[Reason]) -> None:
    """One withdrawal cuts off every application of the host; then each of their sessions is informed."""
    if record.lease_end is not None:
        withdraw(draft, f"host.{record.session}", _code(reasons))
    for session in record.apps:
        draft.lost(session)


def _withdraw_certificates(draft: Draft[R], record: AppRecord, reasons: Sequence[Reason]) -> None:
    """Withdraw the session's leases and revoke its certificates, for those who check only the CRL."""
    for issuer, serial in _held(record):
        withdraw(draft, f"cert.{serial}", _code(reasons))
        revoked = RevokedCertificate(issuer=issuer, serial=serial, at=draft.context.now, state=record.state)
        draft.work("app", record.session, "revoked-certificate", revoked)


def withdraw(draft: Draft[R], key: str, reason: str) -> None:
    """Publish a withdrawal for the gateways. `reason` is a reason code."""
    record = draft.record
    until = (record.lease_end or draft.context.now) + draft.context.timing.skew_s
    if isinstance(record, AppRecord):
        until = max(until, draft.context.now + draft.context.timing.lease_s)
    statement = Withdrawal(
        key=key,
        issued_at=draft.context.now,
        until=until,
        sequence=record.revision + 1,
        reason=reason,
        ends=tenure_of(record) if record.over else None,
    )
    draft.post(statement)


def _code(reasons: Sequence[Reason]) -> str:
    return reasons[0].code if reasons else "ended"
