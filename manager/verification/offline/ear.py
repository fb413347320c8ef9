"""An EAR judged from files, as a relying party would: `attestgate verify ear`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from jwt import PyJWKSet, PyJWTError

from attestgate.manager.verification.ear import read
from attestgate.manager.verification.x509 import utc
from attestgate.schemas.base import Reason, Refusal
from attestgate.schemas.clocks import SKEW_S, stale

MAX_KEYS = 64 * 1024


def read_keys(path: Path) -> dict[str, Any]:
    """A JWK set. Raises Refusal (`cli.argument`) for a file that holds none."""
    try:
        with path.open("rb") as file:
            keys = json.loads(file.read(MAX_KEYS))
    except (OSError, ValueError, RecursionError) as error:
        found = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    else:
        if isinstance(keys, dict):
            return keys
        found = type(keys).__name__
    raise Refusal.because(
        "cli.argument", str(path), expected="a JWK set (JSON)", found=found, action="give the manager's jwks.json"
    )


def read_identities(path: Path) -> set[bytes]:
    """The manager identities in a JWK set: Ed25519 public keys. Raises Refusal (`cli.argument`)."""
    keys = read_keys(path)
    try:
        found = [key.key for key in PyJWKSet.from_dict(keys).keys]
    except (PyJWTError, ValueError, AttributeError, TypeError) as error:
        raise Refusal.because(
            "cli.argument", str(path), expected="a JWK set", found=str(error), action="give the manager's jwks.json"
        ) from None
    return {key.public_bytes_raw() for key in found if isinstance(key, Ed25519PublicKey)}


def judge_ear(token: bytes, keys: Mapping[str, Any], *, at: int, max_age_s: int | None) -> dict[str, Any]:
    """The document to print. A bad token ends in reasons, never in an exception; an old one if `max_age_s` says so."""
    try:
        result = read(token.decode("ascii", errors="replace").strip(), keys)
    except Refusal as refusal:
        return _document(list(refusal.reasons), None)
    reasons = []
    if stale(result.issued_at, at):
        reasons.append(_reason("issued_at", "iat", f"a time until {utc(at)}", utc(result.issued_at)))
    if max_age_s is not None and at - result.issued_at > max_age_s + SKEW_S:
        expected = f"at most {max_age_s} s before {utc(at)}"
        reasons.append(_reason("age", "iat", expected, utc(result.issued_at)))
    for name, submod in result.submods.items():
        if submod.status not in ("affirming", "warning"):
            reasons.append(_reason("status", f"submods.{name}", "affirming or warning", submod.status))
    return _document(reasons, result.claims())


def _document(reasons: list[Reason], claims: dict[str, Any] | None) -> dict[str, Any]:
    shown = [reason.model_dump() for reason in reasons]
    return {"accepted": not reasons, "reasons": shown, "policy": None, "evidence": claims, "notes": []}


def _reason(code: str, field: str, expected: str, found: str) -> Reason:
    action = "do not rely on this verdict; see its reasons, or ask the manager for a newer one"
    return Reason(code=f"ear.{code}", field=field, expected=expected, found=found, action=action)
