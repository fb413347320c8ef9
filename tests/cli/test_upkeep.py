"""`attestgate quarantine`, `enrolments` and `keys rotate` against a real server and a worker that goes on meanwhile."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import tomli_w

from attestgate.bus import subjects
from attestgate.bus.auth import credentials
from attestgate.bus.logs import set_up_logs
from attestgate.bus.server.embedded import EmbeddedServer
from attestgate.manager.handlers.quarantine import Quarantine
from attestgate.manager.records.record_cipher import epoch_of
from attestgate.manager.records.storage_keys import read
from attestgate.schemas.base import Reason, pack
from attestgate.schemas.binding import PROTOCOL
from attestgate.schemas.enrolment import RecheckNow, Revoke
from attestgate.schemas.messages import HostHello
from tests.support.cli.command import Ran
from tests.support.cli.fixtures import Run
from tests.support.manager.fleet import Fleet
from tests.support.manager.world import GATEWAY, OPERATOR, TRUST_DOMAIN, World
from tests.support.threats import rows, threat

pytestmark = pytest.mark.stack
WITHIN_S = 60.0
FAULT = Reason(code="worker.fault", field="message", expected="one that can be handled", found="KeyError", action="-")


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    set_up_logs()  # the worker's and the agents' lines are not the command's
    world = await asyncio.to_thread(World, tmp_path / "world")
    async with (
        EmbeddedServer(tmp_path / "bus", credentials.load(world.keys / "bus")) as server,
        Fleet(world, server.url, tmp_path / "fleet") as fleet,
    ):
        await fleet.worker("manager-0")
        await fleet.gateway()
        yield fleet


def settings_file(fleet: Fleet, name: str, table: dict[str, Any], role: str) -> Path:
    """A settings file beside the fleet, with the bus and this role's credentials in it."""
    credential = fleet.folder / f"{name}.creds"
    credentials.issue(fleet.world.keys / "bus", role, name, credential)
    path = fleet.folder / f"{name}.toml"
    path.write_text(tomli_w.dumps(table | {"bus": {"url": [fleet.url], "credentials": str(credential)}}))
    return path


@pytest.fixture
def operator(fleet: Fleet) -> Path:
    key = fleet.world.keys / "operators" / f"{OPERATOR}.pem"
    return settings_file(fleet, OPERATOR, operator_table(fleet, key), "operator")


def operator_table(fleet: Fleet, key: Path) -> dict[str, Any]:
    """An operator's file, but for the bus."""
    managers = {"trust_domain": TRUST_DOMAIN, "manager_identity": [fleet.world.public["manager_identity"]]}
    return {"name": OPERATOR, "identity": str(key), **managers}


async def put_aside(fleet: Fleet, host: str) -> str:
    """A host's hello, in quarantine as a worker would have put it there; its name."""
    hello = HostHello(
        version=PROTOCOL, host=host, random=bytes(32), boot_id="boot", agent_version="1.0", can_give=["sgx", "ima"]
    )
    bus = await fleet.join("manager", f"aside-{host}")
    quarantine = Quarantine(bus, "manager-9", _nobody)
    name = await quarantine.put(subjects.inbound("host", host, "hello"), pack(hello), 5, FAULT, int(time.time()))
    assert name is not None
    return name


async def _nobody(subject: str, data: bytes) -> None:
    raise AssertionError("only a worker retries")


async def test_messages_put_aside_are_listed_shown_retried_and_dropped(
    fleet: Fleet, operator: Path, attestgate: Run
) -> None:
    async def quarantine(*arguments: str) -> Ran:
        return await asyncio.to_thread(attestgate, "quarantine", *arguments, "-O", operator)

    assert (await quarantine("list")).out == "nothing in quarantine\n"
    await fleet.enrol_host("h1")
    good, bad = await put_aside(fleet, "h1"), await put_aside(fleet, "h2")

    listed = json.loads((await quarantine("list", "--json")).out)
    assert {(m["message"], m["subject"], m["attempts"], m["worker"]) for m in listed} == {
        (good, subjects.inbound("host", "h1", "hello"), 5, "manager-9"),
        (bad, subjects.inbound("host", "h2", "hello"), 5, "manager-9"),
    }
    assert not any("data" in message for message in listed)
    table = (await quarantine("list")).out
    assert good[:16] in table and bad[:16] in table and "worker.fault" in table
    shown = (await quarantine("show", good[:12])).out
    assert f"message: {good}" in shown and "worker.fault" in shown and "attempts: 5" in shown

    retried = await quarantine("retry", good[:12])
    assert (retried.status, retried.out) == (0, "retry: applied\n")
    await fleet.until("host", "h1", "challenged", WITHIN_S)
    refused = await quarantine("retry", bad[:12])  # nobody enrolled h2
    assert refused.status == 1 and "enrolment.unknown" in refused.err
    assert [m["message"] for m in json.loads((await quarantine("list", "--json")).out)] == [bad]

    assert "quarantine.unknown" in (await quarantine("drop", "")).err
    dropped = await quarantine("drop", bad[:12])
    assert (dropped.status, dropped.out) == (0, "drop: applied\n")
    gone = await quarantine("show", bad[:12])
    assert gone.status == 1 and "quarantine.unknown" in gone.err


async def test_what_is_no_message_in_quarantine_ends_no_command(fleet: Fleet, operator: Path, attestgate: Run) -> None:
    """The bus can hold anything there."""
    good = await put_aside(fleet, "h1")
    bucket = (await fleet.join("manager", "junk")).bucket("quarantine")
    junk = {
        "nothing": b"",
        "garbage": b"garbage",
        "no-reasons": msgpack.packb(
            {"subject": "x", "data": b"", "attempts": 1, "at": 1, "worker": "manager-9", "reasons": []}
        ),
    }
    for name, value in junk.items():
        await bucket.put(f"attest.v1.in.host.h9.{name}", value)
    listed = await asyncio.to_thread(attestgate, "quarantine", "list", "--json", "-O", operator)
    assert listed.status == 0, listed.err
    assert [message["message"] for message in json.loads(listed.out)] == [good]


