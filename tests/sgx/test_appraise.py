"""The verdict: what is accepted, and that each thing that may be wrong has its own reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from attestgate.enclave.simulated import authority, platform
from attestgate.enclave.simulated.authority import OLD_CPUSVN
from attestgate.manager.verification.sgx.appraisal import LAST_SECOND
from attestgate.manager.verification.sgx.collateral import Collateral, examine
from attestgate.manager.verification.sgx.quote import parse
from attestgate.schemas.base import pack, unpack_own
from attestgate.schemas.sgx import PlatformIdentity, SgxVerdict
from tests.support.reasons import codes
from tests.support.sgx.recorded import judge_baseline, load_vector
from tests.support.sgx.simulated import ENCLAVE, NOW, REPORT_DATA, SimulatedSgx, collateral_of
from tests.support.sgx.turned import signed
from tests.support.threats import rows, threat

DAY = 86_400


def test_a_good_quote(shared: SimulatedSgx) -> None:
    verdict = shared.appraise()
    assert verdict.accepted, verdict.reasons
    assert verdict.simulated
    assert verdict.mrenclave == ENCLAVE.mrenclave.hex()
    assert verdict.report_data == REPORT_DATA.hex()
    assert (verdict.tcb_status, verdict.advisories, verdict.tcb_evaluation_number) == ("UpToDate", [], 20)
    assert unpack_own(SgxVerdict, pack(verdict)) == verdict
    assert SgxVerdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_the_platform_is_named_by_salted_hashes_only(shared: SimulatedSgx) -> None:
    verdict = shared.appraise()
    ppid = parse(shared.quote()).pck.ppid
    assert verdict.platform is not None
    assert ppid.hex() not in verdict.model_dump_json()
    assert (
        verdict.platform.ppid
        != PlatformIdentity.salted(b"other", ppid=ppid, pck_leaf=b"", attestation_key=b"", qe_id=b"").ppid
    )


ENCLAVES: dict[str, tuple[dict[str, object], dict[str, object], str]] = {
    "another measurement": ({}, {"mrenclaves": ("00" * 32,)}, "sgx.mrenclave"),
    "nothing enrolled": ({}, {"mrenclaves": ()}, "sgx.mrenclave"),
    "policy's list": ({}, {"mrenclaves": None, "policy": {"mrenclaves": ("00" * 32,)}}, "sgx.mrenclave"),
    "debug": ({"debug": True}, {}, "sgx.debug"),
    "report data": ({}, {"report_data": bytes(64)}, "sgx.report_data"),
    "signer": ({}, {"policy": {"mrsigners": ("00" * 32,)}}, "sgx.mrsigner"),
    "product": ({}, {"policy": {"isv_prod_id": 8}}, "sgx.isv_prod_id"),
    "svn": ({}, {"policy": {"min_isv_svn": 4}}, "sgx.isv_svn"),
    "config id": ({}, {"policy": {"config_id": "01" * 64}}, "sgx.config_id"),
    "config svn": ({}, {"policy": {"min_config_svn": 1}}, "sgx.config_svn"),
    "attributes": (
        {},
        {"policy": {"attributes": {"value": "80" + "00" * 15, "mask": "80" + "00" * 15}}},
        "sgx.attributes",
    ),
    "misc select": ({}, {"policy": {"misc_select": {"value": "01000000", "mask": "ffffffff"}}}, "sgx.misc_select"),
    "type": ({}, {"policy": {"sgx_types": ("standard",)}}, "sgx.sgx_type"),
    "platform": ({}, {"policy": {"platforms": ("00" * 32,)}}, "sgx.platform"),
    "evaluation number": ({}, {"policy": {"min_tcb_evaluation_number": 21}}, "collateral.tcb_info.evaluation_number"),
    "tcb date": ({}, {"policy": {"min_tcb_date": datetime(2026, 1, 1, tzinfo=UTC)}}, "sgx.tcb_date"),
    "age": ({}, {"policy": {"max_collateral_age_s": 1}, "at": NOW + 3601}, "collateral.tcb_info.age"),
}


@threat(rows.OTHER_CODE)
@pytest.mark.parametrize("case", ENCLAVES)
def test_each_pin_has_its_own_reason(shared: SimulatedSgx, case: str) -> None:
    enclave, judged, code = ENCLAVES[case]
    arguments = dict(judged)
    policy = arguments.pop("policy", {})
    assert isinstance(policy, dict)
    quote = shared.quote(ENCLAVE.model_copy(update=enclave))
    verdict = shared.appraise(quote, policy=policy, **arguments)  # type: ignore[arg-type]
    assert not verdict.accepted
    assert code in codes(verdict)
    reason = next(reason for reason in verdict.reasons if reason.code == code)
    assert reason.expected != reason.found
    good = shared.appraise(shared.quote())
    assert good.accepted


def test_each_limit_may_be_met_exactly(shared: SimulatedSgx) -> None:
    good = shared.appraise()
    collateral = shared.collateral()
    assert good.tcb_date is not None
    age = NOW - min(examine(collateral, shared.authority.root_der).issued().values())
    dated = datetime.fromtimestamp(good.tcb_date, UTC)
    limits: dict[str, tuple[object, object]] = {
        "min_isv_svn": (3, 4),
        "min_config_svn": (0, 1),
        "min_tcb_evaluation_number": (20, 21),
        "max_collateral_age_s": (age, age - 1),
        "min_tcb_date": (dated, dated + timedelta(seconds=1)),
    }
    outcomes = {
        key: [shared.appraise(collateral=collateral, policy={key: limit}).accepted for limit in pair]
        for key, pair in limits.items()
    }
    assert age > 1
    assert outcomes == {key: [True, False] for key in limits}


def test_all_policy_reasons_are_collected(shared: SimulatedSgx) -> None:
    verdict = shared.appraise(mrenclaves=(), report_data=bytes(64), policy={"min_isv_svn": 9, "isv_prod_id": 1})
    assert codes(verdict) == ["sgx.mrenclave", "sgx.isv_prod_id", "sgx.isv_svn", "sgx.report_data"]


@pytest.mark.parametrize("at", [-1, -(2**63), 2**40, 2**63, 2**64, 2**200])
def test_impossible_times(shared: SimulatedSgx, at: int) -> None:
    assert codes(shared.appraise(at=at)) == ["time.range"]


@pytest.mark.parametrize(("at", "why"), [(0, "not_yet_valid"), (LAST_SECOND, "expired")])
def test_the_first_and_last_second_are_judged(shared: SimulatedSgx, at: int, why: str) -> None:
    assert {code.rsplit(".", 1)[1] for code in codes(shared.appraise(at=at))} == {why}


def test_the_edges_of_validity_with_five_seconds_allowance(shared: SimulatedSgx) -> None:
    collateral = shared.collateral()
    examined = examine(collateral, shared.authority.root_der)
    outcomes = {
        at: shared.appraise(collateral=collateral, at=at).accepted
        for edge in (examined.opens(), examined.closes())
        for at in range(edge - 7, edge + 8)
    }
    expected = {at: examined.opens() - 5 <= at <= examined.closes() + 5 for at in outcomes}
    assert outcomes == expected


def test_stale_collateral_names_each_piece_and_does_not_hide_the_rest(shared: SimulatedSgx) -> None:
    verdict = shared.appraise(at=NOW + 31 * DAY, mrenclaves=())
    assert set(codes(verdict)) == {
        "collateral.root_ca_crl.expired",
        "collateral.pck_crl.expired",
        "collateral.tcb_info.expired",
        "collateral.qe_identity.expired",
        "sgx.mrenclave",
    }
    assert verdict.tcb_status == "UpToDate"
    assert "collateral.tcb_info.not_yet_valid" in codes(shared.appraise(at=NOW - 2 * DAY))
    assert "quote.pck_chain.certificate.expired" in codes(shared.appraise(at=NOW + 8 * 365 * DAY))


def test_another_root(shared: SimulatedSgx, tmp_path: Path) -> None:
    other = SimulatedSgx(tmp_path)
    verdict = shared.appraise(root_der=other.authority.root_der)
    assert "collateral.tcb_info.root" in codes(verdict)
    assert "quote.pck_chain.root" in codes(other.appraise(shared.quote()))
    assert codes(shared.appraise(root_der=b"junk"))[0] == "root.malformed"


def flip(data: bytes, at: int = 0) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


BAD_PIECES: dict[str, tuple[Callable[[Collateral], object], str]] = {
    "tcb_info_signature": (lambda c: flip(c.tcb_info_signature), "collateral.tcb_info.signature"),
    "qe_identity_signature": (lambda c: flip(c.qe_identity_signature), "collateral.qe_identity.signature"),
    "tcb_info": (lambda c: c.tcb_info.replace('"svn":14', '"svn":13', 1), "collateral.tcb_info.signature"),
    "qe_identity": (lambda c: c.qe_identity + " ", "collateral.qe_identity.signature"),
    "pck_crl": (lambda c: flip(c.pck_crl, -1), "collateral.pck_crl.signature"),
    "root_ca_crl": (lambda c: c.pck_crl, "collateral.root_ca_crl.signature"),
    "pck_crl_issuer_chain": (lambda c: c.tcb_info_issuer_chain, "collateral.pck_crl.signature"),
    "tcb_info_issuer_chain": (lambda c: "", "collateral.tcb_info.malformed"),
    "qe_identity_issuer_chain": (lambda c: c.pck_crl_issuer_chain, "collateral.qe_identity.signature"),
}


@pytest.mark.parametrize("piece", BAD_PIECES)
def test_each_piece_of_collateral_turned_bad(shared: SimulatedSgx, piece: str) -> None:
    change, code = BAD_PIECES[piece]
    collateral = shared.collateral()
    verdict = shared.appraise(collateral=collateral.model_copy(update={piece: change(collateral)}))
    assert codes(verdict) == [code]


@pytest.mark.parametrize("piece", ["pck_crl", "root_ca_crl"])
@pytest.mark.parametrize("junk", [b"", b"junk", b"\x30\x80"])
def test_junk_for_a_crl(shared: SimulatedSgx, piece: str, junk: bytes) -> None:
    verdict = shared.appraise(collateral=shared.collateral().model_copy(update={piece: junk}))
    assert codes(verdict) == [f"collateral.{piece}.malformed"]


TCB_INFO_FIELDS: dict[str, tuple[object, str]] = {
    "version": (2, "collateral.tcb_info.version"),
    "id": ("TDX", "collateral.tcb_info.id"),
    "tcbType": (1, "collateral.tcb_info.tcbType"),
    "issueDate": ("yesterday", "collateral.tcb_info.issueDate"),
    "nextUpdate": ("2025-01-01T00:00:00Z", "collateral.tcb_info.expired"),
    "fmspc": ("000000000000", "sgx.fmspc"),
    "pceId": ("0001", "sgx.pce_id"),
    "tcbEvaluationDataNumber": ("20", "collateral.tcb_info.tcbEvaluationDataNumber"),
    "tcbLevels": ([], "sgx.tcb_level"),
}
QE_IDENTITY_FIELDS: dict[str, tuple[object, str]] = {
    "version": (3, "collateral.qe_identity.version"),
    "id": ("TD_QE", "collateral.qe_identity.id"),
    "issueDate": ("2222-01-01T00:00:00Z", "collateral.qe_identity.not_yet_valid"),
    "nextUpdate": (None, "collateral.qe_identity.nextUpdate"),
    "tcbEvaluationDataNumber": (True, "collateral.qe_identity.tcbEvaluationDataNumber"),
    "mrsigner": ("00" * 32, "sgx.qe_identity"),
    "isvprodid": (2, "sgx.qe_identity"),
    "miscselect": ("00000001", "sgx.qe_identity"),
    "attributes": ("13000000000000000000000000000000", "sgx.qe_identity"),
    "tcbLevels": (
        [{"tcb": {"isvsvn": 9}, "tcbDate": "2025-11-12T00:00:00Z", "tcbStatus": "UpToDate"}],
        "sgx.qe_identity",
    ),
    "miscselectMask": (None, "collateral.qe_identity.malformed"),
}


@pytest.mark.parametrize("key", TCB_INFO_FIELDS)
def test_each_field_of_tcb_info_turned_bad(shared: SimulatedSgx, key: str) -> None:
    value, code = TCB_INFO_FIELDS[key]
    assert codes(shared.appraise(collateral=signed(shared, "tcb_info", **{key: value}))) == [code]


@pytest.mark.parametrize("key", QE_IDENTITY_FIELDS)
def test_each_field_of_qe_identity_turned_bad(shared: SimulatedSgx, key: str) -> None:
    value, code = QE_IDENTITY_FIELDS[key]
    assert codes(shared.appraise(collateral=signed(shared, "qe_identity", **{key: value}))) == [code]


@pytest.mark.parametrize("body", [b"[]", b"null", b"{", b"[" * 100_000, b'{"version": 3}'])
def test_signed_nonsense_as_tcb_info(shared: SimulatedSgx, body: bytes) -> None:
    document = shared.authority.sign(body)
    bad = shared.collateral(tcb_info=document.body.decode(), tcb_info_signature=document.signature)
    assert codes(shared.appraise(collateral=bad))[0].startswith("collateral.tcb_info.")


def test_tcb_info_signed_by_a_pck_chain_is_not_the_roots_word(shared: SimulatedSgx) -> None:
    chain = parse(shared.quote()).pck_chain_pem.decode().rstrip("\0")
    assert codes(shared.appraise(collateral=shared.collateral(tcb_info_issuer_chain=chain))) == [
        "collateral.tcb_info.issuer_chain"
    ]


@threat(rows.TCB_OLD)
def test_a_revoked_pck(sgx: SimulatedSgx) -> None:
    authority.revoke_pck(sgx.folder / "authority", platform.read_pck(sgx.folder / sgx.machine))
    assert codes(sgx.appraise()) == ["sgx.pck_revoked"]


def test_a_revoked_pck_ca_and_a_revoked_tcb_signer(sgx: SimulatedSgx) -> None:
    ca = parse(sgx.quote()).pck.chain[1]
    sgx.say(revoked_cas=[f"{ca.serial_number:x}"])
    assert codes(sgx.appraise()) == ["sgx.pck_ca_revoked"]
    signer = sgx.authority.signing_chain
    serial = x509.load_pem_x509_certificates(signer)[0].serial_number
    sgx.say(revoked_cas=[f"{serial:x}"])
    assert codes(sgx.appraise()) == ["collateral.tcb_info.revoked", "collateral.qe_identity.revoked"]


def test_the_crl_of_the_other_ca(shared: SimulatedSgx) -> None:
    other = collateral_of(shared.authority, "processor")
    verdict = shared.appraise(collateral=other)
    assert codes(verdict) == ["collateral.pck_crl.issuer"]


@threat(rows.TCB_OLD)
def test_an_old_tcb_and_its_grace(sgx: SimulatedSgx) -> None:
    platform.set_tcb(sgx.folder / sgx.machine, sgx.folder / "authority", OLD_CPUSVN)
    accepting = {"tcb_statuses": ("UpToDate", "OutOfDate")}
    dated = int(datetime(2024, 3, 13, tzinfo=UTC).timestamp())
    assert codes(sgx.appraise()) == ["sgx.tcb_status"]
    assert sgx.appraise(policy={"out_of_date_grace_s": NOW - dated, **accepting}).accepted
    assert codes(sgx.appraise(policy={"out_of_date_grace_s": NOW - dated - 1, **accepting})) == ["sgx.tcb_grace"]
    wide = {"out_of_date_grace_s": NOW, **accepting}
    assert codes(sgx.appraise(policy={"rejected_advisories": ("INTEL-SA-00828",), **wide})) == ["sgx.advisory"]
    assert codes(sgx.appraise(policy={"accepted_advisories": (), **wide})) == ["sgx.advisory"]
    assert sgx.appraise(policy={"accepted_advisories": ("INTEL-SA-00828",), **wide}).accepted


@threat(rows.TCB_OLD)
def test_a_revoked_tcb_is_refused_whatever_the_policy(sgx: SimulatedSgx) -> None:
    levels = json.loads(sgx.collateral().tcb_info)["tcbLevels"]
    revoked = signed(sgx, "tcb_info", tcbLevels=[level | {"tcbStatus": "Revoked"} for level in levels])
    assert codes(sgx.appraise(collateral=revoked)) == ["sgx.tcb_revoked"]


def test_a_tcb_below_every_level(sgx: SimulatedSgx) -> None:
    platform.set_tcb(sgx.folder / sgx.machine, sgx.folder / "authority", bytes(16))
    assert codes(sgx.appraise()) == ["sgx.tcb_level"]


@threat(rows.TCB_OLD)
def test_flags_of_the_platform(sgx: SimulatedSgx) -> None:
    facts = platform.read_facts(sgx.folder / sgx.machine)
    assert facts.pck.instance is not None
    pck = facts.pck.model_copy(update={"instance": facts.pck.instance.model_copy(update={"smt_enabled": True})})
    platform.provision(sgx.folder / sgx.machine, sgx.folder / "authority", facts.model_copy(update={"pck": pck}))
    assert sgx.appraise().accepted
    assert codes(sgx.appraise(policy={"accept_smt": False})) == ["sgx.smt"]
    assert sgx.appraise(policy={"accept_cached_keys": False, "accept_dynamic_platform": False}).accepted


@pytest.mark.parametrize(
    ("at", "code"),
    [
        (48, "quote.signature"),
        (431, "quote.signature"),
        (436, "quote.signature"),
        (500, "quote.qe_report_data"),
        (564, "quote.qe_report_signature"),
        (1014, "quote.qe_report_data"),
    ],
)
def test_each_signature_in_the_quote(shared: SimulatedSgx, at: int, code: str) -> None:
    assert code in codes(shared.appraise(flip(shared.quote(), at), mrenclaves=None, report_data=None))


def test_recorded_quotes(vectors: Path) -> None:
    expected = {
        "dcap-zkdcap-risc0": (1743465600, [], "SWHardeningNeeded"),
        "dcap-automata-quotev3": (1756080000, [], "SWHardeningNeeded"),
        "dcap-phala-sample": (1751328000, ["sgx.tcb_status"], "ConfigurationAndSWHardeningNeeded"),
        "dcap-openenclave-tcbv2": (1651363200, ["collateral.tcb_info.version", "sgx.debug"], None),
    }
    for folder, (at, reasons, status) in expected.items():
        vector = load_vector(vectors / folder)
        verdict = judge_baseline(vector.quote, vector.collateral, vector.root_der, at)
        assert (codes(verdict), verdict.tcb_status) == (reasons, status), folder
        assert codes(judge_baseline(vector.quote, vector.collateral, vector.root_der, at + 60 * DAY))
        flipped = judge_baseline(flip(vector.quote, 400), vector.collateral, vector.root_der, at)
        assert not flipped.accepted


@threat(rows.OTHER_CODE)
def test_a_debug_quote_with_collateral_that_is_in_order(vectors: Path) -> None:
    quote = load_vector(vectors / "dcap-openenclave-tcbv2")
    collateral = load_vector(vectors / "dcap-zkdcap-risc0").collateral
    assert codes(judge_baseline(quote.quote, collateral, quote.root_der, 1743465600)) == ["sgx.debug"]
