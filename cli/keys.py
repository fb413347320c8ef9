"""`attestgate keys`: create and rotate the keys of a deployment."""

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

app = typer.Typer(help="Create and rotate a deployment's keys.", no_args_is_help=True)


@app.command("init")
def init(
    folder: Path,
    trust_domain: Annotated[str, typer.Option(help="Prefix of every identity: spiffe://<trust domain>/...")],
    operator: Annotated[str, typer.Option(help="Name of the first operator.")] = "operator",
    policy_author: Annotated[str, typer.Option(help="Name of the first policy author.")] = "policy-author",
    gateway: Annotated[str, typer.Option(help="Name of the first gateway.")] = "gateway-1",
    bus: Annotated[str, typer.Option(help="The bus's URL for viewers.")] = "nats://127.0.0.1:4222",
) -> None:
    """Generate every key of a deployment in a new folder, with a page on what each is for and who may hold it."""
    deployment.init(
        folder, trust_domain=trust_domain, operator=operator, policy_author=policy_author, gateway=gateway, bus=bus
    )
    say(f"created {folder}; read {folder / 'README.md'}")


@app.command("server")
def server_configuration(
    folder: Annotated[Path, typer.Argument(help="The folder that `keys init` created.")],
    store: Annotated[Path, typer.Option(help="Where nats-server keeps its streams.")],
    file: Annotated[Path, typer.Option("--output", "-o", help="The configuration to write.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 4222,
) -> None:
    """Write nats-server's configuration for these keys. It holds no secret; add `tls` or `cluster` as needed."""
    table = {"host": host, "port": port} | configuration(
        credentials.load(folder / "bus"), "attestgate", store.absolute(), "always"
    )
    file.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    say(f"wrote {file}; start the server: nats-server -c {file}")


@app.command("rotate")
def rotate(
    settings: SettingsFile,
    add: Annotated[bool, typer.Option(help="Add a new storage epoch; records are sealed under it from now on.")] = True,
    destroy: Annotated[bool, typer.Option(help="Destroy older epochs once no record needs them.")] = True,
) -> None:
    """Rotate the storage keys: add an epoch, reseal every record under it, destroy the older epochs.

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
            orders = Orders(Intake(bus, time.time), read_identity(loaded.identity), set())
            await orders.key(f"storage-epoch {in_force.name} without {in_force.gone}", in_force, int(time.time()))
            return sealed, gone

    sealed, gone = asyncio.run(again())
    say(f"resealed {sealed} records, destroyed epochs {gone}")


@app.command("rotate-ca")
def rotate_ca(
    settings: SettingsFile,
    finish: Annotated[bool, typer.Option("--finish", help="Retire CAs whose last certificate has expired.")] = False,
) -> None:
    """Replace the issuing CA with a new one under the same root, without an outage.

    Copy root-ca.key.pem back to this machine first: it signs the new CA. Then restart the managers one after another
    and reload nginx; after one certificate lifetime, run this again with --finish.
    """
    loaded = load_settings(ManagerSettings, settings)
    passphrase, now = read_secret(loaded.pki_passphrase), int(time.time())
    if finish:
        gone = rotation.finish(loaded.pki, passphrase, now, loaded.timing.certificate_s)
        say(f"retired: {', '.join(gone) or 'none'}")
        return
    say(f"the issuing CA is now {rotation.rotate(loaded.pki, passphrase, now)}")
    say("next: restart the managers one after another; reload nginx; take root-ca.key.pem offline again")


@app.command("credentials")
def issue_credentials(
    folder: Annotated[Path, typer.Argument(help="The folder that `keys init` created.")],
    role: Annotated[str, typer.Argument(help="manager, gateway, host, app, operator or viewer.")],
    name: Annotated[str, typer.Argument(help="The id that the role's permissions are for.")],
    file: Annotated[Path, typer.Option("--output", "-o", help="The credentials file to write.")],
) -> None:
    """Issue credentials for the bus; nothing changes at the server."""
    credentials.issue(folder / "bus", role, name, file)
    say(f"wrote {file}")
