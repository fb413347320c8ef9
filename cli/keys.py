"""`attestgate keys`: the keys of a deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bus import credentials
from cli.common import say
from manager import deployment

app = typer.Typer(help="The keys of a deployment.", no_args_is_help=True)


@app.command("init")
def init(
    folder: Path,
    trust_domain: Annotated[str, typer.Option(help="In front of every identity: spiffe://<trust domain>/...")],
    operator: Annotated[str, typer.Option(help="Name of the first operator.")] = "operator",
    policy_author: Annotated[str, typer.Option(help="Name of the first policy author.")] = "policy-author",
    gateway: Annotated[str, typer.Option(help="Name of the first gateway.")] = "gateway-1",
) -> None:
    """Make every key of a deployment in a new folder, and a page that says what each is for and who may hold it."""
    deployment.init(folder, trust_domain=trust_domain, operator=operator, policy_author=policy_author, gateway=gateway)
    say(f"made {folder}; read {folder / 'README.md'}")


@app.command("credentials")
def issue_credentials(
    folder: Annotated[Path, typer.Argument(help="The folder of `keys init`.")],
    role: Annotated[str, typer.Argument(help="manager, gateway, host, app, operator or viewer.")],
    name: Annotated[str, typer.Argument(help="The id that the role's permissions are for.")],
    file: Annotated[Path, typer.Option("--out", "-o", help="The credentials file to write.")],
) -> None:
    """Make credentials for the bus: no change at the server."""
    credentials.issue(folder / "bus", role, name, file)
    say(f"made {file}")
