"""The offline commands, word by word: exit status, one JSON document in every case, and what is in it."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote as urlquote

import pytest
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from attestgate.cli.evidence import read_time
from attestgate.cli.inspect import app as inspect_app
from attestgate.cli.verify import app as verify_app
from attestgate.manager.verification.offline.quote import MAX_FILE
from attestgate.manager.verification.sgx.collateral import examine
from attestgate.schemas.base import Refusal
from tests.support.sgx import ias
from tests.support.sgx.simulated import ENCLAVE, NOW, SimulatedSgx

TIME = datetime.fromtimestamp(NOW, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
REASON = {"code", "field", "expected", "found", "action"}


def run(app: Any, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit status and the document; a command never ends in an exception of another kind."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    document = json.loads(result.stdout)
    assert isinstance(document, dict)
    return result.exit_code, document


def looked_at(document: dict[str, Any]) -> list[str]:
    """The codes of a document's reasons, once its form has been checked."""
    assert {"accepted", "reasons", "policy", "at"} <= document.keys()
    for reason in document["reasons"]:
        assert reason.keys() == REASON
        assert all(isinstance(value, str) and value for value in reason.values()), reason
    assert document["accepted"] is (not document["reasons"])
    return [reason["code"] for reason in document["reasons"]]


@pytest.fixture(scope="module")
def folder(shared: SimulatedSgx, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that are in order, and some that are not."""
    folder = tmp_path_factory.mktemp("files")
    collateral = shared.collateral()
    (folder / "quote").write_bytes(shared.quote())
    (folder / "debug").write_bytes(shared.quote(ENCLAVE.model_copy(update={"debug": True})))
    (folder / "collateral").write_text(collateral.model_dump_json(exclude_none=True))
    (folder / "policy").write_text(json.dumps({"version": 1, "mrenclaves": [ENCLAVE.mrenclave.hex()]}))
    (folder / "unpinned").write_text('{"version": 1}')
    (folder / "unknown").write_text(json.dumps({"version": 1, "mrenclaves": ["11" * 32], "mrenclave": []}))
    (folder / "junk").write_bytes(b"junk")
    (folder / "empty").write_bytes(b"")
    (folder / "ends").write_text(str(examine(collateral, shared.authority.root_der).closes()))
    root, signer, key = ias.authority()
    (folder / "report").write_bytes(ias.report())
    (folder / "signature").write_bytes(key.sign(ias.report(), PKCS1v15(), SHA256()))
    (folder / "certificates").write_bytes(signer.public_bytes(Encoding.PEM) + root.public_bytes(Encoding.PEM))
    (folder / "root").write_bytes(root.public_bytes(Encoding.PEM))
    return folder


def quote_arguments(folder: Path, sgx: SimulatedSgx, name: str = "quote", at: str = TIME) -> list[str]:
    trust = hashlib.sha256(sgx.authority.root_der).hexdigest()
    return ["quote", str(folder / name), "--collateral", str(folder / "collateral"), "--at", at, "--trust", trust]


def ias_arguments(folder: Path, at: str = "2025-07-01T00:00:00Z", **instead: str) -> list[str]:
    names = {name: instead.get(name, name) for name in ("report", "signature", "certificates", "root")}
    options = [f"--{name}={folder / file}" for name, file in names.items() if name != "report"]
    trust = ias.authority()[0].fingerprint(SHA256()).hex()
    return ["ias", str(folder / names["report"]), *options, "--at", at, "--trust", trust]


def test_without_a_policy_every_field_is_shown_and_it_is_said(folder: Path, shared: SimulatedSgx) -> None:
    code, document = run(verify_app, *quote_arguments(folder, shared), "--json")
    assert (code, looked_at(document), document["policy"], document["at"]) == (0, [], None, TIME)
    assert any("no policy was applied" in note for note in document["notes"])
    assert (document["tcb_status"], document["debug"]) == ("UpToDate", False)
    evidence = document["evidence"]
    assert evidence["header"]["version"] == 3
    assert evidence["report"]["mrenclave"] == document["mrenclave"] == ENCLAVE.mrenclave.hex()
    assert {"cpu_svn", "isv_ext_prod_id", "isv_family_id", "cet_attributes", "config_svn"} <= evidence["report"].keys()
    assert {"ppid", "fmspc", "pce_id", "cpu_svn", "pce_svn", "sgx_type", "chain"} <= evidence["pck"].keys()
    assert run(inspect_app, "quote", str(folder / "quote"))[1]["quote_id"] == document["quote_id"]


def test_without_a_policy_a_debug_enclave_is_refused(folder: Path, shared: SimulatedSgx) -> None:
    code, document = run(verify_app, *quote_arguments(folder, shared, "debug"))
    assert (code, looked_at(document), document["debug"]) == (1, ["sgx.debug"], True)
    assert document["evidence"]["report"]["debug"] is True


def test_a_policy_is_named_by_its_hash(folder: Path, shared: SimulatedSgx) -> None:
    code, document = run(verify_app, *quote_arguments(folder, shared), "--policy", str(folder / "policy"))
    assert (code, looked_at(document)) == (0, [])
    assert document["policy"] == hashlib.sha256((folder / "policy").read_bytes()).hexdigest()
    assert not any("no policy" in note for note in document["notes"])
    code, document = run(verify_app, *ias_arguments(folder), "--policy", str(folder / "policy"))
    assert (code, looked_at(document), document["policy"] is None) == (0, [], False)


def test_every_file_may_be_base64(folder: Path, shared: SimulatedSgx, tmp_path: Path) -> None:
    for name in ("quote", "collateral", "policy", "report", "signature", "root"):
        (tmp_path / name).write_bytes(base64.encodebytes((folder / name).read_bytes()))
    chain = (folder / "certificates").read_bytes()
    (tmp_path / "certificates").write_bytes(base64.b64encode(chain))
    policy = ["--policy", str(tmp_path / "policy")]
    code, document = run(verify_app, *quote_arguments(tmp_path, shared), *policy)
    assert (code, looked_at(document)) == (0, [])
    assert document["policy"] == hashlib.sha256((folder / "policy").read_bytes()).hexdigest()
    assert run(verify_app, *ias_arguments(tmp_path), *policy)[0] == 0
    assert run(inspect_app, "quote", str(tmp_path / "quote"))[0] == 0
    (tmp_path / "certificates").write_text(urlquote(chain))
    assert run(verify_app, *ias_arguments(tmp_path))[0] == 0
    (tmp_path / "root").write_bytes(ias.authority()[0].public_bytes(Encoding.DER))
    assert run(verify_app, *ias_arguments(tmp_path))[0] == 0


def test_five_seconds_of_skew(folder: Path, shared: SimulatedSgx) -> None:
    ends = int((folder / "ends").read_text())
    outcomes = {}
    for second in (ends, ends + 5, ends + 6):
        at = datetime.fromtimestamp(second, UTC).isoformat()
        outcomes[second - ends] = run(verify_app, *quote_arguments(folder, shared, at=at))[0]
    assert outcomes == {0: 0, 5: 0, 6: 1}
    times = ("2025-06-30T23:59:54Z", "2025-06-30T23:59:55Z", "2025-07-01T00:00:00Z")
    assert [run(verify_app, *ias_arguments(folder, at=at))[0] for at in times] == [1, 0, 0]


def test_ias_shows_every_field_and_says_that_no_policy_was_applied(folder: Path) -> None:
    code, document = run(verify_app, *ias_arguments(folder))
    assert (code, looked_at(document), document["policy"]) == (0, [], None)
    assert any("no policy was applied" in note for note in document["notes"])
    assert document["quote_status"] == document["evidence"]["report"]["isvEnclaveQuoteStatus"] == "OK"
    assert document["evidence"]["quote"]["header"]["sign_type"] == 1
    assert document["timestamp"] == "2025-07-01T00:00:00Z"


def test_ias_root_must_be_built_in_or_trusted_by_name(folder: Path) -> None:
    arguments = ias_arguments(folder)
    code, document = run(verify_app, *arguments[: arguments.index("--trust")])
    assert (code, looked_at(document)) == (1, ["root.untrusted"])
    assert document["evidence"] is not None


@pytest.mark.parametrize("file", ["report", "signature", "certificates", "root"])
@pytest.mark.parametrize("instead", ["junk", "empty", "quote"])
def test_malformed_ias_evidence_is_judged_and_refused(folder: Path, file: str, instead: str) -> None:
    code, document = run(verify_app, *ias_arguments(folder, **{file: instead}))
    assert code == 1
    assert looked_at(document)


@pytest.mark.parametrize("instead", ["junk", "empty", "collateral", "report"])
def test_malformed_quote_evidence_is_judged_and_refused(folder: Path, shared: SimulatedSgx, instead: str) -> None:
    code, document = run(verify_app, *quote_arguments(folder, shared, instead))
    assert (code, looked_at(document)) == (1, ["quote.size" if instead in ("junk", "empty") else "quote.version"])
    assert document["evidence"] is None
    arguments = [a.replace("/collateral", f"/{instead}") for a in quote_arguments(folder, shared)]
    code, document = run(verify_app, *arguments)
    assert code == (0 if instead == "collateral" else 1)
    assert looked_at(document) == [] or document["evidence"] is not None


@pytest.mark.parametrize("file", ["quote", "collateral", "report", "signature", "certificates", "root", "policy"])
def test_a_file_that_is_too_large_is_malformed_evidence_or_no_policy(
    folder: Path, shared: SimulatedSgx, tmp_path: Path, file: str
) -> None:
    (tmp_path / file).write_bytes((folder / file).read_bytes().ljust(MAX_FILE + 1))
    of_quote = file in ("quote", "collateral", "policy")
    given = quote_arguments(folder, shared) if of_quote else ias_arguments(folder)
    given += ["--policy", str(folder / "policy")]
    code, document = run(verify_app, *(a.replace(str(folder / file), str(tmp_path / file)) for a in given))
    assert (code, looked_at(document)) == (2 if file == "policy" else 1, ["file.size"])
    if file == "quote":
        assert run(inspect_app, "quote", str(tmp_path / file))[0] == 1


@pytest.mark.parametrize("policy", ["unpinned", "unknown", "junk", "empty", "quote", "nowhere", ""])
def test_a_policy_that_cannot_be_loaded_is_wrong_use(folder: Path, shared: SimulatedSgx, policy: str) -> None:
    for arguments in (quote_arguments(folder, shared), ias_arguments(folder)):
        code, document = run(verify_app, *arguments, "--policy", str(folder / policy))
        assert code == 2
        assert looked_at(document)
        assert document["at"] == (TIME if "--collateral" in arguments else "2025-07-01T00:00:00Z")


@pytest.mark.parametrize(
    ("app", "arguments"),
    [
        (verify_app, []),
        (verify_app, ["nothing"]),
        (verify_app, ["--nothing"]),
        (verify_app, ["--", "--nothing"]),
        (verify_app, ["quote"]),
        (verify_app, ["ias"]),
        (verify_app, ["quote", "--json"]),
        (verify_app, ["quote", "x", "--collateral"]),
        (verify_app, ["quote", "x", "--collateral", "y", "z"]),
        (verify_app, ["quote", "x", "--collateral", "y", "--json=1"]),
        (verify_app, ["quote", "x", "--collateral", "y", "--at"]),
        (verify_app, ["quote", "x", "--collateral", "y", "--at", "now"]),
        (verify_app, ["quote", "x\udcff", "--collateral", "y"]),
        (verify_app, ["quote", "\0", "--collateral", "\0"]),
        (verify_app, ["ias", "x", "--signature", "y", "--certificates", "z"]),
        (inspect_app, []),
        (inspect_app, ["nothing"]),
        (inspect_app, ["quote"]),
        (inspect_app, ["quote", "x", "y"]),
    ],
)
def test_every_mistake_is_said_in_json(app: Any, arguments: list[str]) -> None:
    code, document = run(app, *arguments)
    assert (code, looked_at(document)) == (2, ["cli.argument"])
    assert document["notes"] == ["nothing was judged"]


@pytest.mark.parametrize(
    ("text", "second"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t01:00:00.999999999+01:00", 0),
        ("1970-01-01 00:00:00-00:00", 0),
        ("1996-12-19T16:39:57-08:00", 851042397),
        ("1990-12-31T23:59:60Z", 662688000),
        ("1990-12-31T15:59:60-08:00", 662688000),
        ("1969-12-31T23:59:59.5Z", -1),
    ],
)
def test_rfc_3339(text: str, second: int) -> None:
    assert read_time(text) == second


@pytest.mark.parametrize(
    "text",
    [
        "2025-02-29T00:00:00Z",
        "2025-01-01T24:00:00Z",
        "2025-01-01T00:60:00Z",
        "2025-01-01T00:00:61Z",
        "2025-01-01T00:00Z",
        "2025-01-01T00:00:00",
        "2025-01-01T00:00:00+0100",
        "2025-01-01T00:00:00+24:00",
        "2025-01-01T00:00:00+01:60",
        "2025-1-1T00:00:00Z",
        "20250101T000000Z",
        "2025-W01-1T00:00:00Z",
        "2025-01-01T00:00:00Z\n",
        " 2025-01-01T00:00:00Z",
        "٢٠٢٥-01-01T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "now",
        "1751328000",
        "",
    ],
)
def test_not_rfc_3339(text: str) -> None:
    with pytest.raises(Refusal):
        read_time(text)


@cache
def tokens(folder: Path) -> list[str]:
    files = [str(path) for path in sorted(folder.iterdir())]
    options = ["--collateral", "--policy", "--at", "--trust", "--signature", "--certificates", "--root", "--json"]
    values = [TIME, "2025-07-01T00:00:00Z", "00" * 32, "", "-", "--", "-x", "--nothing", "=", str(folder), "/nowhere"]
    return ["quote", "ias", *files, *options, *options, *values]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_arguments_at_all(folder: Path, data: st.DataObject) -> None:
    arguments = data.draw(st.lists(st.sampled_from(tokens(folder)) | st.text(max_size=5), max_size=9))
    if "--help" in arguments:
        return
    code, document = run(verify_app, *arguments)
    assert code in (0, 1, 2)
    looked_at(document)
    assert document["accepted"] is (code == 0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_files_and_values_in_their_places(folder: Path, shared: SimulatedSgx, data: st.DataObject) -> None:
    file = st.sampled_from([*sorted(path.name for path in folder.iterdir()), "nowhere"])
    at = st.sampled_from([TIME, "1960-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59"])
    for arguments in (quote_arguments(folder, shared), ias_arguments(folder)):
        changed = [
            a.replace(Path(a).name, data.draw(file)) if str(folder) in a and data.draw(st.booleans()) else a
            for a in arguments
        ]
        changed[changed.index("--at") + 1] = data.draw(at)
        code, document = run(verify_app, *changed)
        looked_at(document)
        assert document["accepted"] is (code == 0)
        assert (code == 2) is any(reason["code"] == "cli.argument" for reason in document["reasons"])
