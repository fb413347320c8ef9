"""EAR, the EAT Attestation Result: a verdict in the form that any relying party can read.

Sources: draft-fv-rats-ear (profile `tag:github.com,2023:veraison/ear`), RFC 9711 (EAT), and the trustworthiness
claims of draft-ietf-rats-ar4si, 2.3.4. Claims that begin with `ear.attestgate.` are this project's own.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from attestgate.schemas.base import FirstFault, Reason, Seconds

Profile = Literal["tag:github.com,2023:veraison/ear"]
PROFILE: Profile = "tag:github.com,2023:veraison/ear"
TYPE = "eat+jwt"
"""The JWT's `typ`: media type application/eat+jwt (RFC 9782)."""

Tier = Literal["none", "affirming", "warning", "contraindicated"]
Claim = Annotated[int, Field(ge=-128, le=127)]
ClaimName = Literal[
    "instance-identity",
    "configuration",
    "executables",
    "file-system",
    "hardware",
    "runtime-opaque",
    "storage-opaque",
    "sourced-data",
]

APPROVED = 2
"""Affirming, in every claim: recognized, genuine, approved."""
APPROVED_AT_LOAD = 3
"""executables: what was loaded initially is approved."""
VULNERABLE = 32
"""Warning: genuine, with known vulnerabilities."""
UNRECOGNIZED_CODE = 33
"""executables, warning: something was loaded that is not recognized."""
UNAVAILABLE = 36
"""configuration, warning: security-relevant configuration is not known to the verifier."""
CONTRAINDICATED = 96
UNRECOGNIZED = 97
"""hardware and instance-identity: not recognized, although it should be."""
NOT_AUTHENTIC = 99
"""Cryptographic validation of the evidence has failed."""
STANDS_IN = -33
"""Warning, this project's own: software, or the host kernel's own claim, in place of hardware that would vouch."""


def tier(value: int) -> Tier:
    """The tier that a claim's value belongs to (AR4SI, 2.3.2)."""
    if -1 <= value <= 1:
        return "none"
    if -32 <= value < 32:
        return "affirming"
    return "warning" if -96 <= value < 96 else "contraindicated"


class _Claims(FirstFault):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class VerifierId(_Claims):
    """The software that produced the result, and its developer."""

    developer: str
    build: str


class Submod(_Claims):
    """The appraisal of one attester."""

    status: Tier = Field(alias="ear.status")
    vector: dict[ClaimName, Claim] = Field(alias="ear.trustworthiness-vector", default={})
    policy: str | None = Field(alias="ear.appraisal-policy-id", default=None)
    """`sha256:` and the hash of the policy's bytes."""
    reasons: list[Reason] = Field(alias="ear.attestgate.reasons", default=[])
    evidence: dict[str, Any] = Field(alias="ear.attestgate.evidence", default={})


class Ear(_Claims):
    """A result. `issued_at` is the Unix second of the verdict; `nonce` is what the evidence answered, base64url."""

    profile: Profile = Field(alias="eat_profile", default=PROFILE)
    issued_at: Seconds = Field(alias="iat")
    verifier: VerifierId = Field(alias="ear.verifier-id")
    nonce: str | None = Field(alias="eat_nonce", default=None)
    subject: str | None = Field(alias="sub", default=None)
    """`host/<id>` or `app/<id>`; absent for evidence that anyone could have sent, which names no subject."""
    session: str = Field(alias="ear.attestgate.session")
    submods: dict[str, Submod]

    def claims(self) -> dict[str, Any]:
        """The JWT's claims set."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
