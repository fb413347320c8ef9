"""Appraisal of a report by Intel's legacy attestation service (IAS, EPID quotes).

Source: "Attestation Service for Intel SGX: API Documentation", attestation verification report. The service closed
and its signing certificate expired on 2026-11-20, so a recorded report verifies only at a time given explicitly.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, get_args

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from pydantic_core import from_json

from attestgate.manager.verification.epid.structure import quote_header
from attestgate.manager.verification.sgx.appraisal import LAST_SECOND, time_out_of_range
from attestgate.manager.verification.sgx.policy import judge_report, one_of
from attestgate.manager.verification.sgx.quote import HEADER_LENGTH, SIGNED_LENGTH, ReportBody, parse_body
from attestgate.manager.verification.x509 import (
    below,
    certificates,
    check_chain,
    name,
    root_certificate,
    utc,
    windows,
)
from attestgate.schemas.base import Reason, Refusal, shown
from attestgate.schemas.clocks import SKEW_S, stale
from attestgate.schemas.sgx import IasStatus, IasVerdict, PlatformIdentity, SgxPolicy

MAX_REPORT = 64 * 1024
VERSIONS = (3, 4, 5)
_ACTION = "do not trust this report; attest the enclave again"


@dataclass(frozen=True)
class Report:
    """A report, read but not verified. `timestamp` is in Unix seconds, the fraction cut off."""

    id: str
    timestamp: int
    version: int
    status: str
    advisories: tuple[str, ...]
    nonce: str | None
    pseudonym: str | None
    """epidPseudonym: the same for each linkable quote of one platform for one SPID."""
    quote_body: bytes
    epid_group_id: bytes
    linkable: bool
    body: ReportBody

    def fields(self) -> dict[str, Any]:
        """The fields that an `IasVerdict` shows."""
        return {
            "report_id": self.id,
            "report_version": self.version,
            "timestamp": self.timestamp,
            "quote_status": self.status,
            "nonce": self.nonce,
            "epid_group_id": self.epid_group_id.hex(),
            "linkable": self.linkable,
            "quote_id": hashlib.sha256(self.quote_body).hexdigest(),
            "advisories": list(self.advisories),
            **self.body.fields(),
        }


def appraise_report(
    report: bytes,
    signature: bytes,
    chain_pem: bytes,
    policy: SgxPolicy,
    *,
    policy_hash: str | None,
    mrenclaves: Sequence[str] | None,
    report_data: bytes | None,
    nonce: str | None,
    root_der: bytes,
    simulated: bool,
    at: int,
    quote: bytes | None = None,
    salt: bytes | None = None,
) -> IasVerdict:
    """Judge a report at Unix second `at`. Never raises for evidence, however bad: the verdict then has its reasons.

    `report` is the body exactly as signed, `signature` its RSA signature (raw), `chain_pem` the signing certificates,
    leaf first. `nonce` is the one sent with the request, None if it is not to be judged; the rest is as in
    `sgx.appraise`. `quote` is what the report is to be about, None if that is not to be judged; with a `salt` the
    verdict names the platform by its pseudonym. The platform services' manifest (PSE) is not looked at.
    """
    verdict: dict[str, Any] = {"policy": policy_hash, "at": at, "simulated": simulated}
    if not 0 <= at <= LAST_SECOND:
        return IasVerdict(accepted=False, reasons=[time_out_of_range(at)], **verdict)
    reasons: list[Reason] = []
    try:
        reasons += _signature_reasons(report, signature, chain_pem, root_der, at)
    except Refusal as refusal:
        reasons += refusal.reasons
    try:
        parsed = parse_report(report)
    except Refusal as refusal:
        reasons += refusal.reasons
    else:
        verdict |= {"signed": not reasons, **parsed.fields(), "platform": _platform(parsed, salt)}
        reasons += judge_report(parsed.body, policy, mrenclaves, report_data)
        reasons += _judge(parsed, policy, nonce, at)
        # Stops a true report on another quote.
        if quote is not None and quote[:SIGNED_LENGTH] != parsed.quote_body:
            reasons.append(_reason("quote_body", quote[:48], parsed.quote_body[:48], "report.isvEnclaveQuoteBody"))
    return IasVerdict(accepted=not reasons, reasons=reasons, **verdict)


def _platform(report: Report, salt: bytes | None) -> PlatformIdentity | None:
    """Who the platform is. EPID hides that, but for the pseudonym, which therefore takes every part's place."""
    if salt is None or not report.linkable or report.pseudonym is None:
        return None
    name = report.pseudonym.encode()
    return PlatformIdentity.salted(salt, ppid=name, pck_leaf=name, attestation_key=name, qe_id=name)


def _signature_reasons(report: bytes, signature: bytes, chain_pem: bytes, root_der: bytes, at: int) -> list[Reason]:
    root = root_certificate(root_der)
    chain = certificates(chain_pem, "ias.certificates")
    check_chain(chain, root, "ias.certificates")
    links = below(chain, root)
    if not links:
        raise _bad("certificates", "a signing certificate issued by the root", "the root itself")
    _check_signature(chain[0], report, signature)
    return [reason for window in windows([*links, root], "ias") for reason in window.reasons(at)]


