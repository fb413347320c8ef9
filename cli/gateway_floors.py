"""`attestgate gateway floors new|export|import`: the file of what a gateway has seen taken away."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from attestgate.cli.common import SettingsFile, public_key, say, wrong
from attestgate.manager.gateway.floors_export import export_floors, import_floors, open_export
from attestgate.manager.gateway.floors_file import FloorsFile, create
from attestgate.manager.gateway.lockfile import locked
from attestgate.manager.local.atomic_file import atomic_write
from attestgate.manager.local.keyfiles import read_identity
from attestgate.schemas.floors import MAX_EXPORT
from attestgate.schemas.settings import GatewaySettings, load_settings
from attestgate.schemas.signing import Signer, TrustedKeys

app = typer.Typer(
    help="The file of what a gateway has seen taken away, without which its worker does not start.",
    no_args_is_help=True,
)


@app.command("new")
def new(settings: SettingsFile) -> None:
    """Make an empty file, once, for a new gateway. Refused if there is one.

    For a gateway that has lost its file, import another gateway's floors before its worker is started: with an empty
    file it believes any older state that the bus shows it.
    """
    path = load_settings(GatewaySettings, settings).floors
    create(path)
    say(f"wrote {path}: no floors yet")


@app.command("export")
def export(
    settings: SettingsFile,
    out: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
) -> None:
    """Write this gateway's floors into one file, signed with its identity. Its worker may run meanwhile."""
    gateway = load_settings(GatewaySettings, settings)
    identity = Signer(gateway.trust_domain, read_identity(gateway.identity))
    file = FloorsFile(gateway.floors)
    data = export_floors(file, gateway.id, identity, int(time.time()))
    try:
        atomic_write(out, data)
    except OSError as error:
        raise wrong("--output", "a file that can be written", error.strerror) from None
    say(f"wrote {out}: the floors of {gateway.id} after {file.counter} changes")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="Another gateway's export.")],
    settings: SettingsFile,
    from_identity: Annotated[
        str, typer.Option("--from-identity", help="That gateway's public key, hexadecimal, as it was enrolled.")
    ],
) -> None:
    """Raise this gateway's floors to another gateway's, where they are higher. Stop this gateway's worker first."""
    gateway = load_settings(GatewaySettings, settings)
    trusted = TrustedKeys(gateway.trust_domain, {"gateway": {public_key("--from-identity", from_identity)}})
    said, rows = open_export(_read(file), trusted)
    with locked((gateway.nginx_map or gateway.nginx_socket).parent):
        raised = import_floors(FloorsFile(gateway.floors), rows)
    say(f"raised {raised} of {len(rows)} floors to those of {said.gateway} at {said.at}")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_EXPORT + 1)
    except OSError as error:
        raise wrong("file", "an export of floors", error.strerror) from None
