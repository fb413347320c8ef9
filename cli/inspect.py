"""`attestgate inspect quote`: decode a quote without verifying it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attestgate.cli.evidence import REFUSED, JsonCommand, JsonGroup, fail, read, show
from attestgate.manager.verification.offline.describe import describe_quote
from attestgate.manager.verification.offline.quote import decoded
from attestgate.manager.verification.sgx.quote import parse
from attestgate.schemas.base import Refusal

app = typer.Typer(cls=JsonGroup, help="Decode evidence without verifying it.")

NOT_JUDGED = "nothing was verified: anyone can write these bytes"


@app.callback()
def group() -> None:
    """Decode evidence without verifying it."""


@app.command("quote", cls=JsonCommand)
def quote_command(
    quote: Annotated[Path, typer.Argument(metavar="QUOTE", help="DCAP quote, version 3; raw or base64.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only; no summary on standard error.")] = False,
) -> None:
    """Show every field of an SGX quote. Exit status: 0 decoded, 1 not a quote, 2 an unreadable file."""
    try:
        raw = read(quote)
    except Refusal as refusal:
        raise fail(refusal, None, only_json=as_json) from None
    try:
        document = describe_quote(parse(decoded(raw, "quote")))
    except Refusal as refusal:
        show(
            {"reasons": [reason.model_dump() for reason in refusal.reasons], "notes": [str(refusal)]}, only_json=as_json
        )
        raise typer.Exit(REFUSED) from None
    show(document | {"notes": [NOT_JUDGED]}, only_json=as_json)
