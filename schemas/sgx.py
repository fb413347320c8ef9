"""SGX: the appraisal policy, a platform's identity, and the verdict on one quote.

Field names follow Intel's quote and collateral formats ("Intel SGX ECDSA QuoteLibReference DCAP API", appendix A, and
the PCS v4 API); the roles are RFC 9334's.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field, StringConstraints, model_validator

from attestgate.schemas.base import Count, Hex, Hex32, Model, Reason, Refusal, Seconds, parse_json
from attestgate.schemas.binding import canonical

TcbStatus = Literal[
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
]
"""A TCB level's status as in Intel's TCB info; the worse of platform and quoting enclave."""

IasStatus = Literal[
    "OK",
    "SW_HARDENING_NEEDED",
    "CONFIGURATION_NEEDED",
    "CONFIGURATION_AND_SW_HARDENING_NEEDED",
    "GROUP_OUT_OF_DATE",
]
"""The values of an IAS report's isvEnclaveQuoteStatus that a policy may accept; every other one is refused."""

SgxType = Literal["standard", "scalable", "scalable_with_integrity"]
"""SGXType of the PCK certificate: 0, 1, 2. The scalable ones may span packages."""

PlatformPart = Literal["ppid", "pck_leaf", "attestation_key", "qe_id"]
"""The parts of a platform's identity that two quotes may have in common."""

AdvisoryId = Annotated[str, StringConstraints(pattern=r"^INTEL-SA-[0-9]{5}$", max_length=14)]
U16 = Annotated[int, Field(ge=0, le=0xFFFF)]


Pins = Annotated[tuple[Hex32, ...], Field(max_length=4096)]
Advisories = Annotated[tuple[AdvisoryId, ...], Field(max_length=4096)]


class Masked(Model):
    """Bits that must equal those of `value` wherever `mask` is one; both hexadecimal, of equal length."""

    value: Hex
    mask: Hex

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if len(self.value) != len(self.mask):
            raise ValueError("value and mask differ in length")
        if int(self.value or "0", 16) & ~int(self.mask or "0", 16):
            raise ValueError("value has a bit outside the mask")
        return self

    def fits(self, found: bytes) -> bool:
        """Whether `found` has the wanted bits."""
        value, mask = bytes.fromhex(self.value), bytes.fromhex(self.mask)
        return len(found) == len(mask) and all(b & m == v for b, m, v in zip(found, mask, value, strict=True))


class SgxPolicy(Model):
    """An appraisal policy for SGX quotes, named by the SHA-256 of its bytes (`policy_name`).

    Absent pins (None, or an empty list) are not checked; a debug enclave, a revoked TCB and stale collateral are
    refused whatever a policy says. Online the exact MRENCLAVE list is the enrolment record's, so `mrenclaves` may
    stay empty there; offline the policy must pin an enclave itself (`read_complete_policy`).
    """

    version: Literal[1]
    mrenclaves: Pins = ()
    mrsigners: Pins = ()
    isv_prod_id: U16 | None = None
    min_isv_svn: U16 = 0
    config_id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$", max_length=128)] | None = None
    min_config_svn: U16 = 0
    attributes: Masked | None = None
    """16 bytes: ATTRIBUTES.FLAGS and XFRM as in the report (little-endian; SDM vol. 3D, 38.7.1)."""
    misc_select: Masked | None = None
    """4 bytes, as in the report."""

    tcb_statuses: Annotated[tuple[TcbStatus, ...], Field(max_length=7)] = ("UpToDate", "SWHardeningNeeded")
    accepted_advisories: Advisories | None = None
    """If set, every advisory of the TCB level must be in it."""
    rejected_advisories: Advisories = ()
    min_tcb_date: AwareDatetime | None = None
    """The matched TCB level's date (tcbDate) must not be before it."""
    out_of_date_grace_s: Seconds | None = None
    """How long after its TCB level's date an accepted OutOfDate status remains accepted."""
    min_tcb_evaluation_number: Count = 0
    max_collateral_age_s: Seconds | None = None
    """Since the issue date of TCB info, QE identity and both CRLs, in seconds."""

    ias_statuses: Annotated[tuple[IasStatus, ...], Field(max_length=5)] = ("OK", "SW_HARDENING_NEEDED")
    """For evidence by the legacy attestation service (IAS, EPID)."""
    max_report_age_s: Seconds = 30 * 86_400
    """Of an IAS report, since its timestamp: by default the lifetime of Intel's DCAP collateral."""

    sgx_types: Annotated[tuple[SgxType, ...], Field(max_length=3)] = ("standard", "scalable", "scalable_with_integrity")
    accept_dynamic_platform: bool = True
    accept_cached_keys: bool = True
    accept_smt: bool = True
    platforms: Pins = ()
    """Salted PPID hashes (`PlatformIdentity.ppid`); empty: any platform."""
    same_platform: Annotated[tuple[PlatformPart, ...], Field(max_length=4)] = (
        "ppid",
        "pck_leaf",
        "attestation_key",
        "qe_id",
    )
    """What the host's and the application's quotes must have in common to be co-located."""

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        if not self.tcb_statuses:
            raise ValueError("tcb_statuses is empty: nothing would be accepted")
        if "Revoked" in self.tcb_statuses:
            raise ValueError("a revoked TCB cannot be accepted")
        out_of_date = any(status.startswith("OutOfDate") for status in self.tcb_statuses)
        if out_of_date and self.min_tcb_date is None and self.out_of_date_grace_s is None:
            raise ValueError("an OutOfDate status is accepted only with min_tcb_date or out_of_date_grace_s")
        if self.out_of_date_grace_s is not None and not out_of_date:
            raise ValueError("out_of_date_grace_s without an OutOfDate status in tcb_statuses")
        if not {"ppid", "pck_leaf"} & set(self.same_platform):
            raise ValueError("same_platform needs ppid or pck_leaf: nothing else names one machine")
        if self.attributes is not None and len(self.attributes.mask) != 32:
            raise ValueError("attributes are 16 bytes")
        if self.misc_select is not None and len(self.misc_select.mask) != 8:
            raise ValueError("misc_select is 4 bytes")
        return self


