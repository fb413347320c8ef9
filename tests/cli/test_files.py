"""Files that a command cannot read or write: one line that names the path and why, exit status 2, nothing left."""

from __future__ import annotations

from pathlib import Path

import pytest

from attestgate.compose.local.plan import Plan
from tests.support.cli.fixtures import Run

POLICY = '{"version": 1, "sgx_policy": "sgx.json", "host_policy": "host.json", "runtime_policy": "runtime.json"}'


@pytest.mark.parametrize("command", [["policy", "put"], ["policy", "diff", "--against", "hosts"]], ids=" ".join)
def test_a_missing_bundle_is_named(attestgate: Run, deployed: Plan, tmp_path: Path, command: list[str]) -> None:
    ran = attestgate(*command, tmp_path / "none", "-O", deployed.settings("operator"))
    assert ran.status == 2
    assert f"{tmp_path / 'none'}: expected" in ran.line and "No such file" in ran.line


@pytest.mark.parametrize("command", [["policy", "put"], ["policy", "diff", "--against", "hosts"]], ids=" ".join)
def test_a_file_that_is_no_bundle_is_named(attestgate: Run, deployed: Plan, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "set.json").write_text(POLICY, encoding="utf-8")
    ran = attestgate(*command, tmp_path / "set.json", "-O", deployed.settings("operator"))
    assert ran.status == 2
    assert f"{tmp_path / 'set.json'}: expected what `policy sign` wrote" in ran.line


def test_a_certificates_folder_that_cannot_be_made_is_named(attestgate: Run, deployed: Plan, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    manager = deployed.settings("manager")
    ran = attestgate("gateway", "certificate", "-s", manager, "--name", "gw.example.org", "-o", taken / "folder")
    assert ran.status == 2 and str(taken) in ran.line and "Not a directory" in ran.line


def test_credentials_go_nowhere_but_into_a_file(attestgate: Run, deployed: Plan, tmp_path: Path) -> None:
    ran = attestgate("keys", "credentials", deployed.keys, "host", "host-1", "--out", tmp_path)
    assert ran.status == 2 and str(tmp_path) in ran.line and "directory" in ran.line


def test_a_full_disk_is_said(attestgate: Run, deployed: Plan, tmp_path: Path) -> None:
    policy = tmp_path / "runtime.json"
    assert attestgate("policy", "learn", Path(__file__).parent, "-o", policy).status == 0
    author = deployed.keys / "policy-authors" / "policy-author.pem"
    ran = attestgate("policy", "dsse", policy, "--key", author, "-o", "/dev/full")
    assert ran.status == 2 and "No space left on device" in ran.line
