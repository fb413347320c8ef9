"""What an operator sees and says, by the command, while the stack runs."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from attestgate.bus.auth import credentials
from attestgate.compose.local.stack import Stack
from attestgate.schemas.events import Event
from tests.support.story import APPS, HOST, REVOKED, operator_file, session_of

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]


async def rows(stack: Stack, command: str) -> list[dict[str, Any]]:
    """What a listing command says in JSON."""
    status, output = await stack.command(command, "--json")
    assert status == 0, output
    found: list[dict[str, Any]] = json.loads(output)
    return found


async def test_sessions_lists_who_stands(stack: Stack) -> None:
    found = {(row["role"], row["id"], row["session"]): row for row in await rows(stack, "sessions")}
    for app in APPS:
        row = found["app", app, str(session_of(stack, app))]
        assert row["state"] in ("ADMITTED", "RECHECKING")
        assert (row["host"], row["simulated"], row["integrity"]) == (HOST, True, "unanchored")
        assert ("host", HOST, row["host_session"]) in found
    assert [row["role"] for row in found.values()] == sorted((row["role"] for row in found.values()), reverse=True)


@pytest.mark.parametrize(("command", "role", "id"), [("hosts", "host", HOST), ("apps", "app", APPS[1])])
async def test_hosts_and_apps_list_their_own(stack: Stack, command: str, role: str, id: str) -> None:
    found = await rows(stack, command)
    assert {row["role"] for row in found} == {role}
    assert id in {row["id"] for row in found}


async def test_a_person_gets_a_table(stack: Stack) -> None:
    status, output = await stack.command("sessions")
    assert status == 0
    assert output.split()[:4] == ["role", "id", "host", "state"]
    assert APPS[0] in output


async def test_explain_tells_a_session_from_its_start(stack: Stack) -> None:
    session = str(session_of(stack, APPS[0]))
    status, output = await stack.command("explain", session, "--json")
    assert status == 0, output
    told = [Event.model_validate(event) for event in json.loads(output)["events"]]
    assert {event.session for event in told if event.kind == "app"} == {session}
    assert [event.what for event in told if event.kind == "app"][:6] == [
        "challenged", "waiting-for-key", "granted", "proven", "certified", "admitted",
    ]  # fmt: skip
    status, output = await stack.command("explain", session)
    assert status == 0
    (admitted,) = [line for line in output.splitlines() if "CERTIFIED -> ADMITTED" in line]
    assert admitted.endswith("[simulated]")


async def test_explain_of_no_session_says_so(stack: Stack) -> None:
    status, output = await stack.command("explain", "00" * 16)
    assert status == 1
    assert output.startswith("attestgate: session.unknown:") and output.count("\n") == 1


async def test_recheck_asks_now(stack: Stack) -> None:
    status, output = await stack.command("recheck", "host", HOST)
    assert (status, output) == (0, "recheck: applied\n")


async def test_enrolling_by_the_command_is_applied(stack: Stack) -> None:
    measurement = stack.measurement("app")
    what = ["--mrenclave", measurement, "--host", f"{HOST}:1", "--allow", "read-only"]
    status, output = await stack.command("enrol", "app", "app-9", *what)
    assert (status, output) == (0, "enrol: applied\n")
    status, output = await stack.command("revoke", "app", "app-9", "--reason", "not needed")
    assert status == 0 and re.fullmatch(REVOKED, output), output


async def test_credentials_of_another_deployment_are_not_taken(stack: Stack, tmp_path: Path) -> None:
    credentials.create(tmp_path / "bus")
    credentials.issue(tmp_path / "bus", "operator", "operator", tmp_path / "foreign.creds")
    bus = {"url": stack.server.url, "credentials": str(tmp_path / "foreign.creds")}
    status, output = await stack.command("sessions", operator=operator_file(stack, tmp_path, bus=bus))
    assert status == 1
    assert output.count("\n") == 1 and "rejects the credential" in output and "foreign.creds" in output


async def test_an_operator_that_the_managers_do_not_know_is_refused(stack: Stack, tmp_path: Path) -> None:
    identity = str(stack.plan.keys / "gateways" / "gateway-1.pem")
    mutineer = operator_file(stack, tmp_path, identity=identity)
    status, output = await stack.command("revoke", "app", APPS[0], "--reason", "mutiny", operator=mutineer)
    assert status == 1
    assert output.startswith("attestgate: signature.signer:") and output.count("\n") == 1
    assert session_of(stack, APPS[0]) is not None


async def test_a_managers_key_that_others_may_read_is_refused(stack: Stack, tmp_path: Path) -> None:
    table = tomllib.loads(stack.plan.settings("manager").read_text(encoding="utf-8"))
    loose = tmp_path / "identity.pem"
    loose.write_bytes(Path(table["identity"]).read_bytes())
    loose.chmod(0o644)
    table |= {"identity": str(loose), "name": "manager-x", "state_dir": str(tmp_path / "state")}
    stack.plan.write("manager-x", table)
    child = await stack.children.start("manager-x", "manager", "run", "-s", str(stack.plan.settings("manager-x")))
    assert await child.process.wait() == 2
    log = stack.log("manager-x")
    assert log.startswith(f"attestgate: keys.file: {loose}:") and "mode 0644" in log and log.count("\n") == 1
