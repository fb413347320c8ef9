"""`attestgate inspect quote`: what a quote says, judged by nobody."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.evidence import REFUSED, JsonCommand, fail, read, show
from manager.verification.chain import fingerprint, name, utc
from manager.verification.offline import decoded
from manager.verification.quote import Quote, parse
from schemas.base import Refusal

app = typer.Typer(no_args_is_help=True, help="Show what evidence says, without judging it.")

NOT_JUDGED = "nothing was verified: anybody can write these bytes"


@app.callback()
def group() -> None:
    """Show what evidence says, without judging it."""


@app.command("quote", cls=JsonCommand)
def quote_command(
    quote: Annotated[Path, typer.Argument(metavar="QUOTE", help="DCAP quote, version 3; raw or base64.")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON only: nothing for a person on standard error.")] = False,
) -> None:
    """Show every field of an SGX quote. Exit status: 0 read, 1 not a quote, 2 an unreadable file."""
    try:
        raw = decoded(read(quote))
    except Refusal as refusal:
        raise fail(refusal, None, only_json=as_json) from None
    try:
        document = _document(parse(raw))
    except Refusal as refusal:
        show(
            {"reasons": [reason.model_dump() for reason in refusal.reasons], "notes": [str(refusal)]}, only_json=as_json
        )
        raise typer.Exit(REFUSED) from None
    show(document | {"notes": [NOT_JUDGED]}, only_json=as_json)


def _document(quote: Quote) -> dict[str, Any]:
    header, pck = quote.header, quote.pck
    return {
        "quote_id": quote.identity,
        "size": len(quote.raw),
        "header": {
            "version": header.version,
            "attestation_key_type": header.attestation_key_type,
            "tee_type": header.tee_type,
            "qe_svn": header.qe_svn,
            "pce_svn": header.pce_svn,
            "qe_vendor_id": header.qe_vendor_id.hex(),
            "user_data": header.user_data.hex(),
        },
        "report": quote.report.fields(),
        "attestation_key": quote.attestation_key.hex(),
        "qe_report": quote.qe_report.fields(),
        "qe_auth_data": quote.qe_auth_data.hex(),
        "pck": {
            "ppid": pck.ppid.hex(),
            "fmspc": pck.fmspc.hex(),
            "pce_id": pck.pce_id.hex(),
            "sgx_type": pck.sgx_type,
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
        },
    }
