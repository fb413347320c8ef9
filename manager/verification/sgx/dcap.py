"""dcap_qvl's verification of a quote: its answer as a typed value, its error texts as named reasons."""

from __future__ import annotations

import re
from typing import NamedTuple, TypeAlias, get_args

import dcap_qvl

from attestgate.manager.verification.sgx.collateral import FETCH_AGAIN, Collateral
from attestgate.schemas.base import Reason, Refusal, shown
from attestgate.schemas.sgx import TcbStatus

Native: TypeAlias = dcap_qvl.QuoteCollateralV3


class Verified(NamedTuple):
    """What dcap_qvl found to hold for a quote: the worse of the platform's and the quoting enclave's TCB status."""

    tcb_status: TcbStatus
    advisories: tuple[str, ...]


def native(collateral: Collateral) -> Native:
    """A set of collateral as dcap_qvl takes it."""
    return Native(**collateral.model_dump(exclude={"pck_certificate_chain"}))


def verify(quote: bytes, collateral: Native, root_der: bytes, at: int) -> Verified:
    """Verify a quote's signatures, chain, revocation and TCB under a root. Raises Refusal with one reason.

    All that it leaves to its caller (which TCB statuses to accept, the enclave, freshness) is judged by its callers.
    """
    try:
        report = dcap_qvl.verify_with_root_ca(quote, collateral, root_der, at)
    except (ValueError, OverflowError) as error:
        raise Refusal(_translated(str(error))) from None
    # A status that Intel adds one day is refused until this code knows it.
    if report.status not in _STATUSES:
        raise Refusal(_translated(f"TCB status {report.status}"))
    return Verified(report.status, tuple(report.advisory_ids))


_ACTION = "do not trust this quote; if the platform is yours, update it and quote again"
_STATUSES = frozenset(get_args(TcbStatus))

_KNOWN = (
    (r"ISV enclave report signature", "quote.signature", "quote.signature", "a signature by the attestation key"),
    (r"qe_report in quote", "quote.qe_report_signature", "quote.qe_report", "a signature by the PCK"),
    (r"QE report hash|QE auth data", "quote.qe_report_data", "quote.qe_report", "the hash of the attestation key"),
    (r"QE report validation", "sgx.qe_identity", "qe_report.attributes.DEBUG", "0"),
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
        action=FETCH_AGAIN if code.startswith("collateral.") else _ACTION,
    )
