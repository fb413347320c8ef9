"""Verdicts as EARs: what they say of which evidence, and that a reader who knows only JWT can check them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from attestgate.cli.verify import app
from attestgate.enclave.simulated import platform
from attestgate.enclave.simulated.authority import OLD_CPUSVN
from attestgate.manager.verification.ear import HOST_INTEGRITY, SGX, appraised, jwks, look, read, sign
from attestgate.schemas.base import Reason, Refusal
from attestgate.schemas.ear import STANDS_IN, ClaimName, Submod, tier
from attestgate.schemas.host_policy import ListVerdict, Replay
from attestgate.schemas.sgx import SgxVerdict
from tests.support.reasons import refusal_code
from tests.support.sgx.simulated import ENCLAVE, NOW, SimulatedSgx

KEY = Ed25519PrivateKey.generate()
KEYS = jwks([KEY.public_key().public_bytes_raw()])
NONCE = bytes(range(32))


def token(submods: dict[str, Submod], *, key: Ed25519PrivateKey = KEY, at: int = NOW) -> str:
    return sign(key, subject="host/h1", session="00" * 16, nonce=NONCE, at=at, submods=submods)


def of(verdict: SgxVerdict, listed: ListVerdict | None = None, *more: Reason) -> dict[str, Submod]:
    return appraised(verdict, listed, [*verdict.reasons, *(listed.reasons if listed else ()), *more])


def reason(code: str) -> Reason:
    return Reason(code=code, field="f", expected="e", found="o", action="a")


def listed(**changes: Any) -> ListVerdict:
    fields: dict[str, Any] = {
        "accepted": True,
        "admitted": True,
        "mode": "enforcing",
        "at": NOW,
        "policy": "ab" * 32,
        "integrity": "anchored",
        "boot_state": "golden",
        "anchored_entries": 0,
        "violations": 0,
        "excluded": 0,
        "unknown_entries": 0,
        "unknown": [],
        "reasons": [],
        "replay": Replay.start("sha256"),
    }
    return ListVerdict.model_validate(fields | changes)


def test_an_independent_reader(shared: SimulatedSgx) -> None:
    """Nothing of this project but the token and the published key."""
    made = token(of(shared.appraise()))
    header = jwt.get_unverified_header(made)
    (published,) = json.loads(json.dumps(KEYS))["keys"]
    assert (header["alg"], header["typ"], header["kid"]) == ("EdDSA", "eat+jwt", published["kid"])
    claims = jwt.decode(made, jwt.PyJWK(published).key, algorithms=["EdDSA"], options={"verify_iat": False})
    assert claims["eat_profile"] == "tag:github.com,2023:veraison/ear"
    assert (claims["iat"], claims["sub"]) == (NOW, "host/h1")
    assert claims["eat_nonce"] == "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
    assert claims["ear.verifier-id"].keys() == {"developer", "build"}
    submod = claims["submods"]["sgx"]
    assert set(submod["ear.trustworthiness-vector"]) <= set(get_args(ClaimName))
    assert submod["ear.attestgate.evidence"]["mrenclave"] == ENCLAVE.mrenclave.hex()
    with pytest.raises(jwt.InvalidSignatureError):
        other = jwks([Ed25519PrivateKey.generate().public_key().public_bytes_raw()])["keys"][0]
        jwt.decode(made, jwt.PyJWK(other).key, algorithms=["EdDSA"], options={"verify_iat": False})


def test_a_simulated_platform_never_affirms_hardware(shared: SimulatedSgx) -> None:
    submod = of(shared.appraise())[SGX]
    assert submod.status == "warning"
    assert submod.vector["hardware"] == submod.vector["runtime-opaque"] == STANDS_IN
    assert submod.vector["executables"] == 3


def test_hardware_that_is_up_to_date_is_affirmed(shared: SimulatedSgx) -> None:
    submod = of(shared.appraise().model_copy(update={"simulated": False}))[SGX]
    assert submod.status == "affirming"
    assert submod.vector == {
        "hardware": 2,
        "configuration": 2,
        "executables": 3,
        "instance-identity": 2,
        "runtime-opaque": 2,
    }
    hardening = shared.appraise().model_copy(update={"simulated": False, "tcb_status": "SWHardeningNeeded"})
    assert (of(hardening)[SGX].status, of(hardening)[SGX].vector["hardware"]) == ("warning", 32)


@pytest.mark.parametrize(
    ("judged", "claim", "value"),
    [
        ({"mrenclaves": ()}, "executables", 33),
        ({"report_data": bytes(64)}, "instance-identity", 99),
        ({"policy": {"min_isv_svn": 9}}, "executables", 32),
        ({"policy": {"config_id": "01" * 64}}, "configuration", 96),
        ({"policy": {"platforms": ("00" * 32,)}}, "instance-identity", 97),
        ({"policy": {"sgx_types": ("standard",)}}, "hardware", 96),
    ],
)
def test_what_a_refusal_says(shared: SimulatedSgx, judged: dict[str, Any], claim: ClaimName, value: int) -> None:
    submod = of(shared.appraise(**judged))[SGX]
    assert (submod.status, submod.vector[claim]) == ("contraindicated", value)
    assert submod.reasons


def test_what_is_not_verified_is_not_affirmed(shared: SimulatedSgx) -> None:
    flipped = bytearray(shared.quote())
    flipped[440] ^= 1
    submod = of(shared.appraise(bytes(flipped)))[SGX]
    assert (submod.status, submod.vector) == ("contraindicated", {"hardware": 99})
    assert of(shared.appraise(b"junk"))[SGX].vector == {"hardware": 99}
    stale = of(shared.appraise(at=NOW + 10_000_000))[SGX]
    assert stale.status == "contraindicated"
    assert "hardware" not in stale.vector


def test_debug_and_old_tcb(sgx: SimulatedSgx) -> None:
    debug = of(sgx.appraise(sgx.quote(ENCLAVE.model_copy(update={"debug": True}))))[SGX]
    assert (debug.vector["configuration"], debug.vector["runtime-opaque"]) == (96, 96)
    platform.set_tcb(sgx.folder / sgx.machine, sgx.folder / "authority", OLD_CPUSVN)
    assert of(sgx.appraise())[SGX].vector["hardware"] == 96


def test_host_integrity(shared: SimulatedSgx) -> None:
    verdict = shared.appraise()
    good = of(verdict, listed())[HOST_INTEGRITY]
    assert (good.status, good.vector, good.policy) == (
        "affirming",
        {"executables": 2, "configuration": 2},
        f"sha256:{'ab' * 32}",
    )
    loose = of(verdict, listed(integrity="unanchored", boot_state="not_judged"))[HOST_INTEGRITY]
    assert (loose.status, loose.vector) == ("warning", {"executables": STANDS_IN, "configuration": 36})
    drifted = listed(accepted=False, admitted=False, unknown_entries=3, reasons=[reason("ima.unknown")])
    submods = of(verdict, drifted)
    assert (submods[HOST_INTEGRITY].status, submods[HOST_INTEGRITY].vector["executables"]) == ("contraindicated", 33)
    assert submods[SGX].status == "warning"
    broken = of(verdict, None, reason("tpm.signature"))[HOST_INTEGRITY]
    assert (broken.status, broken.vector) == ("contraindicated", {"executables": 99})
    assert of(verdict, None, reason("colocation.ppid"))[SGX].vector["instance-identity"] == 97
    assert of(verdict, None, reason("something.new"))[SGX].status == "contraindicated"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (-128, "contraindicated"),
        (-97, "contraindicated"),
        (-96, "warning"),
        (-33, "warning"),
        (-32, "affirming"),
        (-2, "affirming"),
        (-1, "none"),
        (0, "none"),
        (1, "none"),
        (2, "affirming"),
        (31, "affirming"),
        (32, "warning"),
        (95, "warning"),
        (96, "contraindicated"),
        (127, "contraindicated"),
    ],
)
def test_tiers(value: int, expected: str) -> None:
    assert tier(value) == expected


def test_reading(shared: SimulatedSgx) -> None:
    submods = of(shared.appraise())
    made = token(submods)
    assert read(made, KEYS) == look(made)
    assert read(made, KEYS).submods == submods
    assert made == token(submods)
    head, body, signature = made.split(".")
    none = jwt.encode({"iat": NOW}, "", algorithm="none")
    forged = [
        token(submods, key=Ed25519PrivateKey.generate()),
        f"{head}.{body[:-4]}AAAA.{signature}",
        f"{head}.{body}.",
        none,
        "",
        "a.b.c",
        "é",
        jwt.encode({"iat": NOW}, KEY, algorithm="EdDSA", headers={"kid": KEYS["keys"][0]["kid"]}),
    ]
    for bad in forged:
        with pytest.raises(Refusal) as caught:
            read(bad, KEYS)
        assert refusal_code(caught).startswith("ear.")
    broken: list[dict[str, Any]] = [{}, {"keys": []}, {"keys": [1]}, {"keys": [{"kty": "none"}]}, {"keys": "x"}]
    for keys in broken:
        with pytest.raises(Refusal):
            read(made, keys)


def test_the_command(shared: SimulatedSgx, tmp_path: Path) -> None:
    good, bad, keys = tmp_path / "good", tmp_path / "bad", tmp_path / "jwks.json"
    good.write_text(token(of(shared.appraise())) + "\n")
    bad.write_text(token(of(shared.appraise(mrenclaves=()))))
    keys.write_text(json.dumps(KEYS))

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        result = CliRunner().invoke(app, ["ear", *arguments])
        return result.exit_code, json.loads(result.stdout)

    at = ["--at", "2100-01-01T00:00:00Z"]
    code, document = run(str(good), "--jwks", str(keys), *at)
    assert (code, document["accepted"], document["evidence"]["sub"]) == (0, True, "host/h1")
    cases = [
        ([str(bad), "--jwks", str(keys), *at], 1, "ear.status"),
        ([str(good), "--jwks", str(keys), *at, "--max-age", "60"], 1, "ear.age"),
        ([str(good), "--jwks", str(keys), "--at", "2020-01-01T00:00:00Z"], 1, "ear.issued_at"),
        ([str(keys), "--jwks", str(keys), *at], 1, "ear.signature"),
        ([str(good), "--jwks", str(good), *at], 2, "cli.argument"),
        ([str(good), "--jwks", "/nowhere"], 2, "cli.argument"),
        ([str(good)], 2, "cli.argument"),
    ]
    for arguments, expected, found in cases:
        code, document = run(*arguments)
        assert (code, [one["code"] for one in document["reasons"]]) == (expected, [found])
