"""A revoked credential is disconnected and stays out, whatever restarts; an older folder's accounts are upgraded."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import nkeys
import pytest
from nats.aio.client import Client, RawCredentials

from attestgate.bus.api import BusError
from attestgate.bus.auth import accounts, ledger
from attestgate.bus.auth.account_claims import SYSTEM
from attestgate.bus.auth.credentials import OPERATOR_FILE, Trust, create, credentials_text, issue, issued, load
from attestgate.bus.auth.nats_jwt import new_seed, public, read_seed, sign
from attestgate.bus.auth.permissions import ROLES
from attestgate.bus.client.accounts import tell
from attestgate.bus.client.nats import NatsBus, connect
from attestgate.bus.client.rights import try_rights
from attestgate.bus.client.setup import ensure
from attestgate.bus.server.cluster import EmbeddedCluster
from attestgate.bus.server.embedded import EmbeddedServer, configuration
from attestgate.schemas.base import Refusal
from tests.support.bus.older import make_older
from tests.support.reasons import refusal_code
from tests.support.threats import rows, threat

WITHIN_S = 30.0


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Keys that this test may change."""
    create(tmp_path / "keys")
    return tmp_path / "keys"


def credential(keys: Path, name: str, role: str = "host") -> Path:
    path = keys.parent / f"{role}-{name}-{len(ledger.read(keys).issued)}.creds"
    issue(keys, role, name, path)
    return path


async def is_let_in(url: str, path: Path) -> bool:
    try:
        bus = await connect([url], path)
    except BusError as error:
        assert "rejects the credential" in str(error)
        return False
    await bus.close()
    return True


async def is_closed(bus: NatsBus) -> None:
    """Return once the server has refused the connection for good: the client gives up and closes."""
    async with asyncio.timeout(WITHIN_S):
        while not bus.client.is_closed:
            await asyncio.sleep(0.05)


def revoke(keys: Path, name: str, role: str = "host") -> int:
    return accounts.revoke(keys, role, ledger.read(keys).of(role, name))


async def told(url: str, keys: Path) -> list[str | None]:
    """The code of what keeps each server from knowing; None of one that knows."""
    return [server.problem.code if server.problem else None for server in await tell(url, keys)]


# In the folder


def test_the_ledger_has_every_credential_and_no_secret(own: Path) -> None:
    path = credential(own, "h1")
    credential(own, "h1")
    entries = ledger.read(own).of("host", "h1")
    assert len({entry.key for entry in entries}) == 2 and issued(path, load(own)) == entries[0]
    assert ledger.read(own).complete
    text = (own / ledger.LEDGER_FILE).read_text()
    assert path.read_text().split("\n")[6] not in text and text.count('"key"') == 2
    assert (own / ledger.LEDGER_FILE).stat().st_mode & 0o777 == 0o600


def test_a_ledger_that_began_later_says_so(own: Path) -> None:
    (own / ledger.LEDGER_FILE).unlink()
    assert ledger.read(own).of("host") == []
    credential(own, "h1")
    assert not ledger.read(own).complete and len(ledger.read(own).of("host", "h1")) == 1


def test_a_ledger_that_cannot_be_written_leaves_no_credential(own: Path) -> None:
    (own / ledger.LEDGER_FILE).write_text("{}")
    with pytest.raises(Refusal) as refusal:
        credential_path = own.parent / "x.creds"
        issue(own, "host", "h1", credential_path)
    assert refusal_code(refusal) == "file.fields" and not credential_path.exists()


