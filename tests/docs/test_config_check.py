"""`attestgate config check`: whose settings a file holds, and what is wrong with them, each key by name."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from attestgate.compose.local.plan import Plan
from attestgate.schemas.prototype import PROTOTYPE
from tests.support.cli.fixtures import Run

FILES = {
    "manager": "manager",
    "gateway": "gateway",
    "host": "host-1@machine-a",
    "app": "app-1@machine-a-app-1",
    "operator": "operator",
    "measured": "host.measured",
    "nginx": "nginx",
}


def table(deployed: Plan, kind: str) -> dict[str, Any]:
    return tomllib.loads(deployed.settings(FILES[kind]).read_text(encoding="utf-8"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


@pytest.mark.parametrize("kind", FILES)
def test_a_right_file_is_recognised(attestgate: Run, deployed: Plan, kind: str) -> None:
    path = deployed.settings(FILES[kind])
    ran = attestgate("config", "check", path)
    assert (ran.status, ran.out, ran.err) == (0, f"{path}: right, as the settings of: {kind}\n", "")


@pytest.mark.parametrize("kind", FILES)
def test_as_json(attestgate: Run, deployed: Plan, kind: str) -> None:
    path = deployed.settings(FILES[kind])
    ran = attestgate("config", "check", path, "--json")
    assert ran.status == 0
    assert json.loads(ran.out) == {"file": str(path), "process": kind, "valid": True, "reasons": []}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_with_a_wrong_key_is_still_recognised(attestgate: Run, deployed: Plan, file: Path, kind: str) -> None:
    file.write_text(tomli_w.dumps(table(deployed, kind) | {"colour": "blue"}), encoding="utf-8")
    ran = attestgate("config", "check", file, "--json")
    found = json.loads(ran.out)
    assert (ran.status, found["valid"], found["process"]) == (2, False, kind)
    assert [reason["field"] for reason in found["reasons"]] == [f"{file}: colour"]


def test_every_wrong_key_is_named_each_on_a_line(attestgate: Run, deployed: Plan, file: Path) -> None:
    settings = table(deployed, "gateway") | {"colour": "blue", "reconcile_s": 0}
    del settings["identity"]
    file.write_text(tomli_w.dumps(settings), encoding="utf-8")
    ran = attestgate("config", "check", file)
    lines = ran.err.splitlines()
    assert ran.status == 2 and ran.out == ""
    assert sorted(line.split(f"{file}: ")[1].split(":")[0] for line in lines) == ["colour", "identity", "reconcile_s"]
    assert all(line.startswith("attestgate: settings.key: ") for line in lines)


def test_a_value_is_never_repeated_it_may_be_secret(attestgate: Run, deployed: Plan, file: Path) -> None:
    settings = table(deployed, "gateway") | {"identity": ["hush-hush"], "manager_identity": ["hush-hush"]}
    file.write_text(tomli_w.dumps(settings), encoding="utf-8")
    ran = attestgate("config", "check", file)
    assert ran.status == 2 and "hush" not in ran.err


def test_the_process_can_be_named(attestgate: Run, deployed: Plan) -> None:
    ran = attestgate("config", "check", deployed.settings("gateway"), "--process", "manager", "--json")
    found = json.loads(ran.out)
    assert (ran.status, found["process"]) == (2, "manager")
    assert any(reason["field"].endswith(": state_dir") for reason in found["reasons"])


@pytest.mark.parametrize("text", ["", "profile = 'production'\n"])
def test_a_file_that_could_be_anybodys_asks_whose_it_is_or_says_what_is_missing(
    attestgate: Run, file: Path, text: str
) -> None:
    file.write_text(text, encoding="utf-8")
    ran = attestgate("config", "check", file)
    assert ran.status == 2
    assert ran.err.startswith("attestgate: settings.")


@pytest.mark.parametrize("old", sorted(PROTOTYPE.keys() - {"measurement_list"}))
def test_a_name_of_the_prototype_is_recognised(attestgate: Run, file: Path, old: str) -> None:
    file.write_text(f'{old} = "x"\n', encoding="utf-8")
    ran = attestgate("config", "check", file)
    assert ran.status == 2
    assert f"settings.prototype: {file}: {old}: expected {PROTOTYPE[old][0]}" in ran.line


def test_a_missing_file_and_one_that_is_no_toml(attestgate: Run, file: Path) -> None:
    missing = attestgate("config", "check", file)
    assert missing.status == 2 and f"settings.read: {file}" in missing.line
    file.write_bytes(b"\xff = ")
    broken = attestgate("config", "check", file, "--json")
    assert broken.status == 2
    assert json.loads(broken.out)["reasons"][0]["code"] == "settings.toml"


@pytest.mark.parametrize(("replicas", "status"), [("1", 0), ("3", 0), ("2", 2), ("many", 2)])
def test_replicas_can_be_set_by_the_environment(
    attestgate: Run, deployed: Plan, monkeypatch: pytest.MonkeyPatch, replicas: str, status: int
) -> None:
    monkeypatch.setenv("ATTESTGATE_BUS__REPLICAS", replicas)
    ran = attestgate("config", "check", deployed.settings("manager"))
    assert ran.status == status
    assert ("bus.replicas" in ran.err) == (status == 2)


def test_the_environment_counts(attestgate: Run, deployed: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTESTGATE_TIMING__LEASE_S", "1")
    ran = attestgate("config", "check", deployed.settings("manager"))
    assert ran.status == 2 and "timing.lease_s" in ran.line
