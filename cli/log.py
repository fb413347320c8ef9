"""`attestgate log`: read and verify the decision log with the managers' public keys alone."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from attestgate.bus.api import Bus
from attestgate.bus.client.nats import join
from attestgate.cli.common import REFUSED, Json, OperatorOption, complain, operator_file, say
from attestgate.manager.audit.check import check, decisions, kept_from
from attestgate.manager.audit.copy import LogCopy, read_head, read_log
from attestgate.manager.audit.merkle import inclusion_proof
from attestgate.manager.verification.offline.ear import read_identities
from attestgate.schemas.audit import Decision
from attestgate.schemas.base import Refusal
from attestgate.schemas.checkpoint import Checkpoint, open_checkpoint
from attestgate.schemas.signing import TrustedKeys

T = TypeVar("T")
Jwks = Annotated[
    Path,
    typer.Option(
        envvar="ATTESTGATE_JWKS",
        help="The managers' public keys (jwks.json, made by `keys init`). Also read from ATTESTGATE_JWKS.",
    ),
]
app = typer.Typer(
    help="Read and verify the decision log: every decision that granted or withdrew trust, in an append-only tree.",
    no_args_is_help=True,
)


@app.command("head")
def head(
    operator: OperatorOption,
    jwks: Jwks,
    out: Annotated[Path | None, typer.Option("--output", "-o", help="File to write, for `log verify --since`.")] = None,
) -> None:
    """Print the newest signed head; keep one where the bus's operator cannot reach it."""
    signers = read_identities(jwks)
    note = _read(operator, lambda bus: read_head(bus, signers))
    if out is None:
        say(note.rstrip("\n"))
    else:
        out.write_text(note, encoding="utf-8")


@app.command("verify")
def verify(
    operator: OperatorOption,
    jwks: Jwks,
    since: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A saved head; the log must be an extension of it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify the whole log: signatures, tree, every retained entry. Exit status 1 if anything is wrong."""
    signers = read_identities(jwks)
    before = [_saved(path, signers) for path in since or []]
    managers = _managers(operator, signers)
    copy = _read(operator, lambda bus: read_log(bus, managers))
    findings = check(copy, managers, before, int(time.time()))
    if as_json:
        shown = [finding.model_dump(mode="json") for finding in findings]
        say(json.dumps({**_plain_head(copy), "kept_from": kept_from(copy), "findings": shown}, indent=2))
    else:
        for finding in findings:
            complain(finding.sentence())
        if not findings:
            say(_summary(copy, before))
    if findings:
        raise typer.Exit(REFUSED)


@app.command("show")
def show(
    text: Annotated[
        str,
        typer.Argument(metavar="TEXT", help="A subject, or a prefix of a session, serial or entry: 6 digits or more."),
    ],
    operator: OperatorOption,
    jwks: Jwks,
    as_json: Json = False,
) -> None:
    """Show the decisions about a session, certificate, host, application or operator, with proof of inclusion."""
    managers = _managers(operator, read_identities(jwks))
    copy = _read(operator, lambda bus: read_log(bus, managers))
    found = [entry for entry in decisions(copy, managers) if _about(entry[1], text)]
    if not found:
        raise Refusal.because(
            "log.unknown",
            "decision log",
            expected="entries about this session, serial, subject or entry",
            found=text,
            action=f"entries before {kept_from(copy)} are no longer retained; see: attestgate log verify",
        )
    if as_json:
        entries = [_proven(copy, *entry) for entry in found]
        say(json.dumps({**_plain_head(copy), "entries": entries}, indent=2))
        return
    for number, decision, _ in found:
        when = datetime.fromtimestamp(decision.at, UTC).strftime("%Y-%m-%d %H:%M:%S")
        facts = decision.fact.model_dump(mode="json", exclude={"did"}, exclude_none=True)
        say(f"{number}  {when}  {decision.kind} {decision.subject}  {decision.fact.did}  by {decision.by}")
        say(f"    {json.dumps(facts)}")


def _about(decision: Decision, text: str) -> bool:
    """Whether an entry is about the given text: a whole id, or a prefix of a session, serial or entry."""
    facts = decision.fact.model_dump(mode="json")
    serials = [facts.get("serial"), facts.get("before"), *facts.get("certificates", [])]
    begins = [decision.id, decision.session, *serials]
    about = facts.get("about")
    return (
        text == decision.subject
        or (about is not None and text == about.rsplit("/", 1)[-1])
        or (len(text) >= 6 and any(name is not None and name.startswith(text) for name in begins))
    )


def _proven(copy: LogCopy, number: int, decision: Decision, entry: bytes) -> dict[str, Any]:
    """An entry, its bytes and its audit path in its tree (RFC 9162, section 2.1.3), in base64."""
    tree = next(tree for tree in copy.trees if number < tree.end)
    path = inclusion_proof(tree.leaves, number - tree.first)
    return {
        "number": number,
        "tree": tree.number,
        "index": number - tree.first,
        "entry": _base64(entry),
        "path": [_base64(node) for node in path],
        "decision": decision.model_dump(mode="json"),
    }


def _plain_head(copy: LogCopy) -> dict[str, Any]:
    """The head, and in `seam` what makes the closed tree's root as good: the entry that names it, and its path."""
    plain: dict[str, Any] = {
        "size": copy.checkpoint.size,
        "root": copy.checkpoint.root.hex(),
        "checkpoint": copy.note,
        "first": copy.newest.first,
    }
    if closed := copy.closed:
        plain["closed"] = {"tree": closed.number, "first": closed.first, "size": closed.size, "root": closed.root.hex()}
        path = inclusion_proof(copy.newest.leaves, 0)
        plain["seam"] = {"entry": _base64(copy.seam), "path": [_base64(node) for node in path]}
    return plain


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _summary(copy: LogCopy, before: list[Checkpoint]) -> str:
    kept = kept_from(copy)
    when = datetime.fromtimestamp(copy.checkpoint.at, UTC).strftime("%Y-%m-%d %H:%M:%S")
    older = f"; of those before {kept} only the hashes" if kept else ""
    gone = f", and of those before {copy.first} not even these" if copy.first else ""
    goes_on = f"; extends the head of size {', '.join(map(_size, before))}" if before else ""
    return f"valid: {copy.size} decisions, the newest of {when}{older}{gone}{goes_on}"


def _size(head: Checkpoint) -> str:
    return str(head.size) if head.tree == 1 else f"{head.size} of tree {head.tree}"


def _managers(operator: Path, signers: set[bytes]) -> TrustedKeys:
    """Whose entries count: the managers' keys, in the deployment that the operator's file names."""
    return TrustedKeys(operator_file(operator).trust_domain, {"manager": signers})


def _saved(path: Path, signers: set[bytes]) -> Checkpoint:
    try:
        return open_checkpoint(path.read_text(encoding="utf-8"), signers)
    except (OSError, UnicodeDecodeError) as error:
        found = getattr(error, "strerror", None) or type(error).__name__
        raise Refusal.because(
            "cli.argument", str(path), expected="a saved head", found=found, action="see: attestgate log head"
        ) from None


def _read(operator: Path, read: Callable[[Bus], Coroutine[Any, Any, T]]) -> T:
    settings = operator_file(operator)

    async def run() -> T:
        async with await join(settings.bus) as bus:
            return await read(bus)

    return asyncio.run(run())
