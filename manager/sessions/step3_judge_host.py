"""Step 3: the host's evidence has been judged (manager/attestation/verifier.py); the session takes the answer.

Good evidence leads on to step 4, in the same transition. Evidence of the host's own that falls short ends the
session; evidence that could be anybody's does not.
"""

from __future__ import annotations

from attestgate.bus.crypto.channel import Channel
from attestgate.manager.sessions.draft import Context, Draft, Judgement
from attestgate.manager.sessions.ends import end
from attestgate.manager.sessions.handshake import accept_evidence, count_foreign_evidence
from attestgate.manager.sessions.record import HostRecord
from attestgate.manager.sessions.states import Input
from attestgate.manager.sessions.step4_host_key import grant_host_key, judged, trust
from attestgate.schemas.messages import HostEvidence


def take_host_evidence(
    record: HostRecord, context: Context, data: bytes, evidence: HostEvidence, judgement: Judgement
) -> HostRecord:
    """The record after first evidence. `data` are the message's bytes as they came. Raises NoMove."""
    draft = Draft(record, context)
    if judgement.given is Input.EVIDENCE_FOREIGN:
        count_foreign_evidence(draft, data, judgement)
        return draft.finish()
    draft.set(outcome=judgement.outcome, platform=judgement.platform)
    if judgement.given is Input.EVIDENCE_BAD:
        end(draft, Input.EVIDENCE_BAD, "evidence", judgement.reasons, judgement)
        return draft.finish()
    accept_evidence(draft, data, evidence.enclave_key)
    draft.set(
        list_size=judgement.list_size,
        list_digest=judgement.list_digest,
        replay=judgement.replay,
        tpm=judgement.tpm,
    )
    grant_host_key(draft, judgement)
    return draft.finish()


def take_host_recheck(record: HostRecord, context: Context, channel: Channel, judgement: Judgement) -> HostRecord:
    """The record after a recheck's evidence, opened on `channel` (the state after opening). Raises NoMove."""
    draft = Draft(record, context)
    draft.heard(channel)
    draft.set(outcome=judgement.outcome)
    if judgement.reasons:
        end(draft, Input.EVIDENCE_BAD, "recheck", judgement.reasons, judgement)
        return draft.finish()
    if record.question is None:
        raise AssertionError(f"no question under way in {record.state}")
    issued_at = record.question.issued_at
    draft.move(Input.EVIDENCE_GOOD)
    draft.set(
        issued_at=issued_at,
        question=None,
        list_size=judgement.list_size,
        list_digest=judgement.list_digest,
        replay=judgement.replay,
        tpm=judgement.tpm,
    )
    trust(draft)
    draft.event("rechecked", lease_end=draft.record.lease_end, **judged(judgement), **draft.result(judgement))
    return draft.finish()
