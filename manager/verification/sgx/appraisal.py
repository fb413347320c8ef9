"""Appraisal of an SGX quote: parse, collateral, dcap_qvl, then policy; one verdict with every reason found.

Pure: the outcome is a function of the arguments. Freshness is judged here, with the allowance for skew; dcap_qvl is
asked at the nearest second at which all the collateral is valid, so that stale collateral does not hide what else is
wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from attestgate.manager.verification.sgx import dcap, tcb
from attestgate.manager.verification.sgx.collateral import Collateral, Examined, examine
from attestgate.manager.verification.sgx.policy import (
    judge_collateral,
    judge_platform,
    judge_report,
    judge_tcb,
    undated,
)
from attestgate.manager.verification.sgx.quote import Pck, parse
from attestgate.manager.verification.x509 import Window, fingerprint, name, root_certificate, same_root
from attestgate.schemas.base import Reason, Refusal
from attestgate.schemas.sgx import PlatformIdentity, SgxPolicy, SgxVerdict

LAST_SECOND = 2**40 - 1
"""Times from 0 to this one are judged; dcap_qvl's arithmetic on times is unsigned."""


def appraise(
    quote: bytes,
    collateral: Collateral,
    policy: SgxPolicy,
    *,
    policy_hash: str | None,
    mrenclaves: Sequence[str] | None,
    report_data: bytes | None,
    root_der: bytes,
    simulated: bool,
    salt: bytes,
    at: int,
) -> SgxVerdict:
    """Judge a quote at Unix second `at`. Never raises for evidence, however bad: the verdict then has its reasons.

    `mrenclaves` are the enclaves allowed here (hexadecimal); an empty list allows none, None leaves it to the policy's
    own pins. `report_data` is what the quote must carry (64 bytes), None if that is not to be judged. `root_der` is
    the root that everything must chain to. `salt` is the deployment's, for the platform's identity.
    """
    verdict: dict[str, Any] = {"policy": policy_hash, "at": at, "simulated": simulated}
    if not 0 <= at <= LAST_SECOND:
        return _refused(verdict, [time_out_of_range(at)])
    try:
        parsed = parse(quote)
        verdict |= {"quote_id": parsed.identity, **parsed.report.fields()}
        pck = parsed.pck
    except Refusal as refusal:
        return _refused(verdict, refusal.reasons)
    # Claims so far, and shown as such: nothing rests on them unless `verified` says that the signatures hold.
    platform = _platform(salt, pck, parsed.attestation_key, parsed.header.qe_id)
    verdict |= {"fmspc": pck.fmspc.hex(), "sgx_type": pck.sgx_type, "platform": platform}

    ground = _ground(pck, parsed.qe_report.isv_svn, collateral, root_der)
    reasons = [*ground.reasons]
    if not ground.opens <= at <= ground.closes:
        reasons += [reason for window in ground.windows for reason in window.reasons(at)]
    reasons += judge_report(parsed.report, policy, mrenclaves, report_data)
    reasons += judge_platform(pck, platform, policy)
    reasons += judge_collateral(ground.issued, ground.evaluation_numbers, policy, at)

    # One second less: webpki, within dcap_qvl, takes a CRL to be expired at its nextUpdate.
    opens, closes = ground.opens, ground.closes - 1
    if opens > closes and reasons:
        # At no second is all of it valid: dcap_qvl could only say so again.
        return _refused(verdict, reasons)
    # dcap_qvl allows no skew, so it gets the nearest second at which everything is valid; this cannot make stale
    # collateral pass, since the reason for that is in the list already.
    try:
        verified = dcap.verify(quote, ground.native, root_der, min(max(at, opens), closes) if opens <= closes else at)
    except Refusal as refusal:
        # Where something was found already, dcap_qvl's one reason is most often the same thing in other words.
        if not ground.reasons and refusal.reasons[0].code not in {reason.code for reason in reasons}:
            reasons += refusal.reasons
        return _refused(verdict, reasons)
    verdict |= {
        "tcb_status": verified.tcb_status,
        "tcb_date": ground.tcb_date,
        "advisories": list(verified.advisories),
        "tcb_evaluation_number": min(ground.evaluation_numbers.values(), default=None),
        "collateral_expires": ground.expires,
    }
    if ground.tcb_date is None and not ground.reasons:
        reasons.append(undated())
    reasons += judge_tcb(verified, ground.tcb_date, policy, at)
    return SgxVerdict(accepted=not reasons, reasons=reasons, **verdict)


