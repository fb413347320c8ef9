"""`attestgate log` with an operator's credential on the real server: head, verify, show, and what it says of harm."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from attestgate.bus.auth.credentials import issue
from attestgate.bus.server.embedded import EmbeddedServer
from attestgate.cli.main import app
from attestgate.manager.audit import head
from attestgate.manager.audit.merkle import includes, leaf_hash
from attestgate.manager.verification.ear import jwks
from attestgate.schemas.audit import Continued, KeyInForce, open_decision
from attestgate.schemas.base import Refusal
from attestgate.schemas.checkpoint import open_checkpoint
from tests.support.audit.decisions import decided
from tests.support.audit.keeper import KEY, MANAGERS, NOW, SESSION, SIGNERS, Keeper, copied, rewrite
from tests.support.bus.fixtures import Join
from tests.support.manager.world import LONG, World

pytestmark = pytest.mark.stack

Command = Callable[..., Awaitable[Any]]


@pytest.fixture
def command(server: EmbeddedServer, keys: Path, tmp_path: Path) -> Command:
    """Run `attestgate log` as an operator."""
    issue(keys, "operator", "ann", tmp_path / "ann.creds")
    bus = {"url": server.url, "credentials": str(tmp_path / "ann.creds")}
    managers = {"trust_domain": KEY.deployment, "manager_identity": [KEY.public.hex()]}
    (tmp_path / "operator.toml").write_text(
        tomli_w.dumps({"name": "ann", "identity": str(tmp_path / "unread.pem"), "bus": bus} | managers)
    )
    (tmp_path / "jwks.json").write_text(json.dumps(jwks(SIGNERS)))
    environment = {
        "ATTESTGATE_OPERATOR": str(tmp_path / "operator.toml"),
        "ATTESTGATE_JWKS": str(tmp_path / "jwks.json"),
    }

    async def run(*arguments: str) -> Any:
        return await asyncio.to_thread(lambda: CliRunner().invoke(app, ["log", *arguments], env=environment))

    return run


async def test_a_head_is_kept_and_the_log_goes_on_from_it(command: Command, join: Join, tmp_path: Path) -> None:
    bus = await join("manager", "m")
    none = await command("verify")
    assert isinstance(none.exception, Refusal) and none.exception.reasons[0].code == "log.none"
    keeper = Keeper(bus, tmp_path / "one")
    await keeper.decide(1, 3)
    await keeper.grow()
    saved = tmp_path / "head.txt"
    assert (await command("head", "-o", str(saved))).exit_code == 0
    assert saved.read_text(encoding="utf-8") == keeper.log.checkpoint
    assert (await command("head")).stdout == keeper.log.checkpoint
    await keeper.decide(4, 6)
    await keeper.grow()
    verified = await command("verify", "--since", str(saved))
    assert verified.exit_code == 0 and "valid: 6 decisions" in verified.stdout and "head of size 3" in verified.stdout
    await rewrite(bus, (await copied(bus)).stored[:4])
    cut = await command("verify", "--since", str(saved), "--json")
    assert cut.exit_code == 1
    assert [finding["code"] for finding in json.loads(cut.stdout)["findings"]] == ["log.truncated"]
    assert "log.truncated: entries 4, 5" in (await command("verify")).stderr
    nothing = await command("verify", "--since", str(tmp_path / "none.txt"))
    assert isinstance(nothing.exception, Refusal) and nothing.exception.reasons[0].code == "cli.argument"


async def test_what_was_decided_comes_with_its_proof(command: Command, join: Join, tmp_path: Path) -> None:
    keeper = Keeper(await join("manager", "m"), tmp_path / "one")
    await keeper.decide(1, 3)
    await keeper.decide(1, 2, session="cd" * 16)
    await keeper.grow()
    by_session = json.loads((await command("show", SESSION[:8], "--json")).stdout)
    head = open_checkpoint(by_session["checkpoint"], SIGNERS)
    assert [entry["decision"]["number"] for entry in by_session["entries"]] == [1, 2, 3]
    for entry in by_session["entries"]:
        path = [base64.b64decode(node) for node in entry["path"]]
        leaf = leaf_hash(base64.b64decode(entry["entry"]))
        assert includes(leaf, entry["index"], head.size, path, head.root)
    by_serial = await command("show", "001001")
    assert isinstance(by_serial.exception, Refusal) and by_serial.exception.reasons[0].code == "log.unknown"
    nothing = await command("show", "")
    assert isinstance(nothing.exception, Refusal) and nothing.exception.reasons[0].code == "log.unknown"
    by_subject = (await command("show", "a1")).stdout
    assert by_subject.count("app a1  admitted  by attestgate/w") == 5
    assert '"serial": "1003"' in by_subject


async def test_a_log_of_several_trees(
    command: Command, join: Join, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries are numbered through, and what is shown of a closed tree leads to the signed head by the seam."""
    monkeypatch.setattr(head, "TILE", 4)
    keeper = Keeper(await join("manager", "m"), tmp_path / "one", most=8)
    saved = [tmp_path / f"{size}.txt" for size in (3, 9)]
    for path in saved:
        await keeper.decide(1, 6 if path == saved[1] else 3)
        await keeper.decide(1, 6 if path == saved[1] else 0, session="cd" * 16)
        await keeper.grow()
        assert (await command("head", "-o", str(path))).exit_code == 0
    assert (keeper.head.tree, keeper.head.size) == (2, 5)
    since = [argument for path in saved for argument in ("--since", str(path))]
    verified = await command("verify", *since)
    assert verified.exit_code == 0, verified.stderr
    assert "valid: 13 decisions" in verified.stdout
    assert "extends the head of size 3, 5 of tree 2" in verified.stdout
    shown = json.loads((await command("show", "a1", "--json")).stdout)
    newest, closed = open_checkpoint(shown["checkpoint"], SIGNERS), shown["closed"]
    seam, path = base64.b64decode(shown["seam"]["entry"]), shown["seam"]["path"]
    assert includes(leaf_hash(seam), 0, newest.size, [base64.b64decode(node) for node in path], newest.root)
    subject = next(stored.subject for stored in (await copied(keeper.bus)).stored if stored.data == seam)
    fact = open_decision(subject, seam, MANAGERS).fact
    assert isinstance(fact, Continued)
    assert (closed["tree"], closed["first"], closed["size"], closed["root"]) == (1, 0, fact.size, fact.root)
    trees = {1: (closed["size"], bytes.fromhex(fact.root)), 2: (newest.size, newest.root)}
    for entry in shown["entries"]:
        size, root = trees[entry["tree"]]
        nodes = [base64.b64decode(node) for node in entry["path"]]
        assert includes(leaf_hash(base64.b64decode(entry["entry"])), entry["index"], size, nodes, root)
    assert [entry["number"] for entry in shown["entries"]] == [*range(8), *range(9, 13)]
    assert "\n8  " in "\n" + (await command("show", "managers")).stdout
    await keeper.decide(7, 12)
    await keeper.grow()
    assert keeper.head.tree == 3
    gone = await command("verify", "--since", str(saved[0]), "--json")
    assert gone.exit_code == 1
    assert "log.gone" in [finding["code"] for finding in json.loads(gone.stdout)["findings"]]


