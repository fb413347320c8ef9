"""`attestgate verify ima` and `attestgate policy`, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cli.policy import app as policy_app
from cli.verify_ima import ImaCommand, verify_ima
from schemas.host_policy import HostPolicy
from tests.ima.lists import ANCHORED, ENTRIES, NONCES, VECTORS, document, recorded

KEYS = {"accepted", "boot_state", "entries", "anchored_entries", "violations", "pcr10", "unknown", "reasons"}
app = typer.Typer()
app.command(cls=ImaCommand)(verify_ima)


def run(*arguments: object, status: int) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == status, result.output
    assert result.stderr == ""
    shown: dict[str, Any] = json.loads(result.stdout)
    assert shown.keys() >= KEYS and shown["accepted"] is (status == 0)
    assert shown["pcr10"].keys() == {"sha1", "sha256", "sha384"}
    return shown


def quote_of(name: str, **changes: object) -> list[object]:
    parts = {
        "--tpm-quote": VECTORS / f"{name}.quote.msg",
        "--tpm-signature": VECTORS / f"{name}.quote.sig",
        "--tpm-pcrs": VECTORS / f"{name}.quote.pcrs",
        "--ak": VECTORS / "ak.pem",
        "--nonce": NONCES[name].hex(),
    } | changes
    return [part for pair in parts.items() if pair[1] is not None for part in pair]


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.json"
    path.write_text(document(recorded("clean")).text())
    return path


@pytest.mark.parametrize("form", ["bin", "ascii"])
def test_clean_with_quote_and_policy_is_accepted(form: str, policy: Path) -> None:
    shown = run(VECTORS / f"clean.{form}", "--policy", policy, *quote_of("clean"), status=0)
    assert (shown["entries"], shown["anchored_entries"]) == (ENTRIES["clean"], ANCHORED["clean"])
    assert shown["boot_state"] == "not_judged" and shown["unknown"] == [] and shown["reasons"] == []


def test_without_a_policy_a_quote_is_enough_and_it_says_so() -> None:
    assert run(VECTORS / "drift.bin", *quote_of("drift"), status=0)["policy"] is None
    result = CliRunner().invoke(app, [str(VECTORS / "drift.bin"), *map(str, quote_of("drift"))])
    assert result.exit_code == 0 and "no policy was applied" in result.stderr
    assert json.loads(result.stdout)["violations"] == 1


def test_drift_is_refused_with_its_entries(policy: Path) -> None:
    shown = run(VECTORS / "drift.bin", "--policy", policy, *quote_of("drift"), status=1)
    assert [entry["index"] for entry in shown["unknown"]] == [448, 449, 450, 451, 452, 453, 455, 456, 457, 458]
    assert [reason["code"] for reason in shown["reasons"]] == ["ima.unknown", "ima.violation"]
    assert set(shown["reasons"][0]) == {"code", "field", "expected", "found", "action"}
    assert shown["unknown"][5]["path"] == r"/usr/local/bin/odd_name\x09tab"
    result = CliRunner().invoke(app, [str(VECTORS / "drift.bin"), "--policy", str(policy)])
    assert result.exit_code == 1 and "refused" in result.stderr and "ima.unknown" in result.stderr


def test_unanchored_is_refused_unless_a_host_policy_accepts_it(policy: Path, tmp_path: Path) -> None:
    shown = run(VECTORS / "clean.bin", "--policy", policy, status=1)
    assert [reason["code"] for reason in shown["reasons"]] == ["ima.unanchored"]
    host = tmp_path / "host.json"
    sha256 = shown["policy"]
    host.write_text(HostPolicy(version=1, runtime_policy=sha256, accept_unanchored=True).model_dump_json())
    assert run(VECTORS / "clean.bin", "--policy", policy, "--host-policy", host, status=0)["integrity"] == "unanchored"


def test_a_bad_quote_is_a_reason_and_the_list_is_shown_all_the_same(policy: Path) -> None:
    shown = run(VECTORS / "clean.bin", "--policy", policy, *quote_of("clean", **{"--nonce": "00"}), status=1)
    assert [reason["code"] for reason in shown["reasons"]] == ["tpm.nonce", "ima.unanchored"]
    assert shown["entries"] == ENTRIES["clean"] and shown["anchored_entries"] == 0
    swapped = {"--tpm-quote": VECTORS / "drift.quote.msg"}
    assert run(VECTORS / "clean.bin", *quote_of("clean", **swapped), status=1)["reasons"][0]["code"] == "tpm.signature"


@pytest.mark.parametrize("content", [b"", b"\x0a", b"10 no", bytes(100), b"{}"])
def test_malformed_evidence_is_judged_and_a_malformed_policy_cannot_be_used(
    content: bytes, tmp_path: Path, policy: Path
) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(content)
    assert run(bad, "--policy", policy, status=1)["reasons"]
    assert run(VECTORS / "clean.bin", "--policy", bad, status=2)["reasons"][0]["code"].startswith("file.")
    arguments = ["--policy", policy, "--host-policy", bad]
    assert run(VECTORS / "clean.bin", *arguments, status=2)["reasons"][0]["code"].startswith("file.")
    assert run(VECTORS / "clean.bin", *quote_of("clean", **{"--ak": bad}), status=1)["reasons"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["missing.bin"],
        [VECTORS],
        [VECTORS / "clean.bin", "--policy", "missing.json"],
        [VECTORS / "clean.bin", "--host-policy", VECTORS / "cmdline"],
        [VECTORS / "clean.bin", "--nonce", "00"],
        [VECTORS / "clean.bin", *quote_of("clean", **{"--nonce": "xyz"})],
        [VECTORS / "clean.bin", *quote_of("clean", **{"--ak": None})],
        [VECTORS / "clean.bin", "--at", "yesterday"],
        [VECTORS / "clean.bin", "--at", "2026-01-01T00:00:00"],
    ],
)
def test_unreadable_files_and_wrong_arguments_are_two(arguments: list[object]) -> None:
    assert run(*arguments, status=2)["reasons"][0]["code"] == "cli.argument"


def test_the_time_is_the_one_given() -> None:
    assert run(VECTORS / "clean.bin", "--at", "2026-11-24T08:00:00Z", status=1)["at"].startswith("2026-11-24T08:00:00")


def test_learn_then_verify_then_add(tmp_path: Path) -> None:
    learned, more = tmp_path / "learned.json", tmp_path / "more.json"
    runner = CliRunner()
    clean, drift = str(VECTORS / "clean.bin"), str(VECTORS / "drift.ascii")
    result = runner.invoke(policy_app, ["learn", clean, "-o", str(learned)])
    assert result.exit_code == 0 and "442 paths" in result.stdout
    run(clean, "--policy", learned, *quote_of("clean"), status=0)
    arguments = ["learn", drift, "--add", str(learned), "--exclude", "/root/out/", "-o", str(more)]
    assert runner.invoke(policy_app, arguments).exit_code == 0
    shown = run(VECTORS / "drift.bin", "--policy", more, *quote_of("drift"), status=1)
    assert [reason["code"] for reason in shown["reasons"]] == ["ima.violation"]
    assert json.loads(more.read_text())["excludes"] == ["/root/out/"]


def test_learn_refuses_bad_lists_and_patterns_and_writes_nothing(tmp_path: Path) -> None:
    output, clean = tmp_path / "policy.json", str(VECTORS / "clean.bin")
    runner = CliRunner()
    for arguments, status in (
        ([str(VECTORS / "cmdline")], 1),
        ([clean, "--exclude", "(?=x)"], 1),
        ([clean, "--add", clean], 1),
        (["missing"], 2),
    ):
        assert runner.invoke(policy_app, ["learn", *arguments, "-o", str(output)]).exit_code == status
        assert not output.exists()
    assert runner.invoke(policy_app, ["learn", clean, "-o", str(tmp_path)]).exit_code == 2


def test_lint(policy: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    assert runner.invoke(policy_app, ["lint", str(policy)]).exit_code == 0
    wide = tmp_path / "wide.json"
    wide.write_text(document(recorded("clean"), excludes=["/usr/.*"]).text())
    result = runner.invoke(policy_app, ["lint", str(wide), "--json"])
    assert result.exit_code == 1
    assert [finding["code"] for finding in json.loads(result.stdout)["findings"]] == ["policy.wide"]
    assert "policy.wide" in runner.invoke(policy_app, ["lint", str(wide)]).stdout
    broken = runner.invoke(policy_app, ["lint", str(VECTORS / "cmdline")])
    assert broken.exit_code == 1 and "file.json" in broken.stdout
    assert runner.invoke(policy_app, ["lint", "missing"]).exit_code == 2
