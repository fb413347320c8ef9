"""`attestgate policy sign|put`: a set of policies, signed by its author, put in force by an operator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attestgate.cli.common import OperatorOption, say
from attestgate.cli.enrol import command
from attestgate.manager.local.keyfiles import read_identity
from attestgate.manager.policy.policy_set import read_policy_key, sign_set
from attestgate.schemas.base import Refusal, pack, unpack
from attestgate.schemas.enrolment import PutPolicy


def register(app: typer.Typer) -> None:
    """Mount these commands."""
    app.command("sign")(sign)
    app.command("put")(put)


def sign(
    file: Annotated[Path, typer.Argument(help="The set: JSON with version, sgx_policy, host_policy, runtime_policy.")],
    key: Annotated[Path, typer.Option("--key", help="The policy author's key; it is never sent to the bus.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The signed bundle to write.")],
    runtime_key: Annotated[
        list[Path] | None, typer.Option(help="The managers' `runtime_policy_keys`, if the runtime policy is in DSSE.")
    ] = None,
) -> None:
    """Check a set of policies and sign its manifest. `policy put` then puts the bundle in force."""
    out.write_bytes(pack(sign_set(file, read_identity(key), [read_policy_key(path) for path in runtime_key or ()])))
    say(f"signed {out}")


def put(
    bundle: Annotated[Path, typer.Argument(help="The bundle that `policy sign` wrote.")],
    operator: OperatorOption,
) -> None:
    """Put a signed set of policies in force: every session is appraised against it from its next recheck on."""
    command(operator, read_bundle(bundle))


def read_bundle(path: Path) -> PutPolicy:
    """The bundle that `policy sign` wrote. Raises Refusal `file.bundle`, OSError."""
    data = path.read_bytes()
    try:
        return unpack(PutPolicy, data)
    except Refusal as refusal:
        raise Refusal.because(
            "file.bundle",
            str(path),
            expected="a bundle that `policy sign` wrote",
            found=refusal.reasons[0].found,
            action="sign the set of policies: attestgate policy sign --help",
        ) from None