BASELINE = SgxPolicy(version=1)
"""The policy where none is given: only the defaults above."""


def policy_name(document: bytes) -> str:
    """The name of a policy document: SHA-256 of its bytes, in hexadecimal."""
    return hashlib.sha256(document).hexdigest()


def read_policy(document: bytes, *, source: str) -> SgxPolicy:
    """A policy from its bytes (JSON). Raises Refusal (`file.*`) for an unknown key or a bad value."""
    return parse_json(SgxPolicy, document, source=source)


def read_complete_policy(document: bytes, *, source: str) -> SgxPolicy:
    """A policy that is used on its own: it must pin an enclave. Raises Refusal (`file.*`, `policy.unpinned`)."""
    policy = read_policy(document, source=source)
    if not policy.mrenclaves and not (policy.mrsigners and policy.isv_prod_id is not None):
        raise Refusal.because(
            "policy.unpinned",
            f"{source}: mrenclaves",
            expected="a list of MRENCLAVE values, or of MRSIGNER values with isv_prod_id",
            found="no enclave pinned",
            action="name the enclaves that this policy accepts",
        )
    return policy


class PlatformIdentity(Model):
    """A platform's identity, as results may keep it: HMAC-SHA256 of each part under the deployment's salt."""

    ppid: Hex32
    pck_leaf: Hex32
    attestation_key: Hex32
    qe_id: Hex32

    @classmethod
    def salted(cls, salt: bytes, *, ppid: bytes, pck_leaf: bytes, attestation_key: bytes, qe_id: bytes) -> Self:
        """From the raw parts: PPID (16 bytes), PCK leaf (DER), attestation public key (64 bytes), QE id (16 bytes)."""

        def part(name: str, value: bytes) -> str:
            return hmac.digest(salt, canonical(f"platform {name}", value), "sha256").hex()

        return cls(
            ppid=part("ppid", ppid),
            pck_leaf=part("pck leaf", pck_leaf),
            attestation_key=part("attestation key", attestation_key),
            qe_id=part("qe id", qe_id),
        )


class Appraisal(Model):
    """The attestation result for one piece of SGX evidence: accepted or not, the reasons, the policy, the claims.

    A field of the evidence is None where the evidence could not be read. Hexadecimal fields are in the byte order of
    the quote.
    """

    accepted: bool
    reasons: list[Reason]
    policy: Hex32 | None
    at: int
    """The Unix second for which the evidence was appraised."""
    simulated: bool
    quote_id: Hex32 | None = None
    """SHA-256 of the quote's first 432 bytes (header and report body): what was signed."""
    mrenclave: Hex32 | None = None
    mrsigner: Hex32 | None = None
    isv_prod_id: int | None = None
    isv_svn: int | None = None
    config_id: Hex | None = None
    config_svn: int | None = None
    debug: bool | None = None
    attributes: Hex | None = None
    misc_select: Hex | None = None
    cpu_svn: Hex | None = None
    report_data: Hex | None = None
    advisories: list[str] | None = None
    platform: PlatformIdentity | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.accepted == bool(self.reasons):
            raise ValueError("a verdict is accepted if and only if it has no reasons against it")
        if self.accepted and None in (self.quote_id, self.mrenclave):
            raise ValueError("an accepted verdict says what was accepted")
        return self


class SgxVerdict(Appraisal):
    """The verdict on a DCAP quote. TCB fields are set once dcap_qvl has verified the quote."""

    fmspc: Hex | None = None
    sgx_type: SgxType | None = None
    tcb_status: TcbStatus | None = None
    tcb_date: int | None = None
    """Unix second."""
    tcb_evaluation_number: int | None = None
    """The lower of TCB info's and QE identity's."""
    collateral_expires: int | None = None
    """The Unix second at which the first piece of the collateral stops being valid."""

    @property
    def verified(self) -> bool:
        """Whether the evidence is genuine, whatever the policy's verdict."""
        return self.tcb_status is not None

    @property
    def status(self) -> str | None:
        """The TCB status."""
        return self.tcb_status

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.accepted and None in (self.platform, self.tcb_status, self.tcb_date):
            raise ValueError("an accepted verdict says which platform and TCB were accepted")
        return self


class IasVerdict(Appraisal):
    """The verdict on an IAS report. EPID names no platform; `platform` derives from a linkable quote's pseudonym."""

    signed: bool = False
    """Its signature and certificates are valid at the time of appraisal."""

    report_id: str | None = None
    report_version: int | None = None
    timestamp: int | None = None
    """When IAS issued the report: Unix second."""
    quote_status: str | None = None
    """isvEnclaveQuoteStatus, as IAS spells it."""
    nonce: str | None = None
    epid_group_id: Hex | None = None
    linkable: bool | None = None

    @property
    def verified(self) -> bool:
        """Whether the evidence is genuine, whatever the policy's verdict."""
        return self.signed

    @property
    def status(self) -> str | None:
        """isvEnclaveQuoteStatus."""
        return self.quote_status
