"""`attestgate verify quote|ias|ear`: appraise SGX evidence and check verdicts, from files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attestgate.cli.evidence import (
    REFUSED,
    JsonCommand,
    JsonGroup,
    fail,
    finish,
    read,
    read_fingerprints,
    read_time,
    show,
)
from attestgate.manager.verification.offline.ear import judge_ear, read_keys
from attestgate.manager.verification.offline.quote import (
    NamedPolicy,
    decoded,
    describe_quote_file,
    describe_report_file,
    load_policy,
    verify_ias,
    verify_quote,
)
from attestgate.manager.verification.x509 import utc
from attestgate.schemas.base import Refusal

app = typer.Typer(
    cls=JsonGroup,
    help="Appraise evidence from files. Exit status: 0 accepted, 1 refused, 2 usage error.",
)

At = Annotated[str | None, typer.Option(metavar="TIME", help="Time of appraisal, RFC 3339; now by default.")]
Policy = Annotated[Path | None, typer.Option(help="SGX policy (JSON) that pins an enclave.")]
Trust = Annotated[
    list[str] | None, typer.Option(metavar="SHA256", help="Fingerprint of a root to trust besides Intel's.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON only; no summary on standard error.")]

NO_POLICY = "no policy was applied: any enclave, by any signer, is accepted"
STALE_IAS = "IAS has been shut down: a report is valid only at the time given"


@app.command("quote", cls=JsonCommand)
def quote_command(
    quote: Annotated[Path, typer.Argument(metavar="QUOTE", help="DCAP quote, version 3; raw or base64.")],
    collateral: Annotated[Path, typer.Option(help="Collateral in dcap_qvl's JSON.")],
    at: At = None,
    policy: Policy = None,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Appraise an SGX quote: signatures, chain to Intel's root, revocation, freshness, TCB, and the policy if given."""
    second: int | None = None
    try:
        second = read_time(at)
        named = _policy(policy)
        evidence = read(quote)
        verdict = verify_quote(evidence, read(collateral), named, read_fingerprints(trust or []), second)
    except Refusal as refusal:
        raise fail(refusal, second, only_json=as_json) from None
    finish(verdict, describe_quote_file(evidence), _notes(named), only_json=as_json)


@app.command("ias", cls=JsonCommand)
def ias_command(
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="Attestation verification report, as signed.")],
    signature: Annotated[Path, typer.Option(help="Its signature; raw or base64.")],
    certificates: Annotated[Path, typer.Option(help="Signing certificates in PEM, leaf first.")],
    root: Annotated[Path, typer.Option(help="Root certificate; Intel's, or one named with --trust.")],
    at: At = None,
    policy: Policy = None,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Appraise an IAS report (EPID): signature, chain to the root, freshness, quote status, and the policy if given."""
    second: int | None = None
    try:
        second = read_time(at)
        named = _policy(policy)
        trusted = read_fingerprints(trust or [])
        evidence = read(report)
        parts = (evidence, read(signature), read(certificates), read(root))
        verdict = verify_ias(*parts, named, trusted, second)
    except Refusal as refusal:
        raise fail(refusal, second, only_json=as_json) from None
    finish(verdict, describe_report_file(evidence), [*_notes(named), STALE_IAS], only_json=as_json)


@app.command("ear", cls=JsonCommand)
def ear_command(
    token: Annotated[Path, typer.Argument(metavar="EAR", help="A signed verdict: the JWT, as in an event's `ear`.")],
    jwks: Annotated[Path, typer.Option(help="The managers' public keys (jwks.json, made by `keys init`).")],
    at: At = None,
    max_age: Annotated[int | None, typer.Option(min=0, help="Refuse a verdict older than this, in seconds.")] = None,
    as_json: Json = False,
) -> None:
    """Verify a verdict's signature and that nothing in it is contraindicated, as a relying party would."""
    second: int | None = None
    try:
        second = read_time(at)
        text, keys = read(token), read_keys(jwks)
    except Refusal as refusal:
        raise fail(refusal, second, only_json=as_json) from None
    verdict = judge_ear(text, keys, at=second, max_age_s=max_age)
    show(verdict | {"at": utc(second)}, only_json=as_json)
    if verdict["reasons"]:
        raise typer.Exit(REFUSED)


def _policy(path: Path | None) -> NamedPolicy:
    return NamedPolicy() if path is None else load_policy(decoded(read(path), str(path)), source=str(path))


def _notes(policy: NamedPolicy) -> list[str]:
    return [] if policy.name else [NO_POLICY]