async def test_a_rotated_storage_key_is_in_the_log(
    server: EmbeddedServer, keys: Path, join: Join, tmp_path: Path
) -> None:
    world = World(tmp_path / "world")
    settings = world.manager_settings(tmp_path / "state", "manager", LONG, "x25519")
    issue(keys, "manager", "m", tmp_path / "m.creds")
    table = settings.model_dump(mode="json", exclude_none=True)
    table["bus"] = {"url": server.url, "credentials": str(tmp_path / "m.creds")}
    (tmp_path / "manager.toml").write_text(tomli_w.dumps(table))
    bus = await join("manager", "auditor")
    rotate = ["keys", "rotate", "-s", str(tmp_path / "manager.toml")]
    ran = await asyncio.to_thread(lambda: CliRunner().invoke(app, rotate))
    assert ran.exit_code == 0, ran.exception
    (decision,) = await decided(bus, world, NOW)
    fact = decision.fact
    assert isinstance(fact, KeyInForce)
    assert (fact.key, fact.name, fact.gone) == ("storage-epoch", "2", ["1"])


async def test_another_deployments_key_opens_nothing(command: Command, join: Join, tmp_path: Path) -> None:
    keeper = Keeper(await join("manager", "m"), tmp_path / "one")
    await keeper.decide(1, 1)
    await keeper.grow()
    (tmp_path / "jwks.json").write_text(json.dumps(jwks([b"\x05" * 32])))
    refused = await command("verify")
    assert isinstance(refused.exception, Refusal) and refused.exception.reasons[0].code == "signature.invalid"
    (tmp_path / "jwks.json").write_text('{"keys": 1}')
    wrong = await command("head")
    assert isinstance(wrong.exception, Refusal) and wrong.exception.reasons[0].code == "cli.argument"