async def test_enrolments_are_listed_and_signed_again(
    fleet: Fleet, operator: Path, attestgate: Run, tmp_path: Path
) -> None:
    """With the key of the settings (a worker knows no other): what a key takes along is signed again in one go."""

    async def enrolments(*arguments: str | Path, answer: str = "") -> Ran:
        return await asyncio.to_thread(attestgate, "enrolments", *arguments, "-O", operator, typed=answer)

    await fleet.enrol_host("h1")
    await fleet.enrol_app("a1", "h1")
    await fleet.order(Revoke(kind="app", id="a1", reason="the key is lost"))
    key = fleet.world.operator.public.hex()
    listed = json.loads((await enrolments("list", "--json")).out)
    assert {(one["subject"], one["what"].split(" ")[0], one["operator"], one["key"]) for one in listed} == {
        ("app.a1", "revoked:", OPERATOR, key[:16]),
        (f"gateway.{GATEWAY}", "identity", OPERATOR, key[:16]),
        ("host.h1", "mrenclave", OPERATOR, key[:16]),
    }
    assert (await enrolments("resign")).out == "nothing to sign\n"
    assert (await enrolments("resign", "--without", key[:8])).out == "nothing to sign\n"
    refused = await enrolments("resign", "--from", "nobody")
    assert (refused.status, "cli.argument: KEY" in refused.err) == (2, True)
    declined = await enrolments("resign", "--from", key[:8], answer="n\n")
    assert declined.status == 1 and "app.a1" in declined.out and "signed" not in declined.out
    signed = await enrolments("resign", "--from", key[:8], answer="y\n")
    assert signed.status == 0, signed.err
    assert signed.out.partition("[y/N]: ")[2] == f"app.a1: signed\ngateway.{GATEWAY}: signed\nhost.h1: signed\n"
    again = json.loads((await enrolments("list", "--json")).out)
    assert [one["what"] for one in again] == [one["what"] for one in listed]


@threat(rows.LIST_OLDER)
async def test_a_list_of_the_bus_that_is_older_undoes_no_revocation(
    fleet: Fleet, operator: Path, attestgate: Run
) -> None:
    await fleet.enrol_host("h1")
    bucket = (await fleet.join("manager", "bus")).bucket("enrolment")
    older = await bucket.get("host.h1")
    assert older is not None and older.value is not None
    await fleet.order(Revoke(kind="host", id="h1", reason="stolen"))
    await bucket.put("host.h1", older.value)
    key = fleet.world.operator.public.hex()
    arguments = ("enrolments", "resign", "--from", key[:8], "--yes", "-O", operator)
    refused = await asyncio.to_thread(attestgate, *arguments)
    assert refused.status == 1 and "command.unseen: enrolment/host.h1" in refused.err


async def test_what_no_manager_put_in_force_is_not_listed(fleet: Fleet, operator: Path, attestgate: Run) -> None:
    await fleet.enrol_host("h1")
    bucket = (await fleet.join("manager", "junk")).bucket("enrolment")
    entry = await bucket.get("host.h1")
    assert entry is not None and entry.value is not None
    for key, value in (("host.h2", entry.value), ("host.h3", b"junk"), ("host.h4", b"")):
        await bucket.put(key, value)
    listed = await asyncio.to_thread(attestgate, "enrolments", "list", "--json", "-O", operator)
    assert listed.status == 0, listed.err
    subjects_listed = [one["subject"] for one in json.loads(listed.out)]
    assert subjects_listed == [f"gateway.{GATEWAY}", "host.h1"]


async def test_storage_keys_are_rotated_while_sessions_live(fleet: Fleet, attestgate: Run) -> None:
    keys = fleet.world.keys / "manager" / "storage-keys.json"
    manager = fleet.world.manager_settings(fleet.folder / "rotates", "rotates", fleet.timing, "mlkem768-x25519")
    table = manager.model_dump(mode="json", exclude_none=True)
    settings = settings_file(fleet, "rotates", table, "manager")
    bucket = (await fleet.join("manager", "looks")).bucket("sessions")

    async def epochs() -> set[int]:
        entries = [await bucket.get(key) for key in await bucket.keys()]
        return {epoch_of(entry.value) for entry in entries if entry is not None and entry.value is not None}

    async def rotate(*arguments: str) -> str:
        ran = await asyncio.to_thread(attestgate, "keys", "rotate", "-s", settings, *arguments)
        assert ran.status == 0, ran.err
        return ran.out

    await fleet.enrol_host("h1")
    await fleet.host("h1")
    await fleet.until("host", "h1", "trusted", WITHIN_S)
    assert await epochs() == {1}
    said = await rotate()
    assert said.startswith(f"added epoch 2 to {keys}\nresealed ") and said.endswith("destroyed epochs [1]\n")
    assert (await epochs(), set(read(keys).epochs)) == ({2}, {"2"})
    await fleet.order(RecheckNow(kind="host", id="h1"))
    await fleet.until("host", "h1", "rechecked", WITHIN_S)

    assert await rotate("--no-destroy") == f"added epoch 3 to {keys}\n"
    assert (await epochs(), set(read(keys).epochs)) == ({2}, {"2", "3"})
    assert (await rotate("--no-add")).endswith("destroyed epochs [2]\n")
    assert (await epochs(), set(read(keys).epochs)) == ({3}, {"3"})
