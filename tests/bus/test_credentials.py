"""Keys and credentials: made once, private, and only as good as the key that signed them."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from base64 import urlsafe_b64decode
from pathlib import Path
from urllib.parse import urlsplit

import nkeys
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attestgate.bus.api import BusError
from attestgate.bus.auth.account_claims import SYSTEM
from attestgate.bus.auth.credentials import (
    Holder,
    create,
    holder,
    issue,
    load,
)
from attestgate.bus.auth.nats_jwt import new_seed, public, sign, write_private
from attestgate.bus.auth.permissions import ROLES
from attestgate.bus.client.nats import connect
from attestgate.bus.layout import COPIED
from attestgate.bus.server.embedded import EmbeddedServer
from attestgate.schemas.base import Refusal
from tests.support.bus.everything import name_of
from tests.support.reasons import refusal_code
from tests.support.threats import rows, threat


def claims(token: str) -> dict[str, object]:
    body = token.split(".")[1]
    decoded: dict[str, object] = json.loads(urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return decoded


@threat(rows.SECRETS_ON_DISK)
def test_every_secret_file_is_private_and_trust_holds_none(keys: Path) -> None:
    seeds = sorted(path.name for path in keys.glob("*.seed"))
    assert seeds == sorted([*(f"{role}.seed" for role in (SYSTEM, *ROLES)), "bus-operator.seed"])
    text = (keys / "trust.json").read_text()
    for name in seeds:
        assert (keys / name).stat().st_mode & 0o777 == 0o600
        assert (keys / name).read_text() not in text
    assert keys.stat().st_mode & 0o777 == 0o700


def test_keys_are_never_overwritten(keys: Path) -> None:
    before = (keys / "bus-operator.seed").read_bytes()
    with pytest.raises(Refusal) as refusal:
        create(keys)
    assert refusal_code(refusal) == "file.write"
    assert (keys / "bus-operator.seed").read_bytes() == before


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refusal):
        write_private(tmp_path / "link", b"secret")
    assert not (tmp_path / "elsewhere").exists()


def test_jetstream_is_the_managers_and_bounded_with_the_viewers(keys: Path) -> None:
    for account in load(keys).accounts:
        nats = claims(account.jwt)["nats"]
        assert isinstance(nats, dict)
        limits = nats["limits"]
        assert ("disk_storage" in limits) is (account.role in ("manager", "viewer"))
        assert bool(nats.get("exports")) is (account.role in ("manager", "viewer", "gateway"))
        assert bool(nats.get("imports")) is (account.role != SYSTEM)
        if account.role == "viewer":
            assert limits["streams"] == len(COPIED)
            assert min(limits["mem_storage"], limits["disk_storage"], limits["consumer"]) > 0


@pytest.mark.parametrize("role", ROLES)
def test_a_credential_says_whose_it_is_and_carries_no_permissions_of_its_own(
    role: str, keys: Path, tmp_path: Path
) -> None:
    path, name = tmp_path / "x.creds", name_of(role, "name-1")
    issue(keys, role, name, path)
    issue(keys, role, name, path)  # a new one replaces the old
    assert path.stat().st_mode & 0o777 == 0o600
    assert holder(path) == Holder(role, name)
    nats = claims(path.read_text().split("\n")[1])["nats"]
    assert isinstance(nats, dict)
    assert set(nats) == {"type", "issuer_account", "tags", "version"}


@threat(rows.CREDENTIAL_OTHERS)
@pytest.mark.parametrize("name", ["", "UPPER", "a.b", "*", ">", "a b", "../x", "{{name()}}", "a" * 64])
def test_a_name_that_could_widen_a_subject_is_refused(name: str, keys: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refusal:
        issue(keys, "host", name, tmp_path / "x.creds")
    assert refusal_code(refusal) == "credentials.name"
    assert not (tmp_path / "x.creds").exists()


def test_an_unknown_role_is_refused(keys: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refusal:
        issue(keys, "root", "x", tmp_path / "x.creds")
    assert refusal_code(refusal) == "credentials.role"


def test_a_folder_without_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refusal:
        issue(tmp_path, "host", "x", tmp_path / "x.creds")
    assert refusal_code(refusal) == "credentials.seed"
    (tmp_path / "host.seed").write_bytes(b"SUAnonsense")
    with pytest.raises(Refusal) as refusal:
        issue(tmp_path, "host", "x", tmp_path / "x.creds")
    assert refusal_code(refusal) == "credentials.seed"


def test_a_missing_credential_is_named(tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refusal:
        holder(tmp_path / "none.creds")
    assert refusal.value.reasons[0].field == str(tmp_path / "none.creds")


@given(st.text() | st.binary().map(lambda b: "-----BEGIN NATS USER JWT-----\n" + b.hex() + "\n"))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_other_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.creds"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(Refusal) as refusal:
        holder(path)
    assert refusal_code(refusal) == "credentials.file"


INFO = b'INFO {"server_id": "x", "version": "2.15.1", "max_payload": 1024, "nonce": "n"}\r\n'


async def cannot_connect(server: EmbeddedServer, path: Path) -> None:
    with pytest.raises(BusError, match="rejects the credential"):
        await connect([server.url], path)


async def test_a_server_that_refuses_and_resets_is_one_error_and_no_log_line(
    keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the operator of a wrong credential reads is the refusal alone, however the connection ends."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(INFO)
        await reader.readuntil(b"PING\r\n")
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.write(b"-ERR 'Authorization Violation'\r\n")
        writer.transport.abort()

    credentials = tmp_path / "x.creds"
    issue(keys, "operator", "operator", credentials)
    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(BusError, match="rejects the credential"):
            await connect([f"nats://127.0.0.1:{port}"], credentials)
    assert "bus.error" not in "".join(capsys.readouterr())


async def test_a_connection_that_is_given_up_is_closed(keys: Path, tmp_path: Path) -> None:
    """By who ends the process while the server has not answered yet, say."""
    asked, closed = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(INFO)
        await reader.readuntil(b"PING\r\n")
        asked.set()
        await reader.read()
        closed.set()
        writer.transport.abort()

    credentials = tmp_path / "x.creds"
    issue(keys, "operator", "operator", credentials)
    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server, asyncio.timeout(10):
        port = server.sockets[0].getsockname()[1]
        connecting = asyncio.create_task(connect([f"nats://127.0.0.1:{port}"], credentials))
        await asked.wait()
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        await closed.wait()


def credential(path: Path, token: str, seed: bytes) -> Path:
    path.write_text(
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed.decode()}\n------END USER NKEY SEED------\n"
    )
    return path


def user_claims(keys: Path, role: str, **more: object) -> dict[str, object]:
    account = load(keys).account(role).key
    return {"type": "user", "issuer_account": account, "tags": [f"role:{role}"], **more}


@threat(rows.CREDENTIAL_OTHERS)
@pytest.mark.stack
async def test_forged_credentials_are_refused(server: EmbeddedServer, keys: Path, tmp_path: Path) -> None:
    """One signed by another role's key, one by itself, one with permissions added, one with a changed name."""
    user, path = new_seed(nkeys.PREFIX_BYTE_USER), tmp_path / "x.creds"
    host = (keys / "host.seed").read_bytes()
    everything = {"allow": [">"]}
    forgeries = [
        sign(host, "m", public(user), user_claims(keys, "manager")),
        sign(new_seed(nkeys.PREFIX_BYTE_ACCOUNT), "m", public(user), user_claims(keys, "manager")),
        sign(host, "m", public(user), user_claims(keys, "host", pub=everything, sub=everything)),
    ]
    for token in forgeries:
        await cannot_connect(server, credential(path, token, user))
    good = sign(host, "h1", public(user), user_claims(keys, "host"))
    bus = await connect([server.url], credential(path, good, user))
    await bus.close()
    other_key = new_seed(nkeys.PREFIX_BYTE_USER)
    await cannot_connect(server, credential(path, good, other_key))  # the JWT alone is not enough