@dataclass(frozen=True)
class _Ground:
    """What one PCK chain and one set of collateral say together under one root, whatever the time and the quote."""

    reasons: tuple[Reason, ...]
    windows: tuple[Window, ...]
    opens: int
    closes: int
    """All of it is valid from `opens` to `closes`, both included; at no time if opens > closes."""
    expires: int
    """When the first piece of collateral stops being valid."""
    issued: dict[str, int]
    evaluation_numbers: dict[str, int]
    tcb_date: int | None
    """The earlier of the dates of the platform's and the quoting enclave's TCB levels."""
    native: dcap.Native


@lru_cache(maxsize=256)
def _ground(pck: Pck, qe_svn: int, collateral: Collateral, root_der: bytes) -> _Ground:
    # Pure, and neither the time nor the quote's report is an argument: the cache cannot carry one quote's verdict
    # over to another.
    examined = examine(collateral, root_der)
    windows = (*pck.windows, *examined.windows)
    documents = {"tcb_info": examined.tcb_info, "qe_identity": examined.qe_identity}
    return _Ground(
        reasons=(*examined.reasons, *_misfits(pck, examined, root_der)),
        windows=windows,
        opens=max(window.opens for window in windows),
        closes=min(window.closes for window in windows),
        expires=examined.closes(),
        issued=examined.issued(),
        evaluation_numbers={key: piece.evaluation_number for key, piece in documents.items() if piece is not None},
        tcb_date=_tcb_date(pck, qe_svn, examined),
        native=dcap.native(collateral),
    )


def _tcb_date(pck: Pck, qe_svn: int, examined: Examined) -> int | None:
    if examined.tcb_info is None or examined.qe_identity is None:
        return None
    platform = tcb.platform_date(examined.tcb_info.body, pck.cpu_svn, pck.pce_svn)
    qe = tcb.qe_date(examined.qe_identity.body, qe_svn)
    return None if platform is None or qe is None else min(platform, qe)


def _refused(verdict: dict[str, Any], reasons: Sequence[Reason]) -> SgxVerdict:
    return SgxVerdict(accepted=False, reasons=list(reasons), **verdict)


def time_out_of_range(at: int) -> Reason:
    """The reason for a time that is not judged."""
    return Reason(
        code="time.range",
        field="at",
        expected=f"a Unix second from 0 to {LAST_SECOND}",
        found=str(at),
        action="check the clock",
    )


@lru_cache(maxsize=256)
def _platform(salt: bytes, pck: Pck, attestation_key: bytes, qe_id: bytes) -> PlatformIdentity:
    return PlatformIdentity.salted(
        salt, ppid=pck.ppid, pck_leaf=pck.leaf_der, attestation_key=attestation_key, qe_id=qe_id
    )


def _misfits(pck: Pck, examined: Examined, root_der: bytes) -> list[Reason]:
    """Where quote and collateral do not belong together, or the collateral revokes the quote's certificates."""
    reasons: list[Reason] = []

    def misfit(code: str, field: str, expected: str, found: str) -> None:
        action = "fetch the collateral of this platform; a revoked platform is not trusted"
        reasons.append(Reason(code=code, field=field, expected=expected, found=found, action=action))

    leaf, ca, root = pck.chain
    if not examined.windows:
        return reasons  # there is no root to judge by
    ours = root_certificate(root_der)
    if not same_root(root, ours):
        expected, found = f"root {fingerprint(ours)}", f"root {fingerprint(root)}"
        misfit("quote.pck_chain.root", "quote.pck_chain[2]", expected, found)
        return reasons
    crl, root_crl, tcb_info = examined.pck_crl, examined.root_ca_crl, examined.tcb_info
    # Stops the genuine CRL of Intel's other PCK CA, which lists none of this CA's certificates.
    if crl is not None and crl.issuer_key != pck.ca_key:
        misfit("collateral.pck_crl.issuer", "collateral.pck_crl", f"the CRL of {name(ca)}", f"the CRL of {crl.issuer}")
    elif crl is not None and crl.revokes(leaf):
        misfit("sgx.pck_revoked", "quote.pck_chain[0]", "a PCK certificate that is not revoked", "one on the PCK CRL")
    if root_crl is not None and root_crl.revokes(ca):
        misfit("sgx.pck_ca_revoked", "quote.pck_chain[1]", "a PCK CA that is not revoked", "one on the root CA CRL")
    # Stops genuine TCB info of another model, whose levels may ask for less.
    if tcb_info is not None:
        for code, key, value in (("fmspc", "fmspc", pck.fmspc), ("pce_id", "pceId", pck.pce_id)):
            actual = str(tcb_info.body.get(key)).lower()
            if actual != value.hex():
                misfit(f"sgx.{code}", f"collateral.tcb_info.{key}", value.hex(), actual)
    return reasons