def test_a_revocation_keeps_keys_and_permissions_and_is_newer(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credential(own, "h1")
    before = load(own)
    monkeypatch.setattr(time, "time", lambda: 1.0)  # a clock that was set back
    assert (revoke(own, "h1"), revoke(own, "h1")) == (1, 0)
    after = load(own)
    assert [a for a in after.accounts if a.role != "host"] == [a for a in before.accounts if a.role != "host"]
    old, new = before.account("host").claims(), after.account("host").claims()
    assert new["iat"] == old["iat"] + 1 and new["sub"] == old["sub"]
    (entry,) = ledger.read(own).of("host")
    assert new["nats"] == old["nats"] | {"revocations": {entry.key: entry.at}}


def test_what_is_issued_after_all_were_revoked_is_good_even_in_that_second(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    for _ in range(2):
        credential(own, "h1")
        accounts.revoke_all(own, "host")
        assert all(accounts.is_revoked(load(own).account("host"), entry) for entry in ledger.read(own).of("host"))
    entry = issued(credential(own, "h1"), load(own))
    assert not accounts.is_revoked(load(own).account("host"), entry)


def test_a_credential_of_another_bus_is_not_taken_for_one_of_this(own: Path, tmp_path: Path) -> None:
    create(tmp_path / "other" / "keys")
    path = credential(tmp_path / "other" / "keys", "h1")
    with pytest.raises(Refusal) as refusal:
        issued(path, load(own))
    assert refusal_code(refusal) == "credentials.bus"
    (own / OPERATOR_FILE).write_bytes(read_seed(tmp_path / "other" / "keys" / OPERATOR_FILE))
    for change in (lambda: accounts.upgrade(own), lambda: accounts.revoke_all(own, "host")):
        with pytest.raises(Refusal) as refusal:
            change()
        assert refusal_code(refusal) == "credentials.operator"


@pytest.mark.parametrize("jwt", ["", "nonsense", "eyJhbGciOiJlZDI1NTE5LW5rZXkifQ.e30.x"])
def test_a_trust_file_that_was_damaged_is_named(own: Path, jwt: str) -> None:
    trust = load(own)
    damaged = [account.model_copy(update={"jwt": jwt}) for account in trust.accounts]
    for bad in (Trust(operator=jwt, accounts=trust.accounts), Trust(operator=trust.operator, accounts=damaged)):
        (own / "trust.json").write_text(bad.model_dump_json())
        for change in (lambda: accounts.upgrade(own), lambda: accounts.revoke_all(own, "host")):
            with pytest.raises(Refusal) as refusal:
                change()
            assert refusal_code(refusal) == "credentials.trust"
        assert load(own) == bad


def test_an_account_that_an_older_folder_lacks_is_named(own: Path) -> None:
    make_older(own)
    with pytest.raises(Refusal) as refusal:
        accounts.revoke_all(own, "viewer")
    assert refusal_code(refusal) == "credentials.account"


# On the server


@threat(rows.CREDENTIAL_KEPT)
@pytest.mark.stack
async def test_a_revoked_credential_is_cut_off_and_the_others_are_not(own: Path, tmp_path: Path) -> None:
    old = load(own)
    stolen, good = credential(own, "h1"), credential(own, "h2")
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EmbeddedServer(tmp_path / "server", old))
        thief = await stack.enter_async_context(await connect([server.url], stolen))
        other = await stack.enter_async_context(await connect([server.url], good))
        assert revoke(own, "h1") == 1
        assert not thief.client.is_closed  # nothing has told the server
        assert await told(server.url, own) == [None]
        await is_closed(thief)
        assert not await is_let_in(server.url, stolen)
        assert await is_let_in(server.url, credential(own, "h1"))
        await other.flush()
        assert other.connections == 1
        assert await told(server.url, own) == [None]  # twice is once
        await other.flush()
        assert other.connections == 1


@threat(rows.CREDENTIAL_KEPT)
@pytest.mark.stack
async def test_no_restart_undoes_a_revocation(own: Path, tmp_path: Path) -> None:
    """With the configuration from before it, and with the one from after it, in either order."""
    old = load(own)
    first, second = credential(own, "h1"), credential(own, "h2")

    async def let_in(trust: Trust) -> list[bool]:
        async with EmbeddedServer(tmp_path / "server", trust) as server:
            return [await is_let_in(server.url, path) for path in (first, second)]

    assert await let_in(old) == [True, True]
    async with EmbeddedServer(tmp_path / "server", old) as server:
        revoke(own, "h1")
        assert await told(server.url, own) == [None]
    assert await let_in(old) == [False, True]
    revoke(own, "h2")  # which nobody tells the server, but for its new configuration
    assert await let_in(load(own)) == [False, False]
    assert await let_in(old) == [False, False]


@pytest.mark.stack
async def test_all_of_a_role_are_revoked_and_no_other_role(own: Path, tmp_path: Path) -> None:
    hosts, gateway = [credential(own, name) for name in ("h1", "h2")], credential(own, "g1", "gateway")
    async with EmbeddedServer(tmp_path / "server", load(own)) as server:
        accounts.revoke_all(own, "host")
        assert await told(server.url, own) == [None]
        assert [await is_let_in(server.url, path) for path in (*hosts, gateway)] == [False, False, True]
        assert await is_let_in(server.url, credential(own, "h1"))


@threat(rows.CREDENTIAL_KEPT)
@pytest.mark.stack
async def test_an_older_copy_of_the_folder_cannot_take_a_revocation_back(own: Path, tmp_path: Path) -> None:
    stolen = credential(own, "h1")
    shutil.copytree(own, tmp_path / "copy")
    async with EmbeddedServer(tmp_path / "server", load(own)) as server:
        revoke(own, "h1")
        assert await told(server.url, own) == [None]
        assert await told(server.url, tmp_path / "copy") == ["bus.accounts.newer"]
        other = credential(tmp_path / "copy", "h2")
        for _ in range(3):  # newer than the server's, by its time
            accounts.revoke(tmp_path / "copy", "host", [issued(other, load(tmp_path / "copy"))])
            other = credential(tmp_path / "copy", "h2")
        assert await told(server.url, tmp_path / "copy") == ["bus.accounts.newer"]
        assert not await is_let_in(server.url, stolen)
        accounts.revoke_all(tmp_path / "copy", "host")  # which loses nothing
        assert await told(server.url, tmp_path / "copy") == [None]
        assert not await is_let_in(server.url, stolen)


@pytest.mark.stack
async def test_what_keeps_a_server_from_knowing_is_named(own: Path, tmp_path: Path) -> None:
    create(tmp_path / "other")
    async with EmbeddedServer(tmp_path / "server", load(tmp_path / "other")) as server:
        both = f"{server.url},nats://127.0.0.1:1"
        assert await told(both, own) == ["bus.accounts.configuration", "bus.accounts.untold"]
    (_, unreached) = await tell(f"{server.url},nats://127.0.0.1:1", own)
    assert unreached.problem is not None and "Connect call failed" in unreached.problem.found
    (own / "system.seed").unlink()
    with pytest.raises(Refusal) as refusal:
        await tell(server.url, own)
    assert refusal_code(refusal) == "bus.accounts.key"


@pytest.mark.stack
async def test_a_server_with_accounts_in_its_configuration_alone_is_named(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that an earlier version's configuration started."""

    def older(*arguments: Any) -> dict[str, object]:
        return configuration(*arguments) | {"resolver": "MEMORY"}

    monkeypatch.setattr("attestgate.bus.server.embedded.configuration", older)
    async with EmbeddedServer(tmp_path / "server", load(own)) as server:
        assert await told(server.url, own) == ["bus.accounts.configuration"]


@pytest.mark.stack
async def test_the_credential_that_tells_may_do_nothing_else(own: Path, tmp_path: Path) -> None:
    """The system account could otherwise read who is connected, and stop the server or its streams."""
    user = new_seed(nkeys.PREFIX_BYTE_USER)
    claims = {"type": "user", "issuer_account": load(own).account(SYSTEM).key}
    text = credentials_text(sign(read_seed(own / "system.seed"), "x", public(user), claims), user)
    problems: list[str] = []

    async def problem(error: Exception) -> None:
        problems.append(str(error).lower())

    async with EmbeddedServer(tmp_path / "server", load(own)) as server:
        client = Client()
        await client.connect(server.url, user_credentials=RawCredentials(text), error_cb=problem)
        refused = ["$SYS.REQ.SERVER.PING", "$SYS.REQ.CLAIMS.DELETE", "$SYS.REQ.SERVER.X.RELOAD"]
        for subject in refused:
            await client.publish(subject, b"")
        for subject in ("$SYS.>", ">", "_INBOX.>"):
            await client.subscribe(subject)
        await client.flush()
        await client.flush()
        await client.close()
    assert len([p for p in problems if "permissions violation for publish" in p]) == len(refused)
    assert len([p for p in problems if "permissions violation for subscription" in p]) == 3


@threat(rows.CREDENTIAL_KEPT)
@pytest.mark.stack
async def test_every_server_of_a_cluster_knows_and_one_that_was_down_hears_of_it(own: Path, tmp_path: Path) -> None:
    stolen, later = credential(own, "h1"), credential(own, "h2")
    async with EmbeddedCluster(tmp_path / "cluster", load(own)) as cluster:
        urls = [server.url for server in cluster.servers]
        thieves = [await connect([url], stolen) for url in urls]
        revoke(own, "h1")
        assert await told(cluster.url, own) == [None, None, None]
        for thief in thieves:
            await is_closed(thief)
        assert [await is_let_in(url, stolen) for url in urls] == [False, False, False]

        await cluster.servers[2].stop()
        revoke(own, "h2")
        assert await told(cluster.url, own) == [None, None, "bus.accounts.untold"]
        await cluster.servers[2].start()  # with the configuration from before both
        assert not await is_let_in(urls[2], stolen)
        async with asyncio.timeout(WITHIN_S):
            while await is_let_in(urls[2], later):
                await asyncio.sleep(0.1)
        assert [await is_let_in(url, later) for url in urls] == [False, False, False]


# An older folder


OLDER = {
    "gateway": dataclasses.replace(ROLES["gateway"], publish=("attest.v1.in.host.*.hello",)),
    "host": dataclasses.replace(ROLES["host"], subscribe=(), publish=()),
}


@pytest.fixture
def older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keys made by a version in which a gateway could do other things, and a host less."""
    with monkeypatch.context() as patch:
        for module in ("credentials", "permissions"):
            patch.setattr(f"attestgate.bus.auth.{module}.ROLES", {**ROLES, **OLDER})
        create(tmp_path / "keys")
    return tmp_path / "keys"


async def differences(url: str, path: Path) -> list[str]:
    found = await try_rights(url, path)
    return found.missing + found.excess


@threat(rows.CREDENTIAL_KEPT)
@pytest.mark.stack
async def test_an_upgrade_gives_credentials_the_new_rights_and_keeps_revocations(older: Path, tmp_path: Path) -> None:
    host, gateway, stolen = (credential(older, "h1"), credential(older, "g1", "gateway"), credential(older, "h2"))
    seeds = {path.name: path.read_bytes() for path in older.glob("*.seed")}
    revoke(older, "h2")
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EmbeddedServer(tmp_path / "server", load(older)))
        manager = await stack.enter_async_context(await connect([server.url], credential(older, "m", "manager")))
        await ensure(manager)
        connected = await stack.enter_async_context(await connect([server.url], host))
        assert await differences(server.url, host) and await differences(server.url, gateway)
        done = accounts.upgrade(older)
        assert {"host", "gateway", "manager"} <= set(done.roles) and SYSTEM not in done.roles
        assert done.tellable and done.made == []
        assert await told(server.url, older) == [None]
        assert [await differences(server.url, path) for path in (host, gateway)] == [[], []]
        await connected.publish("attest.v1.in.host.h1.hello", b"x")  # it passes from account to account, and is stored
        await manager.flush()
        assert connected.connections == 2 and manager.connections == 1
        assert not await is_let_in(server.url, stolen)
        await server.stop()
        await server.start()  # with the older configuration
        assert [await differences(server.url, path) for path in (host, gateway)] == [[], []]
    assert {path.name: path.read_bytes() for path in older.glob("*.seed")} == seeds
    assert accounts.upgrade(older).roles == []


@pytest.mark.stack
async def test_a_folder_that_could_tell_no_server_can_after_one_restart(own: Path, tmp_path: Path) -> None:
    before = make_older(own)
    host = credential(own, "h1")
    done = accounts.upgrade(own)
    assert (set(done.made), done.tellable) == ({"system.seed", "viewer.seed"}, False)
    assert {SYSTEM, "viewer"} <= set(done.roles)
    assert all((own / name).stat().st_mode & 0o777 == 0o600 for name in done.made)
    again = accounts.upgrade(own)
    assert (again.roles, again.made, again.tellable) == ([], [], True)
    async with EmbeddedServer(tmp_path / "server", before) as server:
        assert await told(server.url, own) == ["bus.accounts.configuration"]
    async with EmbeddedServer(tmp_path / "server", load(own)) as server:
        assert await told(server.url, own) == [None]
        assert await is_let_in(server.url, host) and await is_let_in(server.url, credential(own, "v", "viewer"))


def test_an_upgrade_that_was_interrupted_goes_on(own: Path, tmp_path: Path) -> None:
    """The seed was there, trust.json was not yet replaced."""
    trust = load(own)
    rest = [account for account in trust.accounts if account.role != "viewer"]
    (own / "trust.json").write_text(Trust(operator=trust.operator, accounts=rest).model_dump_json())
    seed = read_seed(own / "viewer.seed")
    assert "viewer" in accounts.upgrade(own).roles
    assert read_seed(own / "viewer.seed") == seed
    scope = load(own).account("viewer").claims()["nats"]["signing_keys"][0]
    assert scope["key"] == public(seed)
