"""`attestgate verify ima`: appraise a measurement list from files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand
from typer.exceptions import TyperException

from attestgate.cli.evidence import REFUSED, WRONG, read, read_time, show, wrong
from attestgate.manager.verification.ima.policy_dsse import read_key
from attestgate.manager.verification.ima.runtime_policy import MAX_POLICY, LoadedPolicy, load
from attestgate.manager.verification.offline.ima import QuoteFiles, judge_files, refused
from attestgate.manager.verification.offline.quote import decoded
from attestgate.manager.verification.x509 import utc
from attestgate.schemas.base import Reason, Refusal, parse_json
from attestgate.schemas.host_policy import HostPolicy, ListVerdict
from attestgate.schemas.messages import MAX_LIST

NO_POLICY = "no policy was applied: no entry was compared with anything, violations were only counted"
NO_GOLDEN = "boot state not appraised: no golden PCR values were given"
NOT_JUDGED = "nothing was appraised"


class ImaCommand(TyperCommand):
    """The command, reporting invalid arguments in the same JSON as everything else."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments. Prints the refusal and raises what typer raises if they are wrong."""
        try:
            return super().parse_args(ctx, args)
        except TyperException as error:
            found = str(error).partition("\n\n")[0]
            reason = wrong("arguments", f"see {ctx.command_path} --help", found)
            _show(refused([reason], int(time.time())), [NOT_JUDGED], only_json=True)
            raise


def verify_ima(
    measurements: Annotated[
        Path, typer.Argument(metavar="LIST", help="binary_runtime_measurements (or, as a last resort, the ASCII list).")
    ],
    policy: Annotated[
        Path | None,
        typer.Option(help="Runtime policy (Keylime's JSON, or a DSSE envelope around it): what is known good."),
    ] = None,
    policy_key: Annotated[
        list[Path] | None,
        typer.Option(help="Key (PEM) that must have signed the runtime policy; repeatable: any of them."),
    ] = None,
    host_policy: Annotated[
        Path | None, typer.Option(help="Host policy, naming that runtime policy: what else is accepted.")
    ] = None,
    tpm_quote: Annotated[Path | None, typer.Option(help="TPMS_ATTEST of a quote over PCR 0-10.")] = None,
    tpm_signature: Annotated[Path | None, typer.Option(help="Its TPMT_SIGNATURE, or plain DER.")] = None,
    tpm_pcrs: Annotated[Path | None, typer.Option(help="The PCR values, concatenated in selection order.")] = None,
    ak: Annotated[Path | None, typer.Option(help="Attestation key, PEM.")] = None,
    nonce: Annotated[str | None, typer.Option(help="The nonce that was requested, hexadecimal.")] = None,
    golden: Annotated[
        list[Path] | None,
        typer.Option(help="PCR values of a known-good boot, concatenated from PCR 0; repeatable: any may match."),
    ] = None,
    at: Annotated[str | None, typer.Option(metavar="TIME", help="Time of appraisal, RFC 3339; now by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only; no summary on standard error.")] = False,
) -> None:
    """Appraise an IMA measurement list: template hashes, PCR 10, the TPM quote, and the known-good policy if given.

    A list is accepted only with a TPM quote: without one it is refused as unanchored, unless --host-policy says
    `accept_unanchored`. With --policy every entry must be known good and violations are refused (--host-policy may
    accept them). Without --policy no entry is compared with anything: the list is accepted if it is consistent and the
    quote vouches for it. With --golden PCR 0-9 must match a known-good boot.

    Exit status: 0 accepted; 1 appraised and refused, malformed evidence included; 2 an unreadable file, invalid
    arguments, or a policy that cannot be used.
    """
    second = int(time.time())
    try:
        second = read_time(at)
        quote = _quote(tpm_quote, tpm_signature, tpm_pcrs, ak, nonce)
        known = _policy(policy, policy_key or ())
        host = _host_policy(host_policy, known)
        boots = [read(path) for path in golden or ()]
        if boots and quote is None:
            raise Refusal(wrong("--golden", "a TPM quote to compare with", "no TPM quote"))
        data = read(measurements, MAX_LIST)
    except Refusal as refusal:
        _show(refused(list(refusal.reasons), second), [NOT_JUDGED], only_json=as_json)
        raise typer.Exit(WRONG) from None
    verdict = judge_files(data, policy=known, host=host, quote=quote, golden=boots, at=second)
    notes = ([] if known else [NO_POLICY]) + ([] if boots else [NO_GOLDEN])
    if len(verdict.unknown) < verdict.unknown_entries:
        notes.append(f"only the first {len(verdict.unknown)} of {verdict.unknown_entries} unknown entries are listed")
    _show(verdict, notes, only_json=as_json)
    if not verdict.accepted:
        raise typer.Exit(REFUSED)


def _policy(path: Path | None, keys: Sequence[Path]) -> LoadedPolicy | None:
    if path is None:
        if keys:
            raise Refusal(wrong("--policy-key", "--policy as well", "no --policy"))
        return None
    raw = read(path, MAX_POLICY)
    authors = [read_key(read(key), source=str(key)) for key in keys]
    try:
        return load(raw, source=str(path), authors=authors)
    except Refusal as refusal:
        if not _is_host_policy(raw):
            raise
        hint = "give it as --host-policy, and the runtime policy that it names as --policy"
        raise Refusal(
            Reason(**wrong("--policy", "a runtime policy", "a host policy").model_dump() | {"action": hint})
        ) from refusal


def _is_host_policy(raw: bytes) -> bool:
    try:
        parse_json(HostPolicy, raw, source="host policy")
    except Refusal:
        return False
    return True


def _host_policy(path: Path | None, known: LoadedPolicy | None) -> HostPolicy | None:
    if path is None:
        return None
    if known is None:
        raise Refusal(wrong("--host-policy", "--policy as well", "no --policy"))
    return parse_json(HostPolicy, decoded(read(path), str(path)), source=str(path))


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


def _show(verdict: ListVerdict, notes: list[str], *, only_json: bool) -> None:
    show(verdict.document() | {"at": utc(verdict.at), "notes": notes}, only_json=only_json)
