"""`attestgate verify ima`: a measurement list judged from files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from cli.evidence import REFUSED, WRONG, read, read_time, show, wrong
from manager.verification.chain import utc
from manager.verification.ima_offline import QuoteFiles, judge_files, refused
from manager.verification.runtime_policy import MAX_POLICY, load
from schemas.base import Refusal, parse_json
from schemas.host_policy import HostPolicy, ListVerdict
from schemas.messages import MAX_LIST

NO_POLICY = "no policy was applied: no entry was compared with anything"
NO_GOLDEN = "boot state not judged: the golden PCR values are in the host's enrolment record"


def verify_ima(
    measurements: Annotated[
        Path, typer.Argument(metavar="LIST", help="binary_runtime_measurements (or, if it must be, the ASCII list).")
    ],
    policy: Annotated[Path | None, typer.Option(help="Runtime policy (Keylime's JSON): what is known good.")] = None,
    host_policy: Annotated[Path | None, typer.Option(help="Host policy: what else is accepted.")] = None,
    tpm_quote: Annotated[Path | None, typer.Option(help="TPMS_ATTEST of a quote over PCR 0-10.")] = None,
    tpm_signature: Annotated[Path | None, typer.Option(help="Its TPMT_SIGNATURE, or plain DER.")] = None,
    tpm_pcrs: Annotated[Path | None, typer.Option(help="The PCR values, end to end in selection order.")] = None,
    ak: Annotated[Path | None, typer.Option(help="Attestation key, PEM.")] = None,
    nonce: Annotated[str | None, typer.Option(help="Nonce that was asked for, hexadecimal.")] = None,
    at: Annotated[str | None, typer.Option(metavar="TIME", help="Time of judging, RFC 3339; now by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON only: nothing for a person on standard error.")] = False,
) -> None:
    """Judge an IMA measurement list: template hashes, PCR 10, the TPM quote and the known-good policy if given."""
    second = int(time.time())
    try:
        second = read_time(at)
        quote = _quote(tpm_quote, tpm_signature, tpm_pcrs, ak, nonce)
        known = None if policy is None else load(_read(policy, MAX_POLICY), source=str(policy))
        if host_policy is not None and known is None:
            raise Refusal(wrong("--host-policy", "--policy beside it", "none"))
        host = None if host_policy is None else parse_json(HostPolicy, read(host_policy), source=str(host_policy))
        data = _read(measurements, MAX_LIST)
    except Refusal as refusal:
        _show(refused(list(refusal.reasons), second), ["nothing was judged"], only_json=as_json)
        raise typer.Exit(WRONG) from None
    verdict = judge_files(data, policy=known, host=host, quote=quote, at=second)
    _show(verdict, [NO_GOLDEN] if known else [NO_POLICY, NO_GOLDEN], only_json=as_json)
    if not verdict.accepted:
        raise typer.Exit(REFUSED)


def _quote(
    message: Path | None, signature: Path | None, pcrs: Path | None, ak: Path | None, nonce: str | None
) -> QuoteFiles | None:
    """All parts of a quote, or none of them."""
    if message is None and signature is None and pcrs is None and ak is None and nonce is None:
        return None
    if message is None or signature is None or pcrs is None or ak is None or nonce is None:
        expected = "--tpm-quote, --tpm-signature, --tpm-pcrs, --ak and --nonce together"
        raise Refusal(wrong("TPM quote", expected, "some of them"))
    try:
        asked = bytes.fromhex(nonce)
    except ValueError:
        raise Refusal(wrong("--nonce", "hexadecimal", nonce)) from None
    return QuoteFiles(message=read(message), signature=read(signature), pcrs=read(pcrs), ak=read(ak), nonce=asked)


def _read(path: Path, limit: int) -> bytes:
    """A file; of one longer than its reader takes, just enough for that reader to refuse it."""
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise Refusal(wrong(str(path), "a readable file", getattr(error, "strerror", None) or error)) from None


def _show(verdict: ListVerdict, notes: list[str], *, only_json: bool) -> None:
    show(verdict.document() | {"at": utc(verdict.at), "notes": notes}, only_json=only_json)
