"""Step 4: the host's enclave gets K and n1, and proves with an HMAC-SHA512 that it has them. Then it is trusted."""

from __future__ import annotations

from pydantic import JsonValue

from attestgate.manager.sessions.appraisal import Affirmed, AppraisalResult
from attestgate.manager.sessions.draft import Context, Draft
from attestgate.manager.sessions.handshake import grant, open_channel
from attestgate.manager.sessions.key_proof import WRONG_PROOF, KeyProven, prove_host
from attestgate.manager.sessions.record import HostRecord
from attestgate.manager.sessions.states import Input
from attestgate.manager.sessions.termination import superseded_by, terminate
from attestgate.schemas import audit
from attestgate.schemas.admission import HostLease
from attestgate.schemas.base import Secret
from attestgate.schemas.messages import Accepted, HostGrant


def grant_host_key(draft: Draft[HostRecord], affirmed: Affirmed) -> None:
    """Grant K and n1, encrypted to the quoted enclave key and signed."""
    token = draft.context.token
    k, n1, channel = Secret(token(32)), token(32), Secret(token(32))
    draft.move(Input.EVIDENCE_GOOD)
    grant(draft, HostGrant(k=k, n1=n1, channel=channel), channel, n1)
    draft.set(k=k, deadline=_proof_deadline(draft))
    draft.event("granted", **judged(affirmed.result), **draft.ear(affirmed.result))


def take_host_proof(record: HostRecord, context: Context, data: bytes, newer: str | None) -> HostRecord:
    """The record after a key proof; `newer` is a session that is current already and counts for more.

    Raises InvalidTransition, or Refusal for bytes that do not open.
    """
    draft, proven = Draft(record, context), prove_host(record, data)
    if proven is None:
        terminate(draft, Input.PROOF_BAD, "key_proof", [WRONG_PROOF])
        return draft.finish()
    if newer is not None:
        terminate(draft, Input.SUPERSEDE, "key_proof", [superseded_by(newer)])
        return draft.finish()
    draft.move(Input.PROOF_GOOD)
    open_channel(draft, data)
    trust(draft, proven)
    draft.current()
    draft.enter(audit.AcceptedFact(outcome=proven.outcome, measurements=record.list_digest.hex()))
    draft.event("trusted", lease_end=draft.record.lease_end, outcome=proven.outcome.model_dump(mode="json"))
    return draft.finish()


def trust(draft: Draft[HostRecord], because: KeyProven | Affirmed) -> None:
    """Lease to the host, counted from the challenge, at the gateways and at its agent: once it has proven K, and again
    for evidence in a recheck."""
    context, record = draft.context, draft.record
    lease_end = record.issued_at + context.timing.lease_s
    draft.set(lease_end=lease_end, deadline=lease_end, next_recheck=next_recheck(context))
    statement = HostLease(
        host_session=record.session,
        host=record.subject,
        issued_at=record.issued_at,
        expires_at=lease_end,
        sequence=record.revision + 1,
        rank=record.rank,
        enrolled=because.basis.enrolled,
        policy=because.basis.policy,
    )
    draft.post(statement)
    draft.say("accepted", Accepted(lease_end=lease_end, next_recheck=draft.record.next_recheck or lease_end))


def next_recheck(context: Context) -> int:
    """One period from now, minus jitter of up to a fifth of it, to spread a fleet's rechecks."""
    period = context.timing.recheck_s
    return context.now + period - context.token(1)[0] % (period // 5 + 1)


def _proof_deadline(draft: Draft[HostRecord]) -> int:
    timing = draft.context.timing
    return min(draft.context.now + timing.evidence_window_s, draft.record.issued_at + timing.lease_s)


def judged(result: AppraisalResult) -> dict[str, JsonValue]:
    """A host's verdict as event data: the evidence by hash, and what was found in the list."""
    outcome = result.outcome.model_dump(mode="json")
    return {"outcome": outcome, "measurements": result.list_digest.hex(), **result.notes}
