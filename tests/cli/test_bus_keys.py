"""`attestgate keys upgrade` and `keys revoke-credential`: what they say was done, what was not, and what to do."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import pytest

from attestgate.bus.api import BusError
from attestgate.bus.auth import accounts, ledger
from attestgate.bus.auth.credentials import JWT_BEGINS, create, credentials_text, issue, issued, load
from attestgate.bus.auth.nats_jwt import payload_of, read_seed, sign
from attestgate.bus.client.nats import connect
from attestgate.bus.server.embedded import EmbeddedServer
from attestgate.bus.server.firewall import rules
from tests.support.bus.older import make_older
from tests.support.cli.command import NOBODY, Ran
from tests.support.cli.fixtures import Run

MANAGERS = ("--managers", "10.0.1.0/24", "--managers", "2001:db8::/64")
NEXT = "next: write nats-server's configuration again (attestgate keys server), for its next start\n"


@dataclass
class Keys:
    """A folder as `keys init` makes it, as far as the bus is concerned, and the commands on it."""

    folder: Path
    run: Run

    @property
    def bus(self) -> Path:
        return self.folder / "bus"

    @property
    def trust(self) -> Path:
        return self.bus / "trust.json"

    def issue(self, role: str, name: str) -> Path:
        path = self.folder / "credentials" / f"{role}-{name}.creds"
        issue(self.bus, role, name, path)
        return path

    def revoked(self, path: Path) -> bool:
        entry = issued(path, load(self.bus))
        return accounts.is_revoked(load(self.bus).account(entry.role), entry)

    def revoke(self, *arguments: object) -> Ran:
        return self.run("keys", "revoke-credential", self.folder, *arguments)

    def upgrade(self, *arguments: object) -> Ran:
        return self.run("keys", "upgrade", self.folder, *arguments)


@pytest.fixture
def keys(attestgate: Run, tmp_path: Path) -> Iterator[Keys]:
    create(tmp_path / "keys" / "bus")
    (tmp_path / "keys" / "credentials").mkdir()
    yield Keys(tmp_path / "keys", attestgate)


@pytest.fixture
async def server(keys: Keys, tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    async with EmbeddedServer(tmp_path / "server", load(keys.bus)) as running:
        yield running


def test_a_servers_configuration_comes_with_the_limits_of_its_kernel(keys: Keys, tmp_path: Path) -> None:
    files = ("--output", tmp_path / "nats.conf", "--firewall", tmp_path / "bus.nft")
    ran = keys.run("keys", "server", keys.folder, "--store", tmp_path, *files, "--port", 4333, *MANAGERS)
    assert ran.status == 0, ran.err
    assert f"wrote {tmp_path / 'bus.nft'}; load it first, as root: nft -f {tmp_path / 'bus.nft'}\n" in ran.out
    assert (tmp_path / "bus.nft").read_text() == rules([4333], [ip_network("10.0.1.0/24"), ip_network("2001:db8::/64")])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--firewall", "bus.nft", "--managers", "10.0.1.1/24"), "found 10.0.1.1/24 has host bits set"),
        (("--managers", "10.0.1.0/24"), "expected a file for the rules that --managers is for"),
    ],
)
def test_a_network_mistyped_writes_nothing(keys: Keys, tmp_path: Path, given: tuple[str, ...], said: str) -> None:
    ran = keys.run("keys", "server", keys.folder, "--store", tmp_path, "--output", tmp_path / "nats.conf", *given)
    assert ran.status == 2 and said in ran.err
    assert not (tmp_path / "nats.conf").exists()


def older_application(keys: Keys) -> Path:
    """A credential from when an application's name was its ID alone."""
    path = keys.issue("app", "host-1.app-1")
    lines = path.read_text().split("\n")
    claims = payload_of(lines[1])
    token = sign(read_seed(keys.bus / "app.seed"), "app-1", claims["sub"], claims["nats"], at=claims["iat"])
    assert lines[0] + "\n" == JWT_BEGINS
    older = path.with_name("app-app-1.creds")
    older.write_text(credentials_text(token, lines[6].encode()))
    path.unlink()
    return older


def test_without_a_bus_the_folder_changes_and_it_is_said_that_the_server_does_not_know(keys: Keys) -> None:
    stolen, other = keys.issue("host", "host-1"), keys.issue("host", "host-2")
    ran = keys.revoke("host", "host-1")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == (
        f"revoked in {keys.trust}: 1 of host host-1\n"
        "nats-server does not know yet: attestgate keys upgrade FOLDER --bus URL\n"
        f"{NEXT}"
        f"{stolen} is revoked: attestgate keys credentials {keys.folder} host host-1 --output {stolen}\n"
    )
    assert keys.revoked(stolen) and not keys.revoked(other)
    again = keys.revoke("host", "host-1")
    assert again.status == 0 and "0 of host host-1\nrevoked already: 1\n" in again.out


def test_by_its_file_a_credential_is_revoked_that_no_ledger_has(keys: Keys) -> None:
    stolen, other = keys.issue("host", "host-1"), keys.issue("host", "host-2")
    (keys.bus / ledger.LEDGER_FILE).unlink()
    unknown = keys.revoke("host", "host-1")
    assert unknown.status == 2 and "credentials.unknown: host host-1" in unknown.line and "--file" in unknown.line
    assert not keys.revoked(stolen)
    assert keys.revoke("--file", stolen).status == 0
    assert (keys.revoked(stolen), keys.revoked(other)) == (True, False)
    keys.issue("host", "host-3")  # with which a ledger begins, that is not complete
    ran = keys.revoke("host", "host-3")
    assert "not among them: what was issued before this folder had a ledger" in ran.out


