"""`attestgate keys`: create and rotate the keys of a deployment."""

from __future__ import annotations

import asyncio
import json
import time
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated

import typer

from attestgate.bus.auth import accounts, credentials, ledger
from attestgate.bus.client.accounts import tell
from attestgate.bus.client.nats import join
from attestgate.bus.server.embedded import configuration
from attestgate.bus.server.firewall import Network, rules
from attestgate.cli.common import SettingsFile, say, wrong
from attestgate.manager.audit.intake import Intake
from attestgate.manager.audit.orders import Orders
from attestgate.manager.local.keyfiles import read_identity, read_secret
from attestgate.manager.pki import deployment, rotation
from attestgate.manager.policy.signers import Signers
from attestgate.manager.records.record_cipher import RecordCipher
from attestgate.manager.records.storage_keys import StorageKeyFile, add_epoch, destroy_old_epochs, seal_again
from attestgate.schemas.audit import KeyInForce
from attestgate.schemas.base import Reason, Refusal
from attestgate.schemas.settings import ManagerSettings, load_settings
from attestgate.schemas.signing import Signer

app = typer.Typer(help="Create and rotate a deployment's keys.", no_args_is_help=True)

WRITE_AGAIN = "next: write nats-server's configuration again (attestgate keys server), for its next start"
KeysFolder = Annotated[Path, typer.Argument(help="The folder that `keys init` created.")]
RunningBus = Annotated[
    str | None, typer.Option("--bus", help="URL of the running nats-server to tell; several with commas between.")
]


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
    accounts_folder: Annotated[
        Path | None,
        typer.Option(
            "--accounts", help="Where it keeps the accounts that it is told of: by default `accounts` beside the store."
        ),
    ] = None,
    firewall: Annotated[
        Path | None,
        typer.Option(help="Also write nftables rules that limit what each machine may send to this port."),
    ] = None,
    managers: Annotated[
        list[str] | None,
        typer.Option(
            help="A network whose machines those rules do not limit: the managers', the cluster's. Repeatable."
        ),
    ] = None,
) -> None:
    """Write nats-server's configuration for these keys. It holds no secret; add `tls` or `cluster` as needed."""
    networks = [_network(each) for each in managers or []]
    if networks and firewall is None:
        raise wrong("--firewall", "a file for the rules that --managers is for", "no --firewall")
    beside = accounts_folder or store.absolute().parent / "accounts"
    table = {"host": host, "port": port} | configuration(
        credentials.load(folder / "bus"), "attestgate", store.absolute(), beside.absolute(), "always"
    )
    file.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    say(f"wrote {file}; start the server: nats-server -c {file}")
    if firewall is not None:
        firewall.write_text(rules([port], networks), encoding="utf-8")
        say(f"wrote {firewall}; load it first, as root: nft -f {firewall}")


def _network(text: str) -> Network:
    """An IPv4 or IPv6 network or address. Raises Refusal."""
    try:
        return ip_network(text)
    except ValueError as error:
        raise wrong("--managers", "a network, as in 10.0.1.0/24 or 2001:db8::/64", str(error)) from None


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
            identity = Signer(loaded.trust_domain, read_identity(loaded.identity))
            signers = Signers(loaded.trust_domain, loaded.operators, {identity.public})
            orders = Orders(Intake(bus, signers.trusted, time.monotonic), identity, signers, loaded.gateways.name)
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


@app.command("upgrade")
def upgrade(folder: KeysFolder, bus: RunningBus = None) -> None:
    """Sign the bus's accounts again with this version's permissions, and tell nats-server.

    Credentials stay valid and get the new permissions; revoked ones stay revoked. Lists the credentials that have to be
    issued again. It may be repeated, and with --bus tells a server whatever it has missed.
    """
    keys = folder / "bus"
    done = accounts.upgrade(keys)
    if done.roles:
        say(f"signed again in {keys / credentials.TRUST_FILE}: {', '.join(done.roles)}")
    else:
        say(f"nothing to do: {keys / credentials.TRUST_FILE} has this version's permissions")
    for made in done.made:
        say(f"made {keys / made}")
    problems: list[Reason] = []
    if bus is not None:
        problems = _tell(keys, bus)
    elif done.roles:
        how = "attestgate keys upgrade FOLDER --bus URL" if done.tellable else "restart it, once, as below"
        say(f"nats-server does not know yet: {how}")
    if done.roles:
        say(WRITE_AGAIN)
    if done.roles and not ledger.read(keys).complete:
        say(f"next: issue an application's credential for each host: attestgate keys credentials {folder} app HOST.ID")
    _say_issue_again(folder)
    if problems:
        raise Refusal(*problems)


