"""Every field of a piece of SGX evidence, as a JSON document for a person to read. Nothing here is verified."""

from __future__ import annotations

import json
from typing import Any

from attestgate.manager.verification.epid.report import parse_report
from attestgate.manager.verification.epid.structure import EpidHeader, quote_header
from attestgate.manager.verification.sgx.quote import Header, Pck, Quote, ReportBody
from attestgate.manager.verification.x509 import fingerprint, name, utc


def describe_quote(quote: Quote) -> dict[str, Any]:
    """All of a quote, in its own order. Raises Refusal (`quote.pck*`) where its PCK chain cannot be read."""
    return {
        "quote_id": quote.identity,
        "size": len(quote.raw),
        "header": _header(quote.header),
        "report": _body(quote.report),
        "signature": quote.signature.hex(),
        "attestation_key": quote.attestation_key.hex(),
        "qe_report": _body(quote.qe_report),
        "qe_report_signature": quote.qe_report_signature.hex(),
        "qe_auth_data": quote.qe_auth_data.hex(),
        "pck": _pck(quote.pck),
    }


def describe_report(raw: bytes) -> dict[str, Any]:
    """All of an IAS report, its quote body taken apart. Raises Refusal (`ias.report`, `quote.*`)."""
    report = parse_report(raw)
    return {
        # fractions stay the text they are: what Python makes of NaN or 1e999 has no form in JSON
        "report": json.loads(raw, parse_float=str, parse_constant=str),
        "quote": {"header": _epid_header(quote_header(report.quote_body)), "report": _body(report.body)},
    }


def _header(header: Header) -> dict[str, Any]:
    return {
        "version": header.version,
        "attestation_key_type": header.attestation_key_type,
        "tee_type": header.tee_type,
        "qe_svn": header.qe_svn,
        "pce_svn": header.pce_svn,
        "qe_vendor_id": header.qe_vendor_id.hex(),
        "user_data": header.user_data.hex(),
    }


def _epid_header(header: EpidHeader) -> dict[str, Any]:
    return {
        "version": header.version,
        "sign_type": header.sign_type,
        "epid_group_id": header.group_id.hex(),
        "qe_svn": header.qe_svn,
        "pce_svn": header.pce_svn,
        "xeid": header.xeid.hex(),
        "basename": header.basename.hex(),
    }


def _body(body: ReportBody) -> dict[str, Any]:
    return body.fields() | {
        "cet_attributes": body.cet_attributes,
        "isv_ext_prod_id": body.isv_ext_prod_id.hex(),
        "isv_family_id": body.isv_family_id.hex(),
    }


def _pck(pck: Pck) -> dict[str, Any]:
    return {
        "ppid": pck.ppid.hex(),
        "fmspc": pck.fmspc.hex(),
        "pce_id": pck.pce_id.hex(),
        "cpu_svn": pck.cpu_svn.hex(),
        "pce_svn": pck.pce_svn,
        "sgx_type": pck.sgx_type,
        "dynamic_platform": pck.dynamic_platform,
        "cached_keys": pck.cached_keys,
        "smt": pck.smt,
        "ca": pck.ca,
        "chain": [
            {
                "subject": name(certificate),
                "serial": f"{certificate.serial_number:x}",
                "not_before": utc(int(certificate.not_valid_before_utc.timestamp())),
                "not_after": utc(int(certificate.not_valid_after_utc.timestamp())),
                "sha256": fingerprint(certificate),
            }
            for certificate in pck.chain
        ],
    }
