"""Step 3: the host's evidence has been appraised (manager/attestation/verifier.py); the session takes the result.

Good evidence leads on to step 4, in the same transition.
"""

from __future__ import annotations

from attestgate.manager.sessions.appraisal import AppraisalResult
from attestgate.manager.sessions.draft import Context, Draft
from attestgate.manager.sessions.handshake import accept_evidence, settle_evidence
from attestgate.manager.sessions.record import HostRecord
from attestgate.manager.sessions.step4_host_key import grant_host_key
from attestgate.schemas.messages import HostEvidence


def take_host_evidence(
    record: HostRecord, context: Context, data: bytes, evidence: HostEvidence, result: AppraisalResult
) -> HostRecord:
    """The record after first evidence. `data` is the message as received. Raises InvalidTransition."""
    draft = Draft(record, context)
    if (affirmed := settle_evidence(draft, data, result)) is not None:
        accept_evidence(draft, data, evidence.enclave_key)
        remember_list(draft, result)
        grant_host_key(draft, affirmed)
    return draft.finish()


def remember_list(draft: Draft[HostRecord], result: AppraisalResult) -> None:
    """Keep how far the measurement list was appraised, so that a recheck sends only the entries added since."""
    draft.set(list_size=result.list_size, list_digest=result.list_digest, replay=result.replay, tpm=result.tpm)