@app.command("revoke-credential")
def revoke_credential(
    folder: KeysFolder,
    role: Annotated[str | None, typer.Argument(help="The credential's role.")] = None,
    name: Annotated[str | None, typer.Argument(help="The id that it was issued for.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="The credentials file itself, in place of role and name.")
    ] = None,
    everybody: Annotated[bool, typer.Option("--all", help="Revoke all that were issued in the role.")] = False,
    bus: RunningBus = None,
) -> None:
    """Revoke a bus credential: nats-server disconnects it at once and refuses it from then on.

    With a role and a name, every credential that was issued for that name. One issued afterwards is good.
    """
    _check_one(role, name, file, everybody)
    keys = folder / "bus"
    if everybody:
        assert role is not None
        accounts.revoke_all(keys, role)
        say(f"revoked in {keys / credentials.TRUST_FILE}: every credential of role {role} issued until now")
    else:
        meant = _meant(keys, role, name, file)
        new = accounts.revoke(keys, meant[0].role, meant)
        say(f"revoked in {keys / credentials.TRUST_FILE}: {new} of {meant[0].role} {meant[0].name}")
        if new < len(meant):
            say(f"revoked already: {len(meant) - new}")
        if file is None and not ledger.read(keys).complete:
            say("not among them: what was issued before this folder had a ledger; for that use --file, or --all")
    problems = _tell(keys, bus) if bus is not None else []
    if bus is None:
        say("nats-server does not know yet: attestgate keys upgrade FOLDER --bus URL")
    say(WRITE_AGAIN)
    _say_issue_again(folder)
    if problems:
        raise Refusal(*problems)


def _check_one(role: str | None, name: str | None, file: Path | None, everybody: bool) -> None:
    """Raises Refusal unless the arguments name credentials in one of the three ways."""
    ways = {(True, True, False, False), (True, False, False, True), (False, False, True, False)}
    if (role is not None, name is not None, file is not None, everybody) not in ways:
        raise wrong("ROLE NAME", "ROLE NAME, or ROLE --all, or --file FILE", "something else")
    if role is not None:
        credentials.check_role(role)


def _meant(keys: Path, role: str | None, name: str | None, file: Path | None) -> list[ledger.Issued]:
    """The credentials that the arguments name: at least one, of one name. Raises Refusal."""
    if file is not None:
        return [credentials.issued(file, credentials.load(keys))]
    assert role is not None
    if found := ledger.read(keys).of(role, name):
        return found
    raise Refusal.because(
        "credentials.unknown",
        f"{role} {name}",
        expected=f"a credential in {keys / ledger.LEDGER_FILE}",
        found="none",
        action="correct role and name; or give the credentials file (--file), or revoke all of the role (--all)",
    )


def _say_issue_again(folder: Path) -> None:
    """Name the credentials in the folder that are good for nothing, and the command for each."""
    trust = credentials.load(folder / "bus")
    for path in sorted((folder / "credentials").glob("*.creds")):
        try:
            entry = credentials.issued(path, trust)
        except Refusal as refusal:
            say(refusal.reasons[0].sentence())
            continue
        named = credentials.fits(entry.role, entry.name)
        if named and not accounts.is_revoked(trust.account(entry.role), entry):
            continue
        why = "revoked" if named else f"for {entry.name}, which no longer names an application"
        name = entry.name if named else f"HOST.{entry.name}"
        say(f"{path} is {why}: attestgate keys credentials {folder} {entry.role} {name} --output {path}")


def _tell(keys: Path, bus: str) -> list[Reason]:
    """Tell the servers, and say of each whether it knows; the reasons of those that do not. Raises Refusal."""
    told = asyncio.run(tell(bus, keys))
    for server in told:
        say(f"{server.address} {'knows' if server.problem is None else 'does not know'}")
    return [server.problem for server in told if server.problem is not None]
