"""`attestgate policy`: runtime policies learned from good hosts, and looked over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from manager.verification.ima_ascii import is_ascii, to_binary
from manager.verification.ima_list import Entry, entries, readable
from manager.verification.policy_lint import lint as findings_of
from manager.verification.runtime_policy import MAX_POLICY, load, read
from manager.verification.runtime_policy import learn as learned_from
from schemas.base import Refusal
from schemas.messages import MAX_LIST

app = typer.Typer(help="Known-good policies for measurement lists.", no_args_is_help=True)


@app.command()
def learn(
    lists: Annotated[list[Path], typer.Argument(metavar="LIST...", help="Measurement lists of good hosts.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the policy goes.")],
    add: Annotated[Path | None, typer.Option(help="A policy to add to, before an update for example.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="A pattern (RE2) of paths to accept unseen.")] = None,
) -> None:
    """Learn a runtime policy (Keylime's JSON) that knows every entry of the lists.

    Exit status: 0 written, 1 a list or policy was refused, 2 unreadable file.
    """
    try:
        base = None if add is None else read(_bytes(add, MAX_POLICY), source=str(add))
        policy, left_out = learned_from([_entries(path) for path in lists], add_to=base)
        policy = policy.model_copy(update={"excludes": [*policy.excludes, *(exclude or [])]})
        text = policy.text()
        loaded = load(text, source=str(output))
    except Refusal as refusal:
        _fail(refusal)
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        typer.echo(f"{output}: {error.strerror}", err=True)
        raise typer.Exit(2) from None
    for path in left_out:
        typer.echo(f"left out, not UTF-8: {readable(path)}", err=True)
    typer.echo(f"{len(policy.digests)} paths, sha256 {loaded.sha256}")


@app.command()
def lint(
    policy: Annotated[Path, typer.Argument(metavar="POLICY", help="A runtime policy.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Look a runtime policy over: wide patterns, weak digests, gaps.

    Exit status: 0 nothing found, 1 something found or the policy is refused, 2 unreadable file.
    """
    raw = _bytes(policy, MAX_POLICY)
    try:
        load(raw, source=str(policy))
        findings = findings_of(read(raw, source=str(policy)))
    except Refusal as refusal:
        findings = list(refusal.reasons)
    if as_json:
        typer.echo(json.dumps({"findings": [finding.model_dump() for finding in findings]}, indent=2))
    else:
        for finding in findings:
            typer.echo(finding.sentence())
    if findings:
        raise typer.Exit(1)


def _entries(path: Path) -> list[Entry]:
    data = _bytes(path, MAX_LIST)
    return list(entries(to_binary(data) if is_ascii(data) else data))


def _bytes(path: Path, limit: int) -> bytes:
    """A file, and of one that is too long just enough to tell."""
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        typer.echo(f"{path}: {error.strerror}", err=True)
        raise typer.Exit(2) from None


def _fail(refusal: Refusal) -> NoReturn:
    for reason in refusal.reasons:
        typer.echo(reason.sentence(), err=True)
    raise typer.Exit(1)
