"""Continuous re-attestation: a fresh question within the session, on a period with jitter.

Trust is never stretched: a lease counts from the newest question that was answered well, so silence ends it by itself.
A question that got no answer within its window is asked again until the lease is over.
"""

from __future__ import annotations

from attestgate.bus.crypto.channel import Channel
from attestgate.manager.pki.issue import IssuedCertificate
from attestgate.manager.sessions.appraisal import AppraisalResult
from attestgate.manager.sessions.draft import Context, Draft, R
from attestgate.manager.sessions.record import AppRecord, HostRecord, Question
from attestgate.manager.sessions.states import Input
from attestgate.manager.sessions.step3_judge_host import remember_list
from attestgate.manager.sessions.step4_host_key import judged, next_recheck, trust
from attestgate.manager.sessions.step7_certificate import lease, ready, renew, retire
from attestgate.manager.sessions.termination import terminate
from attestgate.schemas.base import Reason, Refusal
from attestgate.schemas.enrolment import AppEnrolment
from attestgate.schemas.messages import Recheck


class TooEarly(Exception):
    """A waking that came before its time: to be heard again after `delay_s` seconds."""

    def __init__(self, delay_s: int) -> None:
        super().__init__(f"{delay_s} s too soon")
        self.delay_s = delay_s


def ask_again(record: R, context: Context, policy: dict[str, str]) -> R:
    """The session with a fresh question under way. Raises InvalidTransition where there is no trust to renew.

    `policy` names the documents in force: if they are others than at the last verdict, the whole list is asked for.
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
    if _settle_answer(draft, channel, result):
        remember_list(draft, result)
        trust(draft)
        draft.event("rechecked", lease_end=draft.record.lease_end, **judged(result), **draft.ear(result))
    return draft.finish()


def take_application_recheck(
    record: AppRecord,
    context: Context,
    channel: Channel,
    result: AppraisalResult,
    identity: str,
    host: HostRecord,
    enrolled: AppEnrolment,
    issued: IssuedCertificate | None,
) -> AppRecord:
    """The application session after a recheck's evidence, opened on `channel`. Raises InvalidTransition.

    `issued` is the next certificate, where it is time for one.
    """
    draft = Draft(record, context)
    if not _settle_answer(draft, channel, result):
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


def _settle_answer(draft: Draft[R], channel: Channel, result: AppraisalResult) -> bool:
    """Whether a challenge was answered well, so that trust goes on from when it was sent. Otherwise the session ends.

    Raises InvalidTransition.
    """
    challenge = draft.record.question
    draft.acknowledge(channel)
    draft.set(outcome=result.outcome)
    if result.reasons:
        terminate(draft, Input.EVIDENCE_BAD, "recheck", result.reasons, result)
        return False
    if challenge is None:
        raise AssertionError(f"no challenge under way in {draft.record.state}")
    draft.move(Input.EVIDENCE_GOOD)
    draft.set(issued_at=challenge.issued_at, question=None)
    return True


def late_answer(record: R, context: Context, channel: Channel) -> R:
    """The session after an answer to a question that is no longer asked: heard, and worth nothing."""
    draft = Draft(record, context)
    draft.acknowledge(channel)
    draft.event("late-answer")
    return draft.finish()


def unjudged_answer(record: R, context: Context, channel: Channel, refusal: Refusal) -> R:
    """The session after an answer that could not be judged now (no collateral, no policy): heard, and worth nothing.

    The question is asked again when its window is over; without a judgement the lease ends by itself.
    """
    draft = Draft(record, context)
    draft.acknowledge(channel)
    draft.event("evidence-rejected", step="recheck", reasons=[reason.model_dump() for reason in refusal.reasons])
    return draft.finish()


def on_timer(record: R, context: Context, policy: dict[str, str]) -> R:
    """What the clock says to a session: over, ask again, or nothing (the record unchanged).

    A scheduled message is a hint only: each load compares the record's own times with the clock. Raises TooEarly where
    the bus's clock is ahead of this one.
    """
    early_s = record.next_timer - context.now
    if 0 < early_s <= context.timing.skew_s:
        raise TooEarly(early_s)
    if record.over or early_s > 0:
        return record
    return expire(record, context) if context.now >= record.deadline else ask_again(record, context, policy)


def expire(record: R, context: Context) -> R:
    """The session past its deadline."""
    draft = Draft(record, context)
    reason = Reason(
        code="session.expired",
        field=record.state,
        expected=f"the next message by {record.deadline}",
        found=f"none at {context.now}",
        action="check that the agent runs and reaches the bus; it enrols again by itself",
    )
    terminate(draft, Input.DEADLINE, record.state.lower(), [reason])
    return draft.finish()
