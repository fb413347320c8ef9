"""How a session ends: its agent is told why, its admissions are withdrawn, those who rest on it hear of it."""

from __future__ import annotations

from collections.abc import Sequence

from manager.sessions.draft import Draft, R
from manager.sessions.record import AppRecord, HostRecord
from manager.sessions.states import Input, State
from manager.sessions.work import HostLost
from schemas.admission import Withdrawal
from schemas.base import Reason
from schemas.event_data import SessionWhat
from schemas.messages import Ended, Refused

TOLD: dict[State, SessionWhat] = {
    State.REFUSED: "refused",
    State.UNTRUSTED: "untrusted",
    State.EXPIRED: "expired",
    State.REVOKED: "revoked",
    State.SUPERSEDED: "superseded",
}
"""The event of each end."""


def end(draft: Draft[R], given: Input, step: str, reasons: Sequence[Reason]) -> None:
    """Take the table's step into an end. Raises NoMove where the state does not know this input."""
    hello = draft.record.handshake.hello if draft.record.handshake else None
    state = draft.move(given)
    draft.set(reasons=list(reasons), unheard=[])
    if draft.record.channel is not None:
        draft.say("ended", Ended(state=state, reasons=list(reasons)))
    elif hello is not None:
        notice = Refused(session=draft.record.session, hello=hello, step=step, reasons=list(reasons))
        draft.say_signed("refused", "refused", notice)
    record = draft.record
    if isinstance(record, HostRecord):
        _withdraw_host(draft, record, reasons)
    elif record.serial:
        _withdraw(draft, f"cert.{record.serial}", reasons)
    verdict = {"outcome": record.outcome.model_dump(mode="json")} if record.outcome else {}
    draft.event(TOLD[state], step=step, reasons=[reason.model_dump() for reason in reasons], **verdict)


def _withdraw_host(draft: Draft[R], record: HostRecord, reasons: Sequence[Reason]) -> None:
    """One removal cuts every application of the host; then each of their sessions is told."""
    if record.lease_end is not None:
        _withdraw(draft, f"host.{record.session}", reasons)
    for session in record.apps:
        draft.work("app", session, "host-lost", HostLost(state=record.state, reasons=list(reasons)))


def _withdraw(draft: Draft[R], key: str, reasons: Sequence[Reason]) -> None:
    record = draft.record
    until = (record.lease_end or draft.context.now) + draft.context.timing.skew_s
    if isinstance(record, AppRecord):
        until = max(until, draft.context.now + draft.context.timing.lease_s)
    statement = Withdrawal(
        key=key,
        issued_at=draft.context.now,
        until=until,
        sequence=record.revision + 1,
        reason=reasons[0].code if reasons else "ended",
    )
    draft.post(statement)
