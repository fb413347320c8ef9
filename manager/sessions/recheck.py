"""Continuous re-attestation: a fresh challenge within the session, periodically, with jitter.

Trust is never extended without evidence: a lease counts from the newest challenge that was answered well, and expires
if the agent is silent. A challenge unanswered within its window is replaced by a fresh one until the lease ends.
"""

from __future__ import annotations

from attestgate.bus.crypto.channel import Channel
from attestgate.manager.pki.issue import IssuedCertificate
from attestgate.manager.sessions.appraisal import Affirmed, AppraisalResult
from attestgate.manager.sessions.draft import KEPT_S, Context, Draft, R
from attestgate.manager.sessions.enrolled import Enrolled
from attestgate.manager.sessions.record import AppRecord, HostRecord, Question
from attestgate.manager.sessions.states import Input
from attestgate.manager.sessions.step3_judge_host import remember_list
from attestgate.manager.sessions.step4_host_key import judged, next_recheck, trust
from attestgate.manager.sessions.step7_certificate import lease, ready, renew, retire
from attestgate.manager.sessions.termination import terminate
from attestgate.manager.sessions.trusted_host import TrustedHost
from attestgate.schemas.base import Reason, Refusal
from attestgate.schemas.clocks import stale
from attestgate.schemas.enrolment import AppEnrolment
from attestgate.schemas.messages import Recheck


class TooEarly(Exception):
    """A timer that fired early, or a message that has to wait for another: to be delivered again after `delay_s`."""

    def __init__(self, delay_s: int) -> None:
        super().__init__(f"{delay_s} s early")
        self.delay_s = delay_s


def ask_again(record: R, context: Context, policy: dict[str, str]) -> R:
    """The session with a fresh challenge sent. Raises InvalidTransition where there is no trust to renew.

    `policy` names the documents in force: if they differ from the last verdict's, the whole list is requested.
    """
    draft = Draft(record, context)
    draft.move(Input.RECHECK_DUE)
    whole = record.outcome is None or record.outcome.policy != policy
    question = Recheck(
        nonce=context.token(32),
        issued_at=context.now,
        expires_at=context.now + context.timing.evidence_window_s,
        list_offset=record.list_size if isinstance(record, HostRecord) and not whole else 0,
        log_head=context.log_head if isinstance(record, HostRecord) else "",
    )
    draft.say("recheck", question)
    if draft.record.channel is None:
        raise AssertionError(f"no channel in {record.state}")
    draft.set(
        next_recheck=None,
        question=Question(
            nonce=question.nonce,
            issued_at=question.issued_at,
            window_end=question.expires_at,
            chain=draft.record.channel.sent_chain,
            whole=whole,
        ),
    )
    draft.event("rechecking")
    return draft.finish()


def take_host_recheck(record: HostRecord, context: Context, channel: Channel, result: AppraisalResult) -> HostRecord:
    """The record after a recheck's evidence; `channel` is as after opening it. Raises InvalidTransition."""
    draft = Draft(record, context)
    if (affirmed := _settle_answer(draft, channel, result)) is not None:
        remember_list(draft, result)
        trust(draft, affirmed)
        draft.event("rechecked", lease_end=draft.record.lease_end, **judged(result), **draft.ear(result))
    elif result.hold and record.outcome is not None and record.outcome.integrity == "unanchored":
        # Nothing but its own kernel vouches for its list: it could rewrite that, and be trusted in its next session.
        draft.set(held=True)
        draft.hold()
    return draft.finish()


def take_application_recheck(
    record: AppRecord,
    context: Context,
    channel: Channel,
    result: AppraisalResult,
    identity: str,
    host: TrustedHost,
    enrolled: Enrolled[AppEnrolment],
    issued: IssuedCertificate | None,
) -> AppRecord:
    """The application session after a recheck's evidence, opened on `channel`. Raises InvalidTransition.

    `issued` is the next certificate, if it is time to renew.
    """
    draft = Draft(record, context)
    if _settle_answer(draft, channel, result) is None:
        return draft.finish()
    draft.set(next_recheck=next_recheck(context))
    retire(draft)
    if issued is not None:
        renew(draft, issued)
    lease(draft, identity, host, enrolled)
    draft.set(deadline=draft.record.lease_end)
    ready(draft)
    outcome = result.outcome.model_dump(mode="json")
    draft.event("rechecked", lease_end=draft.record.lease_end, outcome=outcome, **draft.ear(result))
    return draft.finish()


