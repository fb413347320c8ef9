"""`attestgate keys`: the keys of a deployment."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Annotated

import typer

from attestgate.bus.auth import credentials
from attestgate.bus.client.nats import join
from attestgate.bus.server.embedded import configuration
from attestgate.cli.common import SettingsFile, say
from attestgate.manager.audit.intake import Intake
from attestgate.manager.audit.orders import Orders
from attestgate.manager.local.keyfiles import read_identity, read_secret
from attestgate.manager.pki import deployment, rotation
from attestgate.manager.records.record_cipher import RecordCipher
from attestgate.manager.records.storage_keys import StorageKeyFile, add_epoch, destroy_old_epochs, seal_again
from attestgate.schemas.audit import KeyInForce
from attestgate.schemas.settings import ManagerSettings, load_settings

app = typer.Typer(help="The keys of a deployment.", no_args_is_help=True)


@app.command("init")
def init(
    folder: Path,
    trust_domain: Annotated[str, typer.Option(help="In front of every identity: spiffe://<trust domain>/...")],
    operator: Annotated[str, typer.Option(help="Name of the first operator.")] = "operator",
    policy_author: Annotated[str, typer.Option(help="Name of the first policy author.")] = "policy-author",
    gateway: Annotated[str, typer.Option(help="Name of the first gateway.")] = "gateway-1",
    bus: Annotated[str, typer.Option(help="Where viewers reach the bus.")] = "nats://127.0.0.1:4222",
) -> None:
    """Make every key of a deployment in a new folder, and a page that says what each is for and who may hold it."""
    deployment.init(
        folder, trust_domain=trust_domain, operator=operator, policy_author=policy_author, gateway=gateway, bus=bus
    )
    say(f"made {folder}; read {folder / 'README.md'}")


@app.command("server")
def server_configuration(
    folder: Annotated[Path, typer.Argument(help="The folder of `keys init`.")],
    store: Annotated[Path, typer.Option(help="Where nats-server keeps its streams.")],
    file: Annotated[Path, typer.Option("--out", "-o", help="The configuration to write.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 4222,
) -> None:
    """Write nats-server's configuration for these keys. It holds no secret; add its own `tls` or `cluster` to it."""
    table = {"host": host, "port": port} | configuration(
        credentials.load(folder / "bus"), "attestgate", store.absolute(), "always"
    )
    file.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    say(f"made {file}; start it: nats-server -c {file}")


@app.command("rotate")
def rotate(
    settings: SettingsFile,
    add: Annotated[bool, typer.Option(help="Add a new storage epoch; records are sealed under it from now on.")] = True,
    destroy: Annotated[bool, typer.Option(help="Destroy older epochs once no record needs them.")] = True,
) -> None:
    """Rotate the storage keys: add an epoch, seal every record again under it, destroy the older ones.

    With workers on several machines: `rotate --no-destroy`, copy the key file to all, then `rotate --no-add`.
    """
    loaded = load_settings(ManagerSettings, settings)
    if add:
        say(f"added epoch {add_epoch(loaded.storage_keys)} to {loaded.storage_keys}")
    if not destroy:
        return

    async def again() -> tuple[int, list[int]]:
        async with await join(loaded.bus) as bus:
            cipher = RecordCipher(StorageKeyFile(loaded.storage_keys))
            sealed = 0
            while more := await seal_again(bus, cipher):  # a worker may have been about to store one
                sealed += more
            gone = destroy_old_epochs(loaded.storage_keys)
            in_force = KeyInForce(key="storage-epoch", name=str(cipher.newest), gone=[str(epoch) for epoch in gone])
            orders = Orders(Intake(bus, time.time), read_identity(loaded.identity))
            await orders.key(f"storage-epoch {in_force.name} without {in_force.gone}", in_force, int(time.time()))
            return sealed, gone

    sealed, gone = asyncio.run(again())
    say(f"sealed {sealed} records again, destroyed epochs {gone}")


@app.command("rotate-ca")
def rotate_ca(
    settings: SettingsFile,
    finish: Annotated[bool, typer.Option("--finish", help="Let go of CAs whose last certificate has ended.")] = False,
) -> None:
    """Replace the issuing CA by a new one under the same root, without an outage.

    Bring root-ca.key.pem back for it, start the managers again one after another, reload nginx; a certificate's life
    later run it with --finish.
    """
    loaded = load_settings(ManagerSettings, settings)
    passphrase, now = read_secret(loaded.pki_passphrase), int(time.time())
    if finish:
        gone = rotation.finish(loaded.pki, passphrase, now, loaded.timing.certificate_s)
        say(f"let go of {', '.join(gone) or 'none'}")
        return
    say(f"the issuing CA is now {rotation.rotate(loaded.pki, passphrase, now)}")
    say("next: start every manager again, one after another; reload nginx; take root-ca.key.pem offline again")


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
