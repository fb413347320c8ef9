"""The policy document: what is refused at load, and what two platforms must share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attestgate.manager.verification.sgx.same_platform import same_platform
from attestgate.schemas.base import Refusal
from attestgate.schemas.sgx import BASELINE, Masked, SgxPolicy, policy_name, read_complete_policy, read_policy
from tests.support.reasons import refusal_code
from tests.support.sgx.simulated import SimulatedSgx
from tests.support.threats import rows, threat

PINNED = {"version": 1, "mrenclaves": ["11" * 32]}


def document(**keys: object) -> bytes:
    return json.dumps(PINNED | keys).encode()


@threat(rows.POLICY_GAP)
@pytest.mark.parametrize(
    "keys",
    [
        {"mrenclave": []},
        {"version": 2},
        {"mrenclaves": ["11" * 31]},
        {"mrenclaves": ["AA" * 32]},
        {"tcb_statuses": []},
        {"tcb_statuses": ["Revoked"]},
        {"tcb_statuses": ["Fine"]},
        {"tcb_statuses": ["OutOfDate"]},
        {"out_of_date_grace_s": 10},
        {"out_of_date_grace_s": -1, "tcb_statuses": ["OutOfDate"]},
        {"rejected_advisories": ["SA-1"]},
        {"min_tcb_date": "2025-01-01T00:00:00"},
        {"same_platform": []},
        {"same_platform": ["qe_id"]},
        {"attributes": {"value": "00", "mask": "00"}},
        {"attributes": {"value": "02" + "00" * 15, "mask": "01" + "00" * 15}},
        {"misc_select": {"value": "00", "mask": "00"}},
        {"min_isv_svn": 65536},
        {"min_isv_svn": "1"},
    ],
)
def test_refused_at_load(keys: dict[str, object]) -> None:
    with pytest.raises(Refusal) as caught:
        read_policy(document(**keys), source="policy.json")
    assert refusal_code(caught) == "file.fields"
    assert "policy.json" in caught.value.reasons[0].field


@threat(rows.POLICY_GAP)
def test_a_policy_that_decides_alone_pins_an_enclave() -> None:
    for keys in ({}, {"mrsigners": ["22" * 32]}, {"isv_prod_id": 1}):
        with pytest.raises(Refusal) as caught:
            read_complete_policy(json.dumps({"version": 1, **keys}).encode(), source="policy.json")
        assert refusal_code(caught) == "policy.unpinned"
    assert read_complete_policy(document(), source="policy.json").mrenclaves == ("11" * 32,)
    signer = json.dumps({"version": 1, "mrsigners": ["22" * 32], "isv_prod_id": 1}).encode()
    assert read_complete_policy(signer, source="policy.json").isv_prod_id == 1


def test_a_policy_is_named_by_its_bytes() -> None:
    assert policy_name(document()) != policy_name(document() + b"\n")
    assert read_policy(document(), source="x") == read_policy(document() + b"\n", source="x")


def test_masked_bits() -> None:
    masked = Masked(value="0400", mask="06ff")
    assert masked.fits(b"\x05\x00")
    assert not masked.fits(b"\x06\x00")
    assert not masked.fits(b"\x05\x01")
    assert not masked.fits(b"\x05")


@threat(rows.TWO_MACHINES)
def test_one_model_but_two_machines_are_not_co_located(shared: SimulatedSgx) -> None:
    other = SimulatedSgx(shared.folder, machine="other")
    host, sibling, app = shared.appraise(), shared.appraise(), other.appraise()
    assert host.accepted and app.accepted
    assert host.fmspc == app.fmspc
    assert host.platform and sibling.platform and app.platform
    assert same_platform(host.platform, sibling.platform, BASELINE) == ()
    assert [reason.code for reason in same_platform(host.platform, app.platform, BASELINE)] == [
        "colocation.ppid",
        "colocation.pck_leaf",
        "colocation.attestation_key",
        "colocation.qe_id",
    ]
    only = SgxPolicy(version=1, same_platform=("ppid",))
    moved = app.platform.model_copy(update={"ppid": host.platform.ppid})
    assert same_platform(host.platform, moved, only) == ()


def test_a_document_on_disk_is_judged_by_the_same_rules(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_bytes(b'{"version": 1, "version": 1}')
    with pytest.raises(Refusal, match="repeated"):
        read_policy(path.read_bytes(), source=str(path))
