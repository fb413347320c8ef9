"""dcap_qvl's verification of a quote: its claims as a typed value, its error texts as named reasons."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import dcap_qvl

from manager.verification.collateral import Collateral
from schemas.base import Reason, Refusal, shown
from schemas.sgx import TcbStatus


@dataclass(frozen=True)
class Claims:
    """What dcap_qvl found to hold for a quote. `tcb_date` is the matched level's, in Unix seconds."""

    tcb_status: TcbStatus
    advisories: tuple[str, ...]
    tcb_date: int
    tcb_evaluation_number: int
    qe_evaluation_number: int
    dynamic_platform: bool | None
    cached_keys: bool | None
    smt: bool | None


def verify(quote: bytes, collateral: Collateral, root_der: bytes, at: int) -> Claims:
    """Verify a quote's signatures, chain, revocation and TCB under a root. Raises Refusal with one reason.

    All that it leaves to its caller (which TCB statuses to accept, the enclave, freshness) is judged by its callers.
    """
    try:
        claims = dcap_qvl.QuoteVerifier(root_der).verify_with_policy(
            quote, _native(collateral), at, dcap_qvl.QuotePolicy.claims_only(at)
        )
    except (ValueError, OverflowError) as error:
        raise Refusal(_translated(str(error))) from None
    return _claims(json.loads(claims.to_json()))


@lru_cache(maxsize=64)
def _native(collateral: Collateral) -> dcap_qvl.QuoteCollateralV3:
    return dcap_qvl.QuoteCollateralV3(**collateral.model_dump(exclude={"pck_certificate_chain"}))


_FLAG = {"True": True, "False": False, "Undefined": None}


def _claims(document: dict[str, Any]) -> Claims:
    tcb, platform = document["tcb"], document["platform"]
    pck = platform["pck"]
    return Claims(
        tcb_status=tcb["status"],
        advisories=tuple(tcb["advisory_ids"]),
        tcb_date=platform["tcb_date_tag"],
        tcb_evaluation_number=tcb["eval_data_number"],
        qe_evaluation_number=document["qe"]["tcb_eval_data_number"],
        dynamic_platform=_FLAG[pck["dynamic_platform"]],
        cached_keys=_FLAG[pck["cached_keys"]],
        smt=_FLAG[pck["smt_enabled"]],
    )


_KNOWN = (
    (r"ISV enclave report signature", "quote.signature", "quote.signature", "a signature by the attestation key"),
    (r"qe_report in quote", "quote.qe_report_signature", "quote.qe_report", "a signature by the PCK"),
    (r"QE report hash|QE auth data", "quote.qe_report_data", "quote.qe_report", "the hash of the attestation key"),
    (r"Debug mode", "sgx.debug", "report.attributes.DEBUG", "0"),
    (r"TCB status is invalid: Revoked", "sgx.tcb_revoked", "tcb_status", "a TCB level that is not revoked"),
    (r"No matching TCB level", "sgx.tcb_level", "pck.tcb", "a TCB level that TCB info lists"),
    (r"Fmspc mismatch", "sgx.fmspc", "collateral.tcb_info.fmspc", "TCB info for this platform's FMSPC"),
    (r"QE MRSIGNER", "sgx.qe_identity", "qe_report.mrsigner", "the quoting enclave of the QE identity"),
    (r"QE ISVPRODID", "sgx.qe_identity", "qe_report.isv_prod_id", "the quoting enclave of the QE identity"),
    (r"QE MISCSELECT", "sgx.qe_identity", "qe_report.misc_select", "the quoting enclave of the QE identity"),
    (r"QE ATTRIBUTES", "sgx.qe_identity", "qe_report.attributes", "the quoting enclave of the QE identity"),
    (r"QE ISVSVN|QE Identity", "sgx.qe_identity", "qe_report.isv_svn", "a quoting enclave that QE identity lists"),
    (r"CertRevoked", "sgx.revoked", "certificates", "no revoked certificate"),
    (r"verify certificate chain|PCK cert", "quote.pck_chain.chain", "quote.pck_chain", "a chain to the root"),
    (r"Crl|CRL", "collateral.crl", "collateral", "CRLs by the CAs of this quote"),
    (r"QeIdentity", "collateral.qe_identity.malformed", "collateral.qe_identity", "QE identity, version 2"),
    (r"TcbInfo|TCB [Ii]nfo|TCBInfo|tcb_info", "collateral.tcb_info.malformed", "collateral.tcb_info", "TCB info"),
    (r"root ca", "root.malformed", "root", "a root certificate"),
    (r"", "quote.verification", "quote", "a quote that dcap_qvl verifies"),
)
"""What dcap_qvl's texts (0.7) say, in its order of checks; the last takes whatever is left."""


def _translated(text: str) -> Reason:
    code, field, expected = next(known for pattern, *known in _KNOWN if re.search(pattern, text))
    return Reason(
        code=code,
        field=field,
        expected=expected,
        found=shown(re.sub(r"\s+", " ", text.removeprefix("Verification failed: "))),
        action="do not trust this quote; if the platform is yours, update it and quote again",
    )
