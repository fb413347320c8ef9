"""IAS reports: signed here under a root of the test's own, and recorded real ones where they are present."""

from __future__ import annotations

import json
import struct
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from attestgate.manager.verification.epid.report import MAX_REPORT, appraise_report, parse_report
from attestgate.manager.verification.epid.structure import parse_quote
from attestgate.manager.verification.offline.describe import describe_report
from attestgate.manager.verification.offline.quote import NamedPolicy, verify_ias
from attestgate.manager.verification.sgx.quote import MAX_QUOTE, SIGNED_LENGTH
from attestgate.schemas.base import Refusal
from attestgate.schemas.sgx import IasVerdict, SgxPolicy
from tests.support.reasons import codes, refusal_code
from tests.support.sgx.ias import ENCLAVE, MADE, REPORT_DATA, authority, issue, quote_body, report

AT = int(MADE.timestamp())
POLICY: dict[str, object] = {"version": 1}


def judge(
    body: bytes | None = None,
    *,
    signature: bytes | None = None,
    chain: bytes | None = None,
    nonce: str | None = "n1",
    mrenclaves: tuple[str, ...] = (ENCLAVE.hex(),),
    report_data: bytes = REPORT_DATA,
    at: int = AT,
    policy: dict[str, object] | None = None,
) -> IasVerdict:
    root, signer, key = authority()
    body = report() if body is None else body
    return appraise_report(
        body,
        key.sign(body, PKCS1v15(), SHA256()) if signature is None else signature,
        signer.public_bytes(Encoding.PEM) + root.public_bytes(Encoding.PEM) if chain is None else chain,
        SgxPolicy.model_validate(POLICY | (policy or {})),
        policy_hash=None,
        mrenclaves=mrenclaves,
        report_data=report_data,
        nonce=nonce,
        root_der=root.public_bytes(Encoding.DER),
        simulated=True,
        at=at,
        salt=b"salt",
    )


def test_a_good_report() -> None:
    verdict = judge()
    assert verdict.accepted, verdict.reasons
    assert (verdict.quote_status, verdict.mrenclave, verdict.linkable) == ("OK", ENCLAVE.hex(), True)
    assert judge(report(pseManifestStatus="INVALID")).accepted


@pytest.mark.parametrize(
    ("fields", "judged", "expected"),
    [
        ({"isvEnclaveQuoteStatus": "GROUP_OUT_OF_DATE"}, {}, ["ias.status"]),
        ({"isvEnclaveQuoteStatus": "GROUP_OUT_OF_DATE"}, {"policy": {"ias_statuses": ("GROUP_OUT_OF_DATE",)}}, []),
        ({"isvEnclaveQuoteStatus": "SW_HARDENING_NEEDED"}, {}, []),
        ({"isvEnclaveQuoteStatus": "KEY_REVOKED"}, {}, ["ias.status"]),
        ({"isvEnclaveQuoteStatus": "SIGNATURE_INVALID"}, {}, ["ias.status"]),
        (
            {"advisoryIDs": ["INTEL-SA-00334"]},
            {"policy": {"rejected_advisories": ("INTEL-SA-00334",)}},
            ["ias.advisory"],
        ),
        ({"advisoryIDs": ["INTEL-SA-00334"]}, {"policy": {"accepted_advisories": ()}}, ["ias.advisory"]),
        ({"advisoryIDs": None, "version": 3}, {}, []),
        ({}, {"nonce": "n2"}, ["ias.nonce"]),
        ({"nonce": None}, {}, ["ias.nonce"]),
        ({}, {"nonce": None}, []),
        ({}, {"mrenclaves": ()}, ["sgx.mrenclave"]),
        ({}, {"report_data": bytes(64)}, ["sgx.report_data"]),
        ({}, {"at": AT - 5}, []),
        ({}, {"at": AT - 6}, ["ias.timestamp"]),
        ({}, {"at": AT + 65, "policy": {"max_report_age_s": 60}}, []),
        ({}, {"at": AT + 66, "policy": {"max_report_age_s": 60}}, ["ias.age"]),
        ({}, {"at": AT + 101 * 86_400}, ["ias.certificate.expired", "ias.certificate.expired", "ias.age"]),
        ({}, {"policy": {"platforms": ("00" * 32,)}}, ["ias.unjudged"]),
        ({}, {"policy": {"min_tcb_evaluation_number": 1}}, ["ias.unjudged"]),
        ({}, {"at": -1}, ["time.range"]),
        ({"version": 2}, {}, ["ias.report"]),
        ({"version": "4"}, {}, ["ias.report"]),
        ({"timestamp": "2025-07-01T00:00:00Z"}, {}, ["ias.report"]),
        ({"timestamp": "yesterday"}, {}, ["ias.report"]),
        ({"id": 1}, {}, ["ias.report"]),
        ({"isvEnclaveQuoteStatus": None}, {}, ["ias.report"]),
        ({"isvEnclaveQuoteBody": "!"}, {}, ["ias.report"]),
        ({"isvEnclaveQuoteBody": "AAAA"}, {}, ["ias.report"]),
        ({"advisoryIDs": "INTEL-SA-00334"}, {}, ["ias.report"]),
        ({"advisoryIDs": [1]}, {}, ["ias.report"]),
        ({"nonce": 1}, {}, ["ias.report"]),
    ],
)
def test_each_thing_has_its_own_reason(
    fields: dict[str, object], judged: dict[str, object], expected: list[str]
) -> None:
    assert codes(judge(report(**fields), **judged)) == expected  # type: ignore[arg-type]