def test_all_of_a_role(keys: Keys) -> None:
    hosts, gateway = [keys.issue("host", "host-1"), keys.issue("host", "host-2")], keys.issue("gateway", "gateway-1")
    ran = keys.revoke("host", "--all")
    assert ran.status == 0 and "every credential of role host issued until now" in ran.out
    assert all(keys.revoked(path) for path in hosts) and not keys.revoked(gateway)
    assert all(f"--output {path}\n" in ran.out for path in hosts) and str(gateway) not in ran.out


@pytest.mark.parametrize(
    "arguments",
    [[], ["host"], ["host", "h1", "--all"], ["--all"], ["host", "h1", "--file", "x.creds"], ["--file", "x", "--all"]],
    ids=" ".join,
)
def test_it_must_be_clear_which_are_meant(keys: Keys, arguments: list[str]) -> None:
    before = keys.trust.read_bytes()
    ran = keys.revoke(*arguments)
    assert ran.status == 2 and "cli.argument: ROLE NAME" in ran.line and ran.out == ""
    assert keys.trust.read_bytes() == before


def test_a_role_a_file_and_a_folder_that_are_wrong_are_named(keys: Keys, tmp_path: Path) -> None:
    before = keys.trust.read_bytes()
    assert "credentials.role" in keys.revoke("root", "--all").line
    assert "credentials.file" in keys.revoke("--file", tmp_path / "none.creds").line
    create(tmp_path / "other")
    issue(tmp_path / "other", "host", "host-1", tmp_path / "other.creds")
    assert "credentials.bus" in keys.revoke("--file", tmp_path / "other.creds").line
    for command in (["revoke-credential", tmp_path, "host", "--all"], ["upgrade", tmp_path]):
        ran = keys.run("keys", *command)
        assert ran.status == 2 and str(tmp_path / "bus") in ran.line
    assert keys.trust.read_bytes() == before


def test_what_was_done_is_said_if_the_server_cannot_be_told(keys: Keys) -> None:
    stolen = keys.issue("host", "host-1")
    ran = keys.revoke("host", "host-1", "--bus", NOBODY)
    assert ran.status == 1 and keys.revoked(stolen)
    assert f"revoked in {keys.trust}: 1 of host host-1\n{NOBODY} does not know\n" in ran.out
    assert f"bus.accounts.untold: {NOBODY}" in ran.line and "attestgate keys upgrade FOLDER --bus URL" in ran.line


@pytest.mark.stack
async def test_a_server_that_missed_it_is_told_by_an_upgrade(keys: Keys, server: EmbeddedServer) -> None:
    stolen = keys.issue("host", "host-1")
    bus = await connect([server.url], stolen)
    ran = await asyncio.to_thread(keys.revoke, "host", "host-1", "--bus", f"{NOBODY},{server.url}")
    assert ran.status == 1 and f"{NOBODY} does not know\n{server.url} knows\n" in ran.out
    async with asyncio.timeout(30):
        while not bus.client.is_closed:
            await asyncio.sleep(0.05)
    fresh = keys.issue("host", "host-1")  # in the place of the stolen one
    await (await connect([server.url], fresh)).close()

    await asyncio.to_thread(keys.revoke, "host", "host-1")
    await (await connect([server.url], fresh)).close()
    ran = await asyncio.to_thread(keys.upgrade, "--bus", server.url)
    assert ran.status == 0
    assert ran.out.startswith(
        f"nothing to do: {keys.trust} has this version's permissions\n{server.url} knows\n{fresh} is revoked: "
    )
    with pytest.raises(BusError, match="rejects the credential"):
        await connect([server.url], fresh)


def test_an_upgrade_with_nothing_to_do_changes_nothing(keys: Keys) -> None:
    keys.issue("app", "host-1.app-1")
    before = {path: path.read_bytes() for path in keys.bus.iterdir()}
    ran = keys.upgrade()
    assert (ran.status, ran.out) == (0, f"nothing to do: {keys.trust} has this version's permissions\n")
    assert {path: path.read_bytes() for path in keys.bus.iterdir()} == before


def test_an_upgrade_of_an_older_folder_says_what_to_restart_and_what_to_issue(keys: Keys) -> None:
    application = older_application(keys)
    make_older(keys.bus)
    ran = keys.upgrade()
    assert ran.status == 0, ran.err
    assert f"made {keys.bus / 'system.seed'}\n" in ran.out and f"made {keys.bus / 'viewer.seed'}\n" in ran.out
    assert "nats-server does not know yet: restart it, once, as below\n" + NEXT in ran.out
    assert f"attestgate keys credentials {keys.folder} app HOST.ID\n" in ran.out
    assert (
        f"{application} is for app-1, which no longer names an application: "
        f"attestgate keys credentials {keys.folder} app HOST.app-1 --output {application}\n"
    ) in ran.out
    assert keys.upgrade().out.startswith("nothing to do")


def test_a_file_that_is_no_credential_hinders_nothing(keys: Keys) -> None:
    stolen = keys.issue("host", "host-1")
    shutil.copy(keys.trust, keys.folder / "credentials" / "a.creds")
    ran = keys.revoke("host", "host-1")
    assert ran.status == 0 and keys.revoked(stolen)
    assert "credentials.file: " in ran.out and f"{stolen} is revoked" in ran.out
