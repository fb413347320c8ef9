"""Step 4: the host's enclave gets K and n1, and proves with an HMAC-SHA512 that it has them. Then it is trusted."""

from __future__ import annotations

from pydantic import JsonValue

from attestgate.manager.sessions.appraisal import AppraisalResult
from attestgate.manager.sessions.draft import Context, Draft
from attestgate.manager.sessions.handshake import grant, open_channel, open_proof
from attestgate.manager.sessions.record import HostRecord
from attestgate.manager.sessions.states import Input
from attestgate.manager.sessions.termination import superseded_by, terminate
from attestgate.schemas import audit
from attestgate.schemas.admission import HostLease
from attestgate.schemas.base import Reason, Secret
from attestgate.schemas.binding import host_proof, same
from attestgate.schemas.messages import Accepted, HostGrant


def grant_host_key(draft: Draft[HostRecord], result: AppraisalResult) -> None:
    """Grant K and n1, encrypted to the quoted enclave key and signed."""
    token = draft.context.token
    k, n1, channel = Secret(token(32)), token(32), Secret(token(32))
    draft.move(Input.EVIDENCE_GOOD)
    grant(draft, HostGrant(k=k, n1=n1, channel=channel), channel, n1)
    draft.set(k=k, deadline=_proof_deadline(draft))
    draft.event("granted", **judged(result), **draft.ear(result))


def take_host_proof(record: HostRecord, context: Context, data: bytes, newer: str | None) -> HostRecord:
    """The record after a key proof; `newer` is a session that is current already and counts for more.

    Raises InvalidTransition, or Refusal for bytes that do not open.
    """
    draft = Draft(record, context)
    handshake, k = record.handshake, record.k
    if handshake is None or k is None or handshake.challenge_nonce is None:
        draft.move(Input.PROOF_GOOD)  # raises InvalidTransition: there is nothing to prove in this state
        raise AssertionError(f"no grant in {record.state}")
    proof = open_proof(handshake, "host", record.session, data)
    if not same(proof, host_proof(k, handshake.challenge_nonce, handshake.transcript)):
        terminate(draft, Input.PROOF_BAD, "key_proof", [WRONG_PROOF])
        return draft.finish()
    if newer is not None:
        terminate(draft, Input.SUPERSEDE, "key_proof", [superseded_by(newer)])
        return draft.finish()
    draft.move(Input.PROOF_GOOD)
    open_channel(draft, data)
    trust(draft)
    draft.current()
    if record.outcome is None:
        raise AssertionError(f"trust without a verdict in {record.state}")
    draft.enter(audit.AcceptedFact(outcome=record.outcome, measurements=record.list_digest.hex()))
    draft.event("trusted", lease_end=draft.record.lease_end, outcome=record.outcome.model_dump(mode="json"))
    return draft.finish()


def trust(draft: Draft[HostRecord]) -> None:
    """Renew the host's lease, counted from the challenge, at the gateways and at its agent."""
    context, record = draft.context, draft.record
    lease_end = record.issued_at + context.timing.lease_s
    draft.set(lease_end=lease_end, deadline=lease_end, next_recheck=next_recheck(context))
    if record.basis is None:
        raise AssertionError(f"trust without a verdict in {record.state}")
    statement = HostLease(
        host_session=record.session,
        host=record.subject,
        issued_at=record.issued_at,
        expires_at=lease_end,
        sequence=record.revision + 1,
        rank=record.rank,
        enrolled=record.basis.enrolled,
        policy=record.basis.policy,
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


WRONG_PROOF = Reason(
    code="proof.hmac",
    field="proof",
    expected="HMAC-SHA512 with this session's key over its nonce",
    found="another value",
    action="the sender does not have the key: it is not the attested enclave, or not on that machine",
)
