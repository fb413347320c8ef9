"""`attestgate policy`: runtime policies learned from good hosts, signed, tried on others, and looked over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from attestgate.cli.common import complain, inaccessible, wrong
from attestgate.cli.policy_hosts import on_hosts
from attestgate.manager.policy.policy_tree import measured_files
from attestgate.manager.policy.policy_trial import Trial, try_on
from attestgate.manager.verification.ima.ascii import is_ascii, to_binary
from attestgate.manager.verification.ima.measurement_list import ListEntry, entries, readable
from attestgate.manager.verification.ima.policy_dsse import read_signing_key
from attestgate.manager.verification.ima.policy_dsse import sign as sign_dsse
from attestgate.manager.verification.ima.policy_lint import lint as findings_of
from attestgate.manager.verification.ima.runtime_policy import MAX_POLICY, load, read
from attestgate.manager.verification.ima.runtime_policy import learn as learned_from
from attestgate.schemas.base import Refusal, printable
from attestgate.schemas.messages import MAX_LIST

MAX_KEY = 16 * 1024


class HashName(StrEnum):
    """The kernel's `ima_hash`."""

    SHA1 = "sha1"
    SHA256 = "sha256"
    SHA384 = "sha384"
    SHA512 = "sha512"


app = typer.Typer(help="Known-good policies for measurement lists.", no_args_is_help=True)


@app.command()
def learn(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="LIST|FOLDER...", help="Measurement lists of good hosts, or folders with good files."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the policy goes.")],
    add: Annotated[Path | None, typer.Option(help="A policy to add to, before an update for example.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="A pattern (RE2) of paths to accept unseen.")] = None,
    below: Annotated[str, typer.Option(help="Where a folder's files will be on the hosts.")] = "/",
    algorithm: Annotated[
        HashName, typer.Option("--hash", help="The hosts' `ima_hash`, for folders.")
    ] = HashName.SHA256,
) -> None:
    """Learn a runtime policy (Keylime's JSON) that knows every entry of the lists and every file of the folders.

    Before a package upgrade, learn from its unpacked files with --add, and put the policy in force: nobody is cut off.

    Exit status: 0 written, 1 a list or policy was refused, 2 unreadable file.
    """
    folders = [path for path in sources if path.is_dir()]
    try:
        base = None if add is None else read(_bytes(add, MAX_POLICY), source=str(add))
        lists = [_entries(path) for path in sources if path not in folders]
        files = [found for folder in folders for found in _files(folder, below, algorithm)]
        policy, left_out = learned_from(lists, files=files, add_to=base)
        policy = policy.model_copy(update={"excludes": [*policy.excludes, *(exclude or [])]})
        text = policy.text()
        loaded = load(text, source=str(output))
    except Refusal as refusal:
        _fail(refusal)
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        complain(inaccessible(error).sentence())
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


@app.command()
def diff(
    new: Annotated[
        Path, typer.Argument(metavar="NEW", help="A runtime policy; with --against hosts, a bundle of `policy sign`.")
    ],
    against: Annotated[
        list[str],
        typer.Option(metavar="LIST|hosts", help="A measurement list; or `hosts`, every host that is trusted."),
    ],
    operator: Annotated[
        Path | None,
        typer.Option("--operator", "-O", envvar="ATTESTGATE_OPERATOR", help="For hosts: your operator file."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Say who fails under a new policy, before it is put in force.

    Exit status: 0 nobody fails, 1 somebody does or the policy is refused, 2 unreadable file or wrong arguments.
    """
    if against == ["hosts"]:
        trials = on_hosts(new, operator)
    elif "hosts" in against:
        raise wrong("--against", "`hosts` alone, or lists", "both")
    else:
        raw = _bytes(new, MAX_POLICY)
        try:
            policy = load(raw, source=str(new))
        except Refusal as refusal:
            _fail(refusal)
        trials = [try_on(policy, name, _bytes(Path(name), MAX_LIST)) for name in against]
    if as_json:
        typer.echo(json.dumps({"trials": [trial.model_dump(mode="json") for trial in trials]}, indent=2))
    else:
        for trial in trials:
            for line in _told(trial):
                typer.echo(printable(line))
    if any(trial.fails for trial in trials):
        raise typer.Exit(1)


def _told(trial: Trial) -> Iterator[str]:
    yield f"{trial.name}: {'fails' if trial.fails else 'passes'}, {trial.entries} entries"
    if trial.problem:
        yield f"  {trial.problem}"
    for entry in trial.unknown:
        nearest = f", known is {entry.nearest}" if entry.nearest else ""
        yield f"  entry {entry.index}: {entry.path} {entry.digest}{nearest}"


@app.command()
def dsse(
    policy: Annotated[Path, typer.Argument(metavar="POLICY", help="A runtime policy.")],
    key: Annotated[Path, typer.Option(help="Its author's private key, PEM: EC, as Keylime signs with, or Ed25519.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The DSSE envelope to write.")],
) -> None:
    """Sign a runtime policy as Keylime does. Managers with a key in `runtime_policy_keys` take no other."""
    raw = _bytes(policy, MAX_POLICY)
    load(raw, source=str(policy))
    output.write_bytes(sign_dsse(raw, read_signing_key(_bytes(key, MAX_KEY), source=str(key))))


def _files(folder: Path, below: str, algorithm: HashName) -> list[tuple[bytes, bytes]]:
    try:
        return list(measured_files(folder, algorithm.value, below=below.encode()))
    except OSError as error:
        complain(inaccessible(error).sentence())
        raise typer.Exit(2) from None


def _entries(path: Path) -> list[ListEntry]:
    data = _bytes(path, MAX_LIST)
    return list(entries(to_binary(data) if is_ascii(data) else data))


def _bytes(path: Path, limit: int) -> bytes:
    """A file, and of one that is too long just enough to tell."""
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        complain(inaccessible(error).sentence())
        raise typer.Exit(2) from None


def _fail(refusal: Refusal) -> NoReturn:
    for reason in refusal.reasons:
        complain(reason.sentence())
    raise typer.Exit(1)