def test_the_quote_body() -> None:
    assert codes(judge(report(quote_body(debug=True)))) == ["sgx.debug"]
    assert codes(judge(report(quote_body(version=3)))) == ["quote.version"]
    assert codes(judge(report(quote_body(sign_type=2)))) == ["quote.sign_type"]
    reserved = bytearray(quote_body())
    reserved[48 + 96] = 1
    assert codes(judge(report(bytes(reserved)))) == ["quote.reserved"]


def test_what_is_too_long_is_no_report() -> None:
    whole = report()
    assert parse_report(whole + b" " * (MAX_REPORT - len(whole))).status == "OK"
    assert codes(judge(whole + b" " * (MAX_REPORT - len(whole) + 1))) == ["ias.report"]


def test_the_length_of_an_epid_quote() -> None:
    signed, most = quote_body(), MAX_QUOTE - SIGNED_LENGTH - 4
    for size in (0, 680, most):
        assert parse_quote(signed + struct.pack("<I", size) + bytes(size)).version == 2
    for raw in (
        signed + bytes(3),
        signed + struct.pack("<I", 1),
        signed + struct.pack("<I", 680) + bytes(681),
        signed + struct.pack("<I", most + 1) + bytes(most + 1),
    ):
        with pytest.raises(Refusal) as caught:
            parse_quote(raw)
        assert refusal_code(caught) == "quote.size"


def test_the_signature_and_its_chain() -> None:
    root, signer, key = authority()
    body = report()
    good = key.sign(body, PKCS1v15(), SHA256())
    for at in range(0, len(body), 7):
        changed = bytearray(body)
        changed[at] ^= 1
        assert "ias.signature" in codes(judge(bytes(changed), signature=good))
    assert codes(judge(signature=b"")) == ["ias.signature"]
    assert codes(judge(chain=b"junk")) == ["ias.certificates.malformed"]
    assert codes(judge(chain=root.public_bytes(Encoding.PEM))) == ["ias.certificates"]
    assert judge(chain=signer.public_bytes(Encoding.PEM)).accepted
    other = rsa.generate_private_key(65537, 2048)
    forged = issue("Report Signing", key.public_key(), "Root", other, ca=False).public_bytes(Encoding.PEM)
    assert codes(judge(chain=forged)) == ["ias.certificates.chain"]
    other_root = issue("Other", other.public_key(), "Other", other, ca=True).public_bytes(Encoding.PEM)
    assert codes(judge(chain=forged + other_root)) == ["ias.certificates.root"]


def test_a_genuine_certificate_beside_the_one_that_signed_lends_it_nothing() -> None:
    """The certificate that the chain is verified for is the one whose key verifies the signature."""
    root, signer, _ = authority()
    key, body = rsa.generate_private_key(65537, 2048), report()
    own = issue("Report Signing", key.public_key(), "Root", key, ca=False)
    signature = key.sign(body, PKCS1v15(), SHA256())
    for chain, expected in (
        ([signer, root], "ias.signature"),
        ([signer, root, own], "ias.certificates.chain"),
        ([own, signer, root], "ias.certificates.chain"),
        ([signer, own, root], "ias.certificates.chain"),
    ):
        pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)
        assert codes(judge(body, signature=signature, chain=pem)) == [expected]


@pytest.mark.parametrize("junk", [b"", b"[]", b"null", b"{", b"[" * 60_000, b'"' + b"a" * 70_000 + b'"', b"\xff"])
def test_junk(junk: bytes) -> None:
    assert codes(judge(junk)) == ["ias.report"]


@pytest.mark.parametrize("key", ["id", "nonce", "epidPseudonym", "isvEnclaveQuoteStatus"])
def test_half_a_character_is_no_text(key: str) -> None:
    verdict = judge(report(None, **{key: "\ud800"}))
    assert codes(verdict) == ["ias.report"]
    assert verdict.model_dump_json()


def test_numbers_that_json_has_no_form_for_are_shown_as_text() -> None:
    shown = describe_report(report()[:-1] + b', "a": NaN, "b": 1e999}')
    assert json.loads(json.dumps(shown, allow_nan=False))["report"]["b"] == "1e999"


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["id", "timestamp", "version", "nonce", "advisoryIDs"]),
        st.from_type(type(None)) | st.integers() | st.text(),
    )
)
def test_any_fields(fields: dict[str, object]) -> None:
    try:
        assert parse_report(report(None, **fields)).quote_body
    except Refusal as refusal:
        assert refusal.reasons[0].code == "ias.report"


def recorded(folder: Path, at: int, name: str = "report.json") -> IasVerdict:
    return verify_ias(
        (folder / name).read_bytes(),
        (folder / "signature.b64").read_bytes(),
        (folder / "signing_chain.pem").read_bytes(),
        (folder / "ias_root_ca.pem").read_bytes(),
        NamedPolicy(),
        (),
        at,
    )


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("avr-oasis-v4-swh", ["sgx.debug"]),
        ("avr-phala-2021-swh", []),
        ("avr-phala-2023-goo", ["ias.status"]),
        ("avr-teaclave-v3-goo", ["sgx.debug", "ias.status"]),
    ],
)
def test_recorded_reports(vectors: Path, folder: str, expected: list[str]) -> None:
    path = vectors / folder
    said = json.loads((path / "expected.json").read_text())
    at = int(datetime.fromisoformat(said["timestamp"]).replace(tzinfo=UTC).timestamp())
    verdict = recorded(path, at)
    assert codes(verdict) == expected
    assert not verdict.simulated
    assert (verdict.quote_status, verdict.debug) == (said["isvEnclaveQuoteStatus"], said["debug"])
    expired = int(datetime.fromisoformat(said["leaf_not_after"]).timestamp()) + 6
    assert "ias.certificate.expired" in codes(recorded(path, expired))
