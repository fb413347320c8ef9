"""The commands that judge from files: exit status, JSON in every case, raw or base64."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from attestgate.cli.inspect import app as inspect_app
from attestgate.cli.verify import app as verify_app
from tests.support.sgx.simulated import ENCLAVE, NOW, SimulatedSgx

TIME = datetime.fromtimestamp(NOW, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Files:
    """A quote and its collateral on disk."""

    def __init__(self, sgx: SimulatedSgx, folder: Path) -> None:
        self.quote, self.collateral, self.policy = folder / "quote", folder / "collateral.json", folder / "policy.json"
        self.quote.write_bytes(sgx.quote())
        self.collateral.write_text(sgx.collateral().model_dump_json(exclude_none=True))
        self.policy.write_text(json.dumps({"version": 1, "mrenclaves": [ENCLAVE.mrenclave.hex()]}))
        self.trust = hashlib.sha256(sgx.authority.root_der).hexdigest()

    def verify(self, *options: str, at: str = TIME, trust: str | None = None) -> tuple[int, dict[str, Any]]:
        arguments = ["quote", str(self.quote), "--collateral", str(self.collateral), "--at", at]
        return run(verify_app, *arguments, "--trust", trust or self.trust, *options)


def run(app: Any, *arguments: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, json.loads(result.stdout)


def found(document: dict[str, Any]) -> list[str]:
    return [reason["code"] for reason in document["reasons"]]


@pytest.fixture
def files(shared: SimulatedSgx, tmp_path: Path) -> Files:
    return Files(shared, tmp_path)


def test_accepted_without_a_policy_says_so(files: Files) -> None:
    code, document = files.verify("--json")
    assert (code, document["accepted"], document["reasons"], document["policy"]) == (0, True, [], None)
    assert document["at"] == TIME
    assert document["mrenclave"] == ENCLAVE.mrenclave.hex()
    assert document["simulated"] is True
    assert any("no policy was applied" in note for note in document["notes"])


def test_without_json_a_person_is_told_on_standard_error(files: Files) -> None:
    files.policy.write_text(json.dumps({"version": 1, "mrenclaves": ["00" * 32]}))
    options = [
        "--collateral",
        str(files.collateral),
        "--at",
        TIME,
        "--policy",
        str(files.policy),
        "--trust",
        files.trust,
    ]
    result = CliRunner().invoke(verify_app, ["quote", str(files.quote), *options])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["accepted"] is False
    assert result.stderr.startswith("refused\n  sgx.mrenclave: ")


def test_a_policy_is_applied_and_named(files: Files) -> None:
    code, document = files.verify("--policy", str(files.policy))
    assert code == 0
    assert document["policy"] == hashlib.sha256(files.policy.read_bytes()).hexdigest()
    assert document["notes"] == []


def test_base64_files(files: Files) -> None:
    for path in (files.quote, files.collateral):
        path.write_bytes(base64.encodebytes(path.read_bytes()))
    assert files.verify()[0] == 0


def test_the_root_must_be_known(files: Files) -> None:
    code, document = files.verify(trust="00" * 32)
    assert (code, found(document)) == (1, ["root.untrusted"])
    assert document["mrenclave"] == ENCLAVE.mrenclave.hex()
    colons = ":".join(files.trust[i : i + 2] for i in range(0, 64, 2)).upper()
    assert files.verify(trust=colons)[0] == 0


@pytest.mark.parametrize(
    ("at", "code"),
    [
        (TIME.replace("Z", "+00:00"), 0),
        (TIME.replace("Z", ".999z").replace("T", "t"), 0),
        ("2020-01-01T00:00:00Z", 1),
        ("1960-01-01T00:00:00Z", 1),
        ("9999-12-31T23:59:59Z", 1),
        ("2025-13-01T00:00:00Z", 2),
        ("2025-07-01T00:00:00", 2),
        ("2025-07-01", 2),
        ("1751328000", 2),
        ("", 2),
    ],
    ids=[
        *("offset", "fraction", "before the quote", "before 1970", "far ahead"),
        *("month 13", "no zone", "date", "seconds", "empty"),
    ],
)
def test_times(files: Files, at: str, code: int) -> None:
    status, document = files.verify(at=at)
    assert status == code
    assert document["accepted"] is (code == 0)
    assert bool(document["reasons"]) is (code != 0)


def test_malformed_evidence_is_a_refusal(files: Files) -> None:
    files.quote.write_bytes(b"")
    assert files.verify()[0] == 1
    files.quote.write_bytes(b"junk")
    code, document = files.verify()
    assert (code, found(document)) == (1, ["quote.size"])
    files.collateral.write_text("{}")
    assert files.verify()[0] == 1


@pytest.mark.parametrize("text", ["junk", "{}", '{"version": 1}', '{"version": 1, "mrenclaves": [], "more": 1}'])
def test_a_policy_that_cannot_be_used(files: Files, text: str) -> None:
    files.policy.write_text(text)
    code, document = files.verify("--policy", str(files.policy))
    assert (code, document["accepted"]) == (2, False)
    assert found(document)


@pytest.mark.parametrize(
    "arguments",
    [
        ["quote"],
        ["quote", "{quote}"],
        ["quote", "{quote}", "--collateral", "/nowhere"],
        ["quote", "/nowhere", "--collateral", "{quote}"],
        ["quote", "{quote}", "--collateral", "{quote}", "--nope"],
        ["quote", "{quote}", "--collateral", "{quote}", "--trust", "xyz"],
        ["quote", "{quote}", "--collateral", "{quote}", "--policy", "/nowhere"],
        ["ias", "{quote}"],
        ["ias", "{quote}", "--signature", "/nowhere", "--certificates", "{quote}", "--root", "{quote}"],
    ],
)
def test_wrong_use_is_said_in_json_too(files: Files, arguments: list[str]) -> None:
    code, document = run(verify_app, *(text.format(quote=files.quote) for text in arguments))
    assert (code, document["accepted"]) == (2, False)
    assert found(document) == ["cli.argument"]


def test_ias_refuses_junk_and_unknown_roots(files: Files, shared: SimulatedSgx, tmp_path: Path) -> None:
    root = tmp_path / "root.der"
    root.write_bytes(shared.authority.root_der)
    junk = str(files.quote)
    arguments = ["ias", junk, "--signature", junk, "--certificates", junk, "--at", TIME]
    code, document = run(verify_app, *arguments, "--root", str(root))
    assert (code, found(document)) == (1, ["root.untrusted"])
    code, document = run(verify_app, *arguments, "--root", str(root), "--trust", files.trust)
    assert (code, found(document)) == (1, ["ias.signature", "ias.report"])
    assert run(verify_app, *arguments, "--root", junk)[0] == 1


def test_inspect(files: Files, tmp_path: Path) -> None:
    code, document = run(inspect_app, "quote", str(files.quote))
    assert (code, document["report"]["mrenclave"]) == (0, ENCLAVE.mrenclave.hex())
    assert len(document["pck"]["chain"]) == 3
    files.quote.write_bytes(b"junk")
    assert run(inspect_app, "quote", str(files.quote))[0] == 1
    assert run(inspect_app, "quote", str(tmp_path / "nothing"))[0] == 2


def test_recorded_evidence(vectors: Path) -> None:
    folder = vectors / "dcap-phala-sample"
    arguments = ["quote", str(folder / "quote.bin"), "--collateral", str(folder / "collateral.json"), "--json"]
    code, document = run(verify_app, *arguments, "--at", "2025-07-01T00:00:00Z")
    assert (code, found(document)) == (1, ["sgx.tcb_status"])
    assert document["advisories"] == ["INTEL-SA-00289", "INTEL-SA-00615"]
    code, document = run(verify_app, *arguments)
    assert code == 1 and "collateral.tcb_info.expired" in found(document)
