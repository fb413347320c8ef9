"""Verdicts as EARs: from reasons and evidence to a trustworthiness vector, signed by the manager's identity.

A relying party needs the manager's public key (`jwks`) and any JWT library; it needs nothing else of this project.
Every verdict has one, refusals included. Signing is Ed25519 (RFC 8037), so one verdict gives one token, byte by byte.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from importlib.metadata import version
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from attestgate.schemas.base import Reason, Refusal, first_message, where
from attestgate.schemas.ear import (
    APPROVED,
    APPROVED_AT_LOAD,
    CONTRAINDICATED,
    NOT_AUTHENTIC,
    STANDS_IN,
    TYPE,
    UNAVAILABLE,
    UNRECOGNIZED,
    UNRECOGNIZED_CODE,
    VULNERABLE,
    ClaimName,
    Ear,
    Submod,
    Tier,
    VerifierId,
    tier,
)
from attestgate.schemas.host_policy import ListVerdict
from attestgate.schemas.sgx import IasVerdict, SgxVerdict

ALGORITHM = "EdDSA"
SGX, HOST_INTEGRITY = "sgx", "host-integrity"
VERIFIER = VerifierId(developer="attestgate", build=f"attestgate {version('attestgate')}")
Vector = dict[ClaimName, int]

_TIERS: tuple[Tier, ...] = ("none", "affirming", "warning", "contraindicated")
_HOST_CODES = ("ima.", "tpm.", "evidence.", "host.tpm")
_MEANS: tuple[tuple[str, Vector], ...] = (
    ("sgx.debug", {"configuration": CONTRAINDICATED, "runtime-opaque": CONTRAINDICATED}),
    ("sgx.mrenclave", {"executables": UNRECOGNIZED_CODE}),
    ("sgx.mrsigner", {"executables": UNRECOGNIZED_CODE}),
    ("sgx.isv_prod_id", {"executables": UNRECOGNIZED_CODE}),
    ("sgx.isv_svn", {"executables": VULNERABLE}),
    ("sgx.config_svn", {"configuration": VULNERABLE}),
    ("sgx.config_id", {"configuration": CONTRAINDICATED}),
    ("sgx.attributes", {"configuration": CONTRAINDICATED}),
    ("sgx.misc_select", {"configuration": CONTRAINDICATED}),
    ("sgx.smt", {"configuration": CONTRAINDICATED}),
    ("sgx.cached_keys", {"configuration": CONTRAINDICATED}),
    ("sgx.dynamic_platform", {"configuration": CONTRAINDICATED}),
    ("sgx.report_data", {"instance-identity": NOT_AUTHENTIC}),
    ("sgx.platform", {"instance-identity": UNRECOGNIZED}),
    ("sgx.", {"hardware": CONTRAINDICATED}),
    ("quote.pck_chain.root", {"hardware": UNRECOGNIZED}),
    ("root.", {"hardware": UNRECOGNIZED}),
    ("quote.", {"hardware": NOT_AUTHENTIC}),
    ("collateral.", {"hardware": 0}),
    ("ias.status", {"hardware": CONTRAINDICATED}),
    ("ias.advisory", {"hardware": CONTRAINDICATED}),
    ("ias.nonce", {"instance-identity": NOT_AUTHENTIC}),
    ("ias.", {"hardware": NOT_AUTHENTIC}),
    ("recheck.mrenclave", {"executables": UNRECOGNIZED_CODE}),
    ("recheck.", {"instance-identity": UNRECOGNIZED}),
    ("colocation.", {"instance-identity": UNRECOGNIZED}),
    ("host.", {"instance-identity": UNRECOGNIZED}),
    ("enrolment.", {"instance-identity": UNRECOGNIZED}),
    ("ima.unknown", {"executables": UNRECOGNIZED_CODE}),
    ("ima.violation", {"executables": UNRECOGNIZED_CODE}),
    ("ima.unanchored", {"executables": STANDS_IN}),
    ("tpm.boot_state", {"configuration": CONTRAINDICATED}),
    ("tpm.boot_not_judged", {"configuration": UNAVAILABLE}),
    ("tpm.golden", {"configuration": UNAVAILABLE}),
    ("tpm.clock", {"instance-identity": UNRECOGNIZED}),
    ("tpm.reset", {"instance-identity": UNRECOGNIZED}),
    ("ima.", {"executables": NOT_AUTHENTIC}),
    ("tpm.", {"executables": NOT_AUTHENTIC}),
    ("evidence.", {"executables": NOT_AUTHENTIC}),
    ("", {"configuration": CONTRAINDICATED}),
)
"""What a reason says about an attester, by its code: the first that fits. Stale collateral says nothing of hardware."""


def appraised(
    verdict: SgxVerdict | IasVerdict, listed: ListVerdict | None, reasons: Sequence[Reason]
) -> dict[str, Submod]:
    """The appraisals behind one verdict: the enclave's, and the host's list where one was judged.

    `reasons` are all findings against the evidence, those of the two verdicts among them.
    """
    of_host = [reason for reason in reasons if reason.code.startswith(_HOST_CODES)]
    of_sgx = [reason for reason in reasons if not reason.code.startswith(_HOST_CODES)]
    evidence = verdict.model_dump(mode="json", exclude={"accepted", "reasons", "policy"}, exclude_none=True)
    submods = {SGX: _submod(_enclave(verdict), of_sgx, verdict.policy, evidence)}
    if listed is not None:
        shown = {key: value for key, value in listed.document().items() if key not in ("accepted", "reasons", "policy")}
        submods[HOST_INTEGRITY] = _submod(_list(listed), of_host, listed.policy, shown)
    elif of_host:
        submods[HOST_INTEGRITY] = _submod({}, of_host, None, {})
    return submods


def _enclave(verdict: SgxVerdict | IasVerdict) -> Vector:
    """What holds of an enclave unless a reason says otherwise."""
    status = verdict.status
    if status is None or not verdict.verified:
        return {}
    vector: Vector = {
        "hardware": APPROVED if status in ("UpToDate", "OK") else VULNERABLE,
        "configuration": VULNERABLE if "CONFIGURATION" in status.upper() else APPROVED,
        "executables": APPROVED_AT_LOAD,
        "instance-identity": APPROVED,
        "runtime-opaque": APPROVED,
    }
    return vector | {"hardware": STANDS_IN, "runtime-opaque": STANDS_IN} if verdict.simulated else vector


def _list(listed: ListVerdict) -> Vector:
    boot: Vector = {"configuration": APPROVED if listed.boot_state == "golden" else UNAVAILABLE}
    if listed.unknown_entries:
        return {"executables": UNRECOGNIZED_CODE, **boot}
    return {"executables": APPROVED if listed.integrity == "anchored" else STANDS_IN, **boot}


def _submod(vector: Vector, reasons: list[Reason], policy: str | None, evidence: dict[str, Any]) -> Submod:
    for reason in reasons:
        for claim, value in next(means for prefix, means in _MEANS if reason.code.startswith(prefix)).items():
            if value == 0:
                vector = {name: kept for name, kept in vector.items() if name != claim}
            elif _weight(value) >= _weight(vector.get(claim, 0)):
                vector = vector | {claim: value}
    worst = max((tier(value) for value in vector.values()), key=_TIERS.index, default="none")
    return Submod(
        status="contraindicated" if reasons else worst,
        vector=vector,
        policy=None if policy is None else f"sha256:{policy}",
        reasons=reasons,
        evidence=evidence,
    )


def _weight(value: int) -> tuple[int, int]:
    return _TIERS.index(tier(value)), value


def sign(
    identity: Ed25519PrivateKey, *, subject: str | None, session: str, nonce: bytes, at: int, submods: dict[str, Submod]
) -> str:
    """The signed result (a JWT in compact form). `nonce` is the one that the evidence answered.

    `subject` is None for evidence that is not tied to the subject that it was sent for.
    """
    result = Ear(
        issued_at=at,
        verifier=VERIFIER,
        nonce=_base64url(nonce),
        subject=subject,
        session=session,
        submods=submods,
    )
    header = {"typ": TYPE, "kid": _thumbprint(identity.public_key().public_bytes_raw())}
    return jwt.encode(result.claims(), identity, algorithm=ALGORITHM, headers=header)


def jwks(identities: Iterable[bytes]) -> dict[str, Any]:
    """Manager identities (32-byte Ed25519 public keys) as a JWK set (RFC 7517, RFC 8037), for relying parties."""
    keys = [
        {**_members(one), "kid": _thumbprint(one), "alg": ALGORITHM, "use": "sig", "key_ops": ["verify"]}
        for one in identities
    ]
    return {"keys": keys}


def read(token: str, keys: Mapping[str, Any]) -> Ear:
    """The result in a token signed by one of these keys (a JWK set). Raises Refusal (`ear.*`).

    How old a result may be is for the relying party to decide: see `issued_at`.
    """
    try:
        known = {key.key_id: key for key in jwt.PyJWKSet.from_dict(dict(keys)).keys}
        # The unverified header only picks one of the given keys; `algorithms` stops `none`, and a public key taken for
        # an HMAC secret.
        key = known[jwt.get_unverified_header(token).get("kid")]
        claims = jwt.decode(token, key, algorithms=[ALGORITHM], options={"verify_iat": False, "verify_aud": False})
    except KeyError:
        raise _bad("key", "a result signed by a key of the set", "a result signed by another key") from None
    except (jwt.PyJWTError, ValueError, AttributeError, RecursionError) as error:
        raise _bad("signature", "a JWT signed by a key of the set", f"{type(error).__name__}: {error}") from None
    return _result(claims)


def look(token: str) -> Ear:
    """The result in a token, its signature not verified: for display only. Raises Refusal (`ear.*`)."""
    try:
        return _result(jwt.decode(token, options={"verify_signature": False}))
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise _bad("form", "a JWT", f"{type(error).__name__}: {error}") from None


def _result(claims: dict[str, Any]) -> Ear:
    try:
        return Ear.model_validate(claims)
    except ValidationError as error:
        raise _bad("claims", "the claims of an EAR", f"{where(error)}: {first_message(error)}") from None


def _bad(code: str, expected: str, found: str) -> Refusal:
    return Refusal.because(
        f"ear.{code}", "ear", expected=expected, found=found, action="take the result from the manager's own events"
    )


def _members(identity: bytes) -> dict[str, str]:
    return {"crv": "Ed25519", "kty": "OKP", "x": _base64url(identity)}


def _thumbprint(identity: bytes) -> str:
    """A key's name: its JWK thumbprint (RFC 7638)."""
    canonical = json.dumps(_members(identity), separators=(",", ":"), sort_keys=True)
    return _base64url(sha256(canonical.encode()).digest())


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
