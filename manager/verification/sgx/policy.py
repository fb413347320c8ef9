"""Judging what a quote and its verified claims say by an SgxPolicy: each check that fails is a reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from attestgate.manager.verification.sgx.dcap import Verified
from attestgate.manager.verification.sgx.quote import Pck, ReportBody
from attestgate.manager.verification.x509 import utc
from attestgate.schemas.base import Reason, shown
from attestgate.schemas.binding import same
from attestgate.schemas.sgx import PlatformIdentity, SgxPolicy


def judge_report(
    report: ReportBody, policy: SgxPolicy, mrenclaves: Sequence[str] | None, report_data: bytes | None
) -> Iterator[Reason]:
    """The enclave: its measurement, signer, versions, attributes, and the 64 bytes that it chose."""
    allowed = policy.mrenclaves if mrenclaves is None else mrenclaves
    if (allowed or mrenclaves is not None) and report.mrenclave.hex() not in allowed:
        yield _reason(
            "mrenclave", one_of(allowed), report.mrenclave, "enrol this measurement, or run the enrolled code"
        )
    if policy.mrsigners and report.mrsigner.hex() not in policy.mrsigners:
        yield _reason("mrsigner", one_of(policy.mrsigners), report.mrsigner, "run an enclave of an allowed signer")
    # Stops another product of the same signer.
    if policy.isv_prod_id is not None and report.isv_prod_id != policy.isv_prod_id:
        yield _reason("isv_prod_id", policy.isv_prod_id, report.isv_prod_id, "run the enclave that the policy names")
    # Stops an old version, rightly signed, whose faults are known.
    if report.isv_svn < policy.min_isv_svn:
        yield _reason("isv_svn", f"at least {policy.min_isv_svn}", report.isv_svn, "update the enclave")
    # CONFIGID is chosen at launch and is no part of MRENCLAVE: stops the enrolled code under another configuration.
    if policy.config_id is not None and report.config_id.hex() != policy.config_id:
        yield _reason(
            "config_id", policy.config_id, report.config_id, "start the enclave with the allowed configuration"
        )
    if report.config_svn < policy.min_config_svn:
        yield _reason("config_svn", f"at least {policy.min_config_svn}", report.config_svn, "update the configuration")
    # A debug enclave has a production enclave's measurement, and the host reads its memory with EDBGRD.
    if report.debug:
        yield _reason("debug", "0", "1", "build the enclave without debug", field="report.attributes.DEBUG")
    for name, wanted, found in (
        ("attributes", policy.attributes, report.attributes),
        ("misc_select", policy.misc_select, report.misc_select),
    ):
        if wanted is not None and not wanted.fits(found):
            yield _reason(
                name, f"{wanted.value} under mask {wanted.mask}", found, "build the enclave as the policy asks"
            )
    # Stops a genuine quote made for another session, key or measurement list: replay and relay.
    if report_data is not None and not same(report.report_data, report_data):
        action = "quote again for this session: this quote is not bound to it"
        yield _reason("report_data", report_data, report.report_data, action)


def judge_platform(pck: Pck, platform: PlatformIdentity, policy: SgxPolicy) -> Iterator[Reason]:
    """The machine: its kind, its configuration, and whether it is one that the policy names."""
    if pck.sgx_type not in policy.sgx_types:
        yield _reason(
            "sgx_type", one_of(policy.sgx_types), pck.sgx_type, "run on an accepted platform", field="pck.sgx_type"
        )
    for name, accept, flag in (
        ("dynamic_platform", policy.accept_dynamic_platform, pck.dynamic_platform),
        ("cached_keys", policy.accept_cached_keys, pck.cached_keys),
        ("smt", policy.accept_smt, pck.smt),
    ):
        # None is what a single-package PCK certificate says: it has no such flag, so it does not rule the thing out.
        if not accept and flag is not False:
            found = "true" if flag else "undefined"
            yield _reason(name, "false", found, "change the platform's configuration", field=f"pck.{name}")
    if policy.platforms and platform.ppid not in policy.platforms:
        yield _reason("platform", one_of(policy.platforms), platform.ppid, "enrol this platform", field="pck.ppid")


def judge_collateral(
    issued: Mapping[str, int], evaluation_numbers: Mapping[str, int], policy: SgxPolicy, at: int
) -> Iterator[Reason]:
    """The age of each piece of collateral since its issue date; the evaluation numbers of those that have one."""
    # Stops a set from before a TCB recovery, which stays valid until its nextUpdate.
    for piece, number in evaluation_numbers.items():
        if number < policy.min_tcb_evaluation_number:
            yield Reason(
                code=f"collateral.{piece}.evaluation_number",
                field=f"collateral.{piece}.tcbEvaluationDataNumber",
                expected=f"at least {policy.min_tcb_evaluation_number}",
                found=str(number),
                action="fetch the collateral again",
            )
    limit = policy.max_collateral_age_s
    for piece, second in issued.items():
        if limit is not None and at - second > limit:
            yield Reason(
                code=f"collateral.{piece}.age",
                field=f"collateral.{piece}",
                expected=f"issued at most {limit} s before {utc(at)}",
                found=f"issued {utc(second)}",
                action="fetch the collateral again",
            )


def judge_tcb(verified: Verified, tcb_date: int | None, policy: SgxPolicy, at: int) -> Iterator[Reason]:
    """What Intel says of the platform's TCB: its status, the date of its level, what advisories concern it."""
    update = "update the platform's firmware and microcode, or accept this in the policy"
    if verified.tcb_status not in policy.tcb_statuses:
        yield _reason("tcb_status", one_of(policy.tcb_statuses), verified.tcb_status, update, field="tcb_status")
    for advisory in verified.advisories:
        accepted = policy.accepted_advisories
        if advisory in policy.rejected_advisories or (accepted is not None and advisory not in accepted):
            yield _reason("advisory", "only advisories that the policy accepts", advisory, update, field="advisories")
    if tcb_date is None:
        return  # refused already: by the document that could not be read, or by `undated`
    if verified.tcb_status.startswith("OutOfDate") and policy.out_of_date_grace_s is not None:
        oldest = at - policy.out_of_date_grace_s
        if tcb_date < oldest:
            yield _reason("tcb_grace", f"a date from {utc(oldest)} on", utc(tcb_date), update, field="tcb_date")
    earliest = policy.min_tcb_date
    if earliest is not None and tcb_date < earliest.timestamp():
        yield _reason("tcb_date", f"a date from {earliest.isoformat()} on", utc(tcb_date), update, field="tcb_date")


def undated() -> Reason:
    """The reason for a TCB level without a date, in a document that is in order otherwise."""
    return _reason(
        "tcb_date",
        "a TCB level whose date can be read",
        "no such level",
        "fetch the collateral again",
        field="tcb_date",
    )


def one_of(values: Sequence[str]) -> str:
    """A list of allowed values, for a reason."""
    return " or ".join(values) if values else "none: nothing is allowed"


def _reason(code: str, expected: object, found: object, action: str, *, field: str | None = None) -> Reason:
    return Reason(
        code=f"sgx.{code}",
        field=field or f"report.{code}",
        expected=shown(expected),
        found=shown(found),
        action=action,
    )