@threat(rows.CREDENTIAL_OTHERS)
@pytest.mark.stack
@pytest.mark.parametrize("said", [{}, {"user": "manager", "pass": ""}, {"auth_token": ""}, {"jwt": "", "sig": ""}])
async def test_without_a_credential_nobody_connects(server: EmbeddedServer, said: dict[str, str]) -> None:
    """There is no user for those who name none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(server.url).port)
    async with asyncio.timeout(15):
        assert (await reader.readline()).startswith(b"INFO ")
        writer.write(f"CONNECT {json.dumps(said)}\r\nPING\r\n".encode())
        answer = await reader.read()  # up to the end of the connection
    writer.transport.abort()
    assert b"Authorization Violation" in answer and b"PONG" not in answer


@threat(rows.CREDENTIAL_OTHERS)
@pytest.mark.stack
async def test_a_credential_may_not_be_stretched_by_its_tag(server: EmbeddedServer, keys: Path, tmp_path: Path) -> None:
    """The tag only tells the client what to ask for; what it gets is by the key that signed."""
    user = new_seed(nkeys.PREFIX_BYTE_USER)
    token = sign(
        (keys / "host.seed").read_bytes(), "h1", public(user), user_claims(keys, "host", tags=["role:manager"])
    )
    bus = await connect([server.url], credential(tmp_path / "x.creds", token, user))
    with pytest.raises(BusError):
        await bus.bucket("sessions").get("x")
    await bus.close()
