"""`attestgate verify ima` and `attestgate policy`, as a person types them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from typer.testing import CliRunner

from attestgate.cli.policy import app as policy_app
from attestgate.manager.verification.ima.policy_dsse import sign
from attestgate.manager.verification.offline import ima as ima_offline
from attestgate.schemas.host_policy import HostPolicy
from tests.support.ima.command import KEYS, app, run
from tests.support.ima.lists import ANCHORED, ENTRIES, NONCES, VECTORS, boot_aggregate, document, frame, ng, recorded


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


@pytest.mark.parametrize("part", ["--tpm-quote", "--tpm-signature", "--tpm-pcrs", "--ak"])
def test_a_part_of_a_quote_that_is_too_large_is_malformed_evidence(part: str, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(17 * 1024 * 1024))
    shown = run(VECTORS / "clean.bin", *quote_of("clean", **{part: large}), status=1)
    assert shown["reasons"][0]["code"].startswith("tpm.")


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


def test_wrong_arguments_are_said_with_the_same_keys() -> None:
    for arguments in (["--unknown"], [], [str(VECTORS / "clean.bin"), "--nonce"], ["a", "b"]):
        result = CliRunner().invoke(app, [*arguments, "--json"] if arguments[-1:] != ["--nonce"] else arguments)
        shown = json.loads(result.stdout)
        assert result.exit_code == 2 and shown.keys() >= KEYS and not shown["accepted"], arguments
        assert [reason["code"] for reason in shown["reasons"]] == ["cli.argument"]


def test_golden_values_judge_the_boot(policy: Path, tmp_path: Path) -> None:
    golden = VECTORS / "clean.quote.pcrs"
    arguments = [VECTORS / "clean.bin", "--policy", policy, *quote_of("clean")]
    shown = run(*arguments, "--golden", golden, status=0)
    assert (shown["boot_state"], shown["integrity"]) == ("golden", "anchored")
    other = tmp_path / "other.pcrs"
    other.write_bytes(bytes(32) + golden.read_bytes()[32:])
    refused = run(*arguments, "--golden", other, status=1)
    assert refused["boot_state"] == "mismatch"
    assert [reason["code"] for reason in refused["reasons"]] == ["tpm.boot_state"]
    assert run(*arguments, "--golden", other, "--golden", golden, status=0)["boot_state"] == "golden"
    assert run(VECTORS / "clean.bin", *quote_of("clean"), "--golden", other, status=1)["boot_state"] == "mismatch"
    other.write_bytes(golden.read_bytes()[:-1])
    assert run(*arguments, "--golden", other, status=1)["reasons"][0]["code"] == "tpm.golden"
    assert run(VECTORS / "clean.bin", "--golden", golden, status=2)["reasons"][0]["code"] == "cli.argument"


def test_a_host_policy_in_the_place_of_the_runtime_policy_is_told_where_it_belongs(
    policy: Path, tmp_path: Path
) -> None:
    host = tmp_path / "host.json"
    host.write_text(HostPolicy(version=1, runtime_policy="00" * 32).model_dump_json())
    (reason,) = run(VECTORS / "clean.bin", "--policy", host, status=2)["reasons"]
    assert reason["code"] == "cli.argument" and "--host-policy" in reason["action"]


def test_a_host_policy_decides_on_violations_and_on_observing(tmp_path: Path) -> None:
    policy, host = tmp_path / "policy.json", tmp_path / "host.json"
    policy.write_text(document(recorded("drift")).text())
    arguments = [VECTORS / "drift.bin", "--policy", policy, *quote_of("drift")]
    refused = run(*arguments, status=1)
    assert [reason["code"] for reason in refused["reasons"]] == ["ima.violation"]
    by = {"version": 1, "runtime_policy": refused["policy"], "accept_unjudged_boot": True}
    host.write_text(json.dumps(by | {"violations": "accept"}))
    assert run(*arguments, "--host-policy", host, status=0)["violations"] == 1
    host.write_text(json.dumps(by | {"mode": "observe-only"}))
    shown = run(*arguments, "--host-policy", host, status=1)
    assert shown["admitted"] and shown["mode"] == "observe-only", "observing admits; it does not accept"


def test_a_signed_policy_needs_its_key(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    signed, public = tmp_path / "policy.dsse", tmp_path / "key.pem"
    signed.write_bytes(sign(document(recorded("clean")).text().encode(), key))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    arguments = [VECTORS / "clean.bin", *quote_of("clean")]
    run(*arguments, "--policy", signed, "--policy-key", public, status=0)
    assert run(*arguments, "--policy", signed, status=2)["reasons"][0]["code"] == "policy.signature"
    assert run(*arguments, "--policy-key", public, status=2)["reasons"][0]["code"] == "cli.argument"


def test_paths_are_escaped_without_loss_and_every_unknown_entry_is_listed(tmp_path: Path) -> None:
    names = [b"/a\\b", b"/caf\xc3\xa9", b"/bad\xff\xfe", b"/line\nfeed\x7f", b"/" + b"x" * 4000]
    names += [b"/many/%d" % number for number in range(3000)]
    measured = boot_aggregate() + b"".join(frame(b"ima-ng", ng(), name + b"\0") for name in names)
    (tmp_path / "list").write_bytes(measured)
    (tmp_path / "policy").write_text(document(boot_aggregate()).text())
    shown = run(tmp_path / "list", "--policy", tmp_path / "policy", status=1)
    assert len(shown["unknown"]) == len(names)
    paths = [entry["path"] for entry in shown["unknown"]]
    assert paths[:4] == [r"/a\\b", "/café", r"/bad\xff\xfe", r"/line\x0afeed\x7f"]
    assert [unescaped(path) for path in paths] == names


def test_a_hostile_list_lists_a_bounded_part_of_its_unknown_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ima_offline, "MAX_LISTED", 10_000)
    bombs = b"".join(frame(b"ima-ng", ng(), b"\xff" * 1000 + b"%d\0" % number) for number in range(50))
    (tmp_path / "list").write_bytes(boot_aggregate() + bombs)
    (tmp_path / "policy").write_text(document(boot_aggregate()).text())
    shown = run(tmp_path / "list", "--policy", tmp_path / "policy", status=1)
    assert (shown["unknown_entries"], len(shown["unknown"])) == (50, 3)
    assert "only the first 3 of 50 unknown entries are listed" in shown["notes"]


def unescaped(path: str) -> bytes:
    """The raw bytes behind an escaped path."""
    return re.sub(
        rb"\\(\\|x[0-9a-f]{2})",
        lambda found: b"\\" if found[1] == b"\\" else bytes.fromhex(found[1][1:].decode()),
        path.encode(),
    )


def test_the_time_is_the_one_given() -> None:
    assert run(VECTORS / "clean.bin", "--at", "2026-11-24T08:00:00Z", status=1)["at"].startswith("2026-11-24T08:00:00")
    for early in ("1969-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00"):
        shown = run(VECTORS / "clean.bin", *quote_of("clean"), "--at", early, status=1)
        assert [reason["code"] for reason in shown["reasons"]] == ["time.range"]


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


def test_a_policy_that_is_none_is_refused_by_diff_as_by_lint(tmp_path: Path) -> None:
    (tmp_path / "set.json").write_text("{}")
    result = CliRunner().invoke(
        policy_app, ["diff", str(tmp_path / "set.json"), "--against", str(VECTORS / "clean.bin")]
    )
    assert result.exit_code == 1 and "file.fields" in result.stderr
