"""What the commands that appraise evidence from files share: reading, times, and one JSON document in every case.

Exit status: 0 accepted, 1 appraised and refused, 2 an unreadable file or invalid arguments.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from attestgate.manager.verification.offline.quote import MAX_FILE
from attestgate.manager.verification.x509 import utc
from attestgate.schemas.base import Reason, Refusal
from attestgate.schemas.sgx import Appraisal

REFUSED, WRONG = 1, 2
_RFC3339 = re.compile(
    r"(\d{4}-\d{2}-\d{2})[T ](\d{2}:\d{2}:)(\d{2})(?:\.\d+)?(Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)", re.ASCII | re.IGNORECASE
)
_LEAP_SECOND = "60"
_SAID = "attestgate.said"
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_TIMES = ("at", "tcb_date", "collateral_expires", "timestamp")


class JsonCommand(TyperCommand):
    """A command that reports invalid arguments in JSON too, besides the usual lines on standard error."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments. Prints the refusal and raises what typer raises if they are wrong."""
        with _mistakes_in_json(ctx):
            return super().parse_args(ctx, args)


class JsonGroup(TyperGroup):
    """A group of such commands: a missing or unknown command is reported in JSON too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the group's arguments, as `JsonCommand` does."""
        with _mistakes_in_json(ctx):
            if args in ([], ["--"]):
                ctx.fail("Missing command.")
            return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the arguments name, as typer does."""
        with _mistakes_in_json(ctx):
            return super().resolve_command(ctx, args)


@contextmanager
def _mistakes_in_json(ctx: Any) -> Iterator[None]:
    try:
        yield
    except TyperException as error:
        if not ctx.meta.get(_SAID):
            ctx.meta[_SAID] = True
            reason = wrong("arguments", f"see {ctx.command_path} --help", error)
            show(_wrong_document([reason], None), only_json=True)
        raise


def wrong(field: str, expected: str, found: object) -> Reason:
    """A reason for an argument or a file that cannot be used."""
    return Reason(code="cli.argument", field=field, expected=expected, found=str(found), action="correct the command")


def read(path: Path, limit: int = MAX_FILE) -> bytes:
    """A file's bytes; of a file over `limit` one byte more, for its parser to refuse it.

    Raises Refusal (`cli.argument`).
    """
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise Refusal(wrong(str(path), "a readable file", getattr(error, "strerror", None) or error)) from None


def read_time(text: str | None) -> int:
    """A Unix second from RFC 3339 (a fraction is cut off), or now. Raises Refusal (`cli.argument`)."""
    if text is None:
        return int(time.time())
    match = _RFC3339.fullmatch(text)
    if match is not None:
        day, minute, second, zone = match.groups()
        leap = second == _LEAP_SECOND
        try:
            moment = datetime.fromisoformat(f"{day}T{minute}{'59' if leap else second}{zone.upper()}")
            return int(moment.timestamp()) + leap
        except ValueError:
            pass  # a day or an hour that does not exist: refused below as any other text
    raise Refusal(wrong("--at", "an RFC 3339 time, such as 2025-07-01T00:00:00Z", text))


def read_fingerprints(texts: list[str]) -> set[str]:
    """SHA-256 fingerprints of roots, colons and capitals allowed. Raises Refusal (`cli.argument`)."""
    fingerprints = {text.replace(":", "").lower() for text in texts}
    for fingerprint in fingerprints:
        if not _FINGERPRINT.fullmatch(fingerprint):
            raise Refusal(wrong("--trust", "a SHA-256 fingerprint, 64 hexadecimal digits", fingerprint))
    return fingerprints


def finish(verdict: Appraisal, evidence: dict[str, Any] | None, notes: list[str], *, only_json: bool) -> None:
    """Print a verdict with all that the evidence says; exit with 1 if it is a refusal."""
    document = verdict.model_dump(mode="json")
    document |= {key: utc(document[key]) for key in _TIMES if document.get(key) is not None}
    show(document | {"evidence": evidence, "notes": notes}, only_json=only_json)
    if not verdict.accepted:
        raise typer.Exit(REFUSED)


def fail(refusal: Refusal, at: int | None, *, only_json: bool) -> typer.Exit:
    """Print why nothing could be appraised; return the exit to raise."""
    show(_wrong_document(list(refusal.reasons), at), only_json=only_json)
    return typer.Exit(WRONG)


def show(document: dict[str, Any], *, only_json: bool) -> None:
    """Print the document on standard output and, unless `only_json`, a summary on standard error."""
    typer.echo(json.dumps(document, indent=2))
    if only_json:
        return
    if "accepted" in document:
        typer.echo("accepted" if document["accepted"] else "refused", err=True)
        for reason in document["reasons"]:
            typer.echo(f"  {Reason.model_validate(reason).sentence()}", err=True)
    for note in document.get("notes", []):
        typer.echo(f"  note: {note}", err=True)


def _wrong_document(reasons: list[Reason], at: int | None) -> dict[str, Any]:
    return {
        "accepted": False,
        "reasons": [reason.model_dump() for reason in reasons],
        "policy": None,
        "at": None if at is None else utc(at),
        "notes": ["nothing was appraised"],
    }