def _settle_answer(draft: Draft[R], channel: Channel, result: AppraisalResult) -> Affirmed | None:
    """The answer if it is good: then trust counts from when the challenge was sent. Otherwise the session ends.

    Raises InvalidTransition.
    """
    challenge = draft.record.question
    draft.acknowledge(channel)
    draft.set(outcome=result.outcome, basis=result.basis)
    if result.reasons:
        terminate(draft, Input.EVIDENCE_BAD, "recheck", result.reasons, result)
        return None
    if challenge is None:
        raise AssertionError(f"no challenge under way in {draft.record.state}")
    draft.move(Input.EVIDENCE_GOOD)
    draft.set(issued_at=challenge.issued_at, question=None)
    return result.affirmed


def late_answer(record: R, context: Context, channel: Channel) -> R:
    """The session after an answer to a challenge that is no longer open: acknowledged, with no other effect."""
    draft = Draft(record, context)
    draft.acknowledge(channel)
    draft.event("late-answer")
    return draft.finish()


def unjudged_answer(record: R, context: Context, channel: Channel, refusal: Refusal) -> R:
    """The session after an answer that could not be appraised (no collateral, no policy): acknowledged, no effect.

    A fresh challenge follows when the window is over; without an appraisal the lease expires.
    """
    draft = Draft(record, context)
    draft.acknowledge(channel)
    draft.event("evidence-rejected", step="recheck", reasons=[reason.model_dump() for reason in refusal.reasons])
    return draft.finish()


def on_timer(record: R, context: Context, policy: dict[str, str]) -> R:
    """The session when a timer fires: expired, challenged again, or unchanged (the same record).

    A scheduled message is only a hint, so the bus gains nothing by inventing or losing one: each load compares the
    record's own times with the clock. Raises TooEarly, by however much it is: the bus's clock is ahead of this one, or
    this one was set back.
    """
    if record.over and stale(record.deadline, context.now, context.timing.skew_s, span_s=KEPT_S):
        return _kept_from_now(record, context)
    early_s = record.next_timer - context.now
    if early_s > 0:
        raise TooEarly(early_s)
    if record.over:
        return record
    return expire(record, context) if context.now >= record.deadline else ask_again(record, context, policy)


def judge_anew(record: R, context: Context, policy: dict[str, str], since: int) -> R:
    """The session after the clock was set at Unix second `since`: asked now, unless it was asked since or is about to
    answer. Raises TooEarly where it is neither trusted nor due."""
    if record.resting and not record.over and record.issued_at < since:
        return ask_again(record, context, policy)
    return on_timer(record, context, policy)


def end_stale(record: R, context: Context) -> R:
    """The session whose challenge lies in the future: ended, since it would be trusted until the clock gets there."""
    latest = record.question or record
    reason = Reason(
        code="session.future",
        field=record.state,
        expected=f"a challenge sent by {context.now + context.timing.skew_s}",
        found=f"one sent at {latest.issued_at}",
        action="synchronize the clocks of all workers: one was ahead; the agent starts a new session automatically",
    )
    return _ended(record, context, reason)


def _kept_from_now(record: R, context: Context) -> R:
    """A session that ended by a clock that was ahead: kept as long as any other, not until that time comes."""
    draft = Draft(record, context)
    draft.set(deadline=context.now + KEPT_S)
    return draft.finish()


def expire(record: R, context: Context) -> R:
    """The session past its deadline."""
    reason = Reason(
        code="session.expired",
        field=record.state,
        expected=f"the next message by {record.deadline}",
        found=f"no message until {context.now}",
        action="check that the agent runs and reaches the bus; it starts a new session automatically",
    )
    return _ended(record, context, reason)


def _ended(record: R, context: Context, reason: Reason) -> R:
    draft = Draft(record, context)
    terminate(draft, Input.DEADLINE, record.state.lower(), [reason])
    return draft.finish()
