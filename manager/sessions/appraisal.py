"""The attestation result of a piece of evidence (RFC 9334, section 2.3), as the session machines take it."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import JsonValue

from attestgate.manager.sessions.record import Basis
from attestgate.manager.sessions.states import Input
from attestgate.schemas.base import Reason
from attestgate.schemas.host_policy import ListVerdict
from attestgate.schemas.messages import Outcome
from attestgate.schemas.sgx import IasVerdict, PlatformIdentity, SgxVerdict
from attestgate.schemas.tpm import TpmClock


@dataclass(frozen=True)
class Affirmed:
    """Evidence that was found good: it earns K, and trust again. Made by `AppraisalResult.affirmed` alone."""

    basis: Basis
    outcome: Outcome
    result: AppraisalResult


@dataclass(frozen=True)
class AppraisalResult:
    """The result of appraising one piece of evidence.

    `own`: the evidence is bound to the enrolled platform and measurement; only then may it end the session. `verdict`
    and `listed` are the verdicts on the enclave and on the measurement list, from which the result follows.
    """

    own: bool
    reasons: tuple[Reason, ...]
    outcome: Outcome
    platform: PlatformIdentity | None = None
    list_size: int = 0
    list_digest: bytes = b""
    replay: bytes = b""
    tpm: TpmClock | None = None
    notes: dict[str, JsonValue] = field(default_factory=dict)
    verdict: SgxVerdict | IasVerdict | None = None
    listed: ListVerdict | None = None
    hold: bool = False
    """Whether the policy holds an unanchored host that ends by this."""
    basis: Basis | None = None
    """By which enrolment and which policies; None where nothing was appraised."""

    @property
    def affirmed(self) -> Affirmed | None:
        """The evidence as good; None if anything speaks against it."""
        if self.reasons:
            return None
        if not self.own or self.basis is None:
            raise AssertionError("good evidence that nobody appraised")
        return Affirmed(self.basis, self.outcome, self)

    @property
    def given(self) -> Input:
        """The result as an input of the session machine."""
        if not self.reasons:
            return Input.EVIDENCE_GOOD
        return Input.EVIDENCE_BAD if self.own else Input.EVIDENCE_FOREIGN