def _check_signature(signer: x509.Certificate, report: bytes, signature: bytes) -> None:
    key = signer.public_key()
    if not isinstance(key, RSAPublicKey):
        raise _bad("signature", "an RSA key", type(key).__name__)
    try:
        key.verify(signature, report, PKCS1v15(), SHA256())
    except InvalidSignature:
        raise _bad("signature", f"a signature by {name(signer)}", "a signature that does not verify") from None


def parse_report(raw: bytes) -> Report:
    """Read a report. Raises Refusal (`ias.report`, `quote.*`) that names the field."""
    if len(raw) > MAX_REPORT:
        raise _bad("report", f"at most {MAX_REPORT} bytes", f"{len(raw)} bytes")
    try:
        document = from_json(raw)  # unlike json's, it takes no half of a character for text
    except ValueError as error:
        raise _bad("report", "a JSON document", shown(error)) from None
    if not isinstance(document, dict):
        raise _bad("report", "a JSON object", type(document).__name__)
    advisories = document.get("advisoryIDs", [])
    if not isinstance(advisories, list) or not all(isinstance(one, str) for one in advisories):
        raise _bad("report", "a list of advisories", advisories, field="advisoryIDs")
    version = document.get("version")
    if type(version) is not int or version not in VERSIONS:
        raise _bad("report", f"version {', '.join(map(str, VERSIONS))}", version, field="version")
    nonce, pseudonym = document.get("nonce"), document.get("epidPseudonym")
    for key, value in (("nonce", nonce), ("epidPseudonym", pseudonym)):
        if value is not None and not isinstance(value, str):
            raise _bad("report", "a text", value, field=key)
    quote_body = _quote_body(_text(document, "isvEnclaveQuoteBody"))
    header = quote_header(quote_body)
    return Report(
        id=_text(document, "id"),
        timestamp=_timestamp(_text(document, "timestamp")),
        version=version,
        status=_text(document, "isvEnclaveQuoteStatus"),
        advisories=tuple(advisories),
        nonce=nonce,
        pseudonym=pseudonym,
        quote_body=quote_body,
        epid_group_id=header.group_id,
        linkable=header.linkable,
        body=parse_body(quote_body[HEADER_LENGTH:], "isvEnclaveQuoteBody.report"),
    )


def _text(document: dict[str, Any], key: str) -> str:
    value = document.get(key)
    if not isinstance(value, str):
        raise _bad("report", "a text", value, field=key)
    return value


def _quote_body(text: str) -> bytes:
    try:
        body = base64.b64decode(text, validate=True)
    except ValueError:
        raise _bad("report", "base64", text, field="isvEnclaveQuoteBody") from None
    if len(body) != SIGNED_LENGTH:
        raise _bad("report", f"{SIGNED_LENGTH} bytes", f"{len(body)} bytes", field="isvEnclaveQuoteBody")
    return body


def _timestamp(text: str) -> int:
    # IAS writes UTC without saying so: 2020-05-11T09:21:15.454051
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _bad("report", "a time in UTC, without a zone", text, field="timestamp") from None
    if moment.tzinfo is not None:
        raise _bad("report", "a time in UTC, without a zone", text, field="timestamp")
    return int(moment.replace(tzinfo=UTC).timestamp())


def _judge(report: Report, policy: SgxPolicy, nonce: str | None, at: int) -> Iterator[Reason]:
    if report.status not in policy.ias_statuses:
        known = report.status in get_args(IasStatus)
        action = "update the platform, or accept this in the policy" if known else "this platform is not trusted"
        yield _reason("status", one_of(policy.ias_statuses), report.status, "isvEnclaveQuoteStatus", action)
    for advisory in report.advisories:
        accepted = policy.accepted_advisories
        if advisory in policy.rejected_advisories or (accepted is not None and advisory not in accepted):
            yield _reason("advisory", "only advisories that the policy accepts", advisory, "advisoryIDs")
    if stale(report.timestamp, at):
        yield _reason("timestamp", f"a time until {utc(at)}", utc(report.timestamp), "timestamp")
    elif at - report.timestamp > policy.max_report_age_s + SKEW_S:
        expected = f"at most {policy.max_report_age_s} s before {utc(at)}"
        yield _reason("age", expected, utc(report.timestamp), "timestamp")
    # Stops an earlier report on the same quote, from before the platform's group or key was revoked.
    if nonce is not None and report.nonce != nonce:
        yield _reason("nonce", nonce, report.nonce, "nonce")
    for wanted, given in (
        ("platforms", bool(policy.platforms)),
        ("min_tcb_date", policy.min_tcb_date is not None),
        ("min_tcb_evaluation_number", policy.min_tcb_evaluation_number > 0),
    ):
        if given:
            yield _reason("unjudged", f"evidence that {wanted} can be judged by", "an EPID report", f"policy.{wanted}")


def _reason(code: str, expected: object, found: object, field: str, action: str = _ACTION) -> Reason:
    return Reason(code=f"ias.{code}", field=field, expected=shown(expected), found=shown(found), action=action)


def _bad(code: str, expected: object, found: object, *, field: str | None = None) -> Refusal:
    return Refusal(_reason(code, expected, found, f"report.{field}" if field else f"ias.{code}"))
