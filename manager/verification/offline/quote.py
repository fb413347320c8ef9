"""Verification from files: what `attestgate verify quote` and `verify ias` judge, without a manager or a network.

The root is the one that the evidence brings, if its fingerprint is known here or trusted by name.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from cryptography.hazmat.primitives.serialization import Encoding

from attestgate.manager.verification.epid.report import appraise_report
from attestgate.manager.verification.offline.describe import describe_quote, describe_report
from attestgate.manager.verification.sgx.appraisal import appraise
from attestgate.manager.verification.sgx.collateral import Collateral
from attestgate.manager.verification.sgx.quote import parse
from attestgate.manager.verification.x509 import certificates, root_certificate
from attestgate.schemas.base import Refusal, parse_json
from attestgate.schemas.sgx import BASELINE, IasVerdict, SgxPolicy, SgxVerdict, policy_name, read_complete_policy

INTEL_SGX_ROOTS = (
    "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3",
    "fc64f8076d79a4fee9d1d473d74c89eb8d8fd55c5abafeabeba7366d20429404",
)
"""SHA-256 of "Intel SGX Root CA" (DER), valid until 2049, and of its first edition, until 2033: DCAP."""
INTEL_IAS_ROOTS = ("7b42e41ec43b91db834a065de4f98a13c44d695570e839cfa8921e584e40735d",)
"""SHA-256 of "Intel SGX Attestation Report Signing CA" (DER): IAS."""


MAX_FILE = 16 * 1024 * 1024
"""Largest file that is read, in bytes: a set of collateral with the largest pieces, in base64."""


@dataclass(frozen=True)
class NamedPolicy:
    """A complete policy with its name, or the defaults without one."""

    policy: SgxPolicy = BASELINE
    name: str | None = None

    @property
    def mrenclaves(self) -> tuple[str, ...] | None:
        """The policy's own list, or None where other pins speak for it."""
        return self.policy.mrenclaves or None


def load_policy(document: bytes, *, source: str) -> NamedPolicy:
    """A policy that decides alone. Raises Refusal (`file.*`, `policy.unpinned`)."""
    return NamedPolicy(read_complete_policy(document, source=source), policy_name(document))


def decoded(data: bytes, source: str) -> bytes:
    """The bytes of a file that is raw or base64: base64 only if all of it is. Raises Refusal (`file.size`)."""
    if len(data) > MAX_FILE:
        action = "give the file that is meant"
        raise Refusal.because("file.size", source, expected=f"at most {MAX_FILE} bytes", found="more", action=action)
    try:
        text = b"".join(data.split())
        return base64.b64decode(text, validate=True) if text else data
    except (binascii.Error, ValueError):
        return data


def verify_quote(quote: bytes, collateral: bytes, policy: NamedPolicy, trusted: Collection[str], at: int) -> SgxVerdict:
    """Judge a DCAP quote with collateral in dcap_qvl's JSON; both raw or base64. `trusted` are fingerprints of roots.

    Platform identities are hashed with an empty salt. Bad evidence gives reasons, never an exception.
    """
    try:
        raw = decoded(quote, "quote")
        root = parse(raw).pck.root_der
        _check_trusted(root, {*INTEL_SGX_ROOTS, *trusted})
        parsed = parse_json(Collateral, decoded(collateral, "collateral"), source="collateral")
    except Refusal as refusal:
        return SgxVerdict(
            accepted=False, reasons=list(refusal.reasons), policy=policy.name, at=at, simulated=False, **_shown(quote)
        )
    return appraise(
        raw,
        parsed,
        policy.policy,
        policy_hash=policy.name,
        mrenclaves=policy.mrenclaves,
        report_data=None,
        root_der=root,
        simulated=_fingerprint(root) not in INTEL_SGX_ROOTS,
        salt=b"",
        at=at,
    )


def verify_ias(
    report: bytes,
    signature: bytes,
    chain: bytes,
    root: bytes,
    policy: NamedPolicy,
    trusted: Collection[str],
    at: int,
) -> IasVerdict:
    """Judge an IAS report, its signature and signing certificates under a root; each raw or base64.

    The certificates may be URL-encoded, as the X-IASReport-Signing-Certificate header has them. `trusted` are
    fingerprints of roots beside Intel's. Bad evidence gives reasons, never an exception.
    """
    try:
        signed = decoded(report, "report"), decoded(signature, "signature")
        chain_pem = unquote_to_bytes(decoded(chain, "certificates"))
        root_der = _root(decoded(root, "root"))
        _check_trusted(root_der, {*INTEL_IAS_ROOTS, *trusted})
    except Refusal as refusal:
        return IasVerdict(accepted=False, reasons=list(refusal.reasons), policy=policy.name, at=at, simulated=False)
    return appraise_report(
        *signed,
        chain_pem,
        policy.policy,
        policy_hash=policy.name,
        mrenclaves=policy.mrenclaves,
        report_data=None,
        nonce=None,
        root_der=root_der,
        simulated=_fingerprint(root_der) not in INTEL_IAS_ROOTS,
        at=at,
    )


def describe_quote_file(data: bytes) -> dict[str, Any] | None:
    """Every field of a quote, raw or base64; None for bytes that are none."""
    try:
        return describe_quote(parse(decoded(data, "quote")))
    except Refusal:
        return None


def describe_report_file(data: bytes) -> dict[str, Any] | None:
    """Every field of an IAS report, raw or base64; None for bytes that are none."""
    try:
        return describe_report(decoded(data, "report"))
    except Refusal:
        return None


def _shown(data: bytes) -> dict[str, Any]:
    try:
        quote = parse(decoded(data, "quote"))
    except Refusal:
        return {}
    return {"quote_id": quote.identity, **quote.report.fields()}


def _root(data: bytes) -> bytes:
    """A root certificate in PEM or DER, as DER."""
    if b"-----BEGIN" not in data:
        return root_certificate(data).public_bytes(Encoding.DER)
    chain = certificates(data, "root")
    if len(chain) != 1:
        raise Refusal.because(
            "root.malformed",
            "root",
            expected="one certificate",
            found=f"{len(chain)} certificates",
            action="give the root alone",
        )
    return chain[0].public_bytes(Encoding.DER)


def _fingerprint(root_der: bytes) -> str:
    return hashlib.sha256(root_der).hexdigest()


def _check_trusted(root_der: bytes, trusted: set[str]) -> None:
    found = _fingerprint(root_der)
    if found not in trusted:
        raise Refusal.because(
            "root.untrusted",
            "root",
            expected=" or ".join(sorted(trusted)),
            found=found,
            action="evidence under this root is not Intel's; trust it by name (--trust) only if you know whose it is",
        )
