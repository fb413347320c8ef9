"""Signed statements: believed under their own label, signer and key, and only then."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from attestgate.schemas.admission import (
    MAX_APPLIED,
    MAX_REFUSED,
    MAX_REVOKED,
    AppliedStatement,
    GatewayReport,
    Posted,
    RefusedLease,
    Serial,
    Statement,
    Withdrawal,
    open_posted,
    open_report,
    post,
    serial_hex,
    sign_report,
    spiffe_id,
)
from attestgate.schemas.base import Refusal, pack, unpack
from attestgate.schemas.signing import TrustedKeys
from tests.support.gateway.deployment import TRUST_DOMAIN, new_signer
from tests.support.gateway.statements import host, lease, withdrawal
from tests.support.reasons import refusal_code
from tests.support.threats import rows, threat

KEY = new_signer()
MANAGERS = TrustedKeys(TRUST_DOMAIN, {"manager": {KEY.public}})
GATEWAYS = TrustedKeys(TRUST_DOMAIN, {"gateway": {KEY.public}})
STATEMENTS: list[Statement] = [lease(), host(), withdrawal()]
REPORT = GatewayReport(
    gateway="g1",
    epoch="0c" * 16,
    applied=[AppliedStatement(key="cert.01", state="admitted", sequence=1)],
    at=100,
    floors=3,
)


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda s: type(s).__name__)
def test_a_statement_comes_back(statement: Statement) -> None:
    assert open_posted(statement.key, post(KEY, statement), MANAGERS) == statement


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("kind", ["lease", "host lease", "withdrawal"])
def test_a_statement_is_of_one_kind(statement: Statement, kind: Any) -> None:
    posted = unpack(Posted, post(KEY, statement))
    if posted.kind != kind:
        with pytest.raises(Refusal) as refusal:
            open_posted(statement.key, pack(Posted(kind=kind, signed=posted.signed)), MANAGERS)
        assert refusal_code(refusal) == "signature.invalid"


@threat(rows.ADMISSION_FORGED)
def test_another_signer_and_another_key() -> None:
    with pytest.raises(Refusal) as signer:
        open_posted("cert.01", post(new_signer(), lease()), MANAGERS)
    with pytest.raises(Refusal) as key:
        open_posted("cert.02", post(KEY, lease()), MANAGERS)
    assert signer.value.reasons[0].code == "signature.signer"
    assert key.value.reasons[0].code == "signature.invalid"


@threat(rows.ADMISSION_FORGED)
@given(place=st.integers(0), flip=st.integers(1, 255))
def test_a_mangled_statement_is_refused(place: int, flip: int) -> None:
    value = bytearray(post(KEY, lease()))
    value[place % len(value)] ^= flip
    with pytest.raises(Refusal):
        open_posted("cert.01", bytes(value), MANAGERS)


@given(value=st.binary(max_size=300))
def test_random_bytes_are_refused(value: bytes) -> None:
    with pytest.raises(Refusal):
        open_posted("cert.01", value, MANAGERS)
    with pytest.raises(Refusal):
        open_report(value, "g1", GATEWAYS)


def test_a_report_comes_back_and_only_from_its_gateway() -> None:
    assert open_report(sign_report(KEY, REPORT), "g1", GATEWAYS) == REPORT
    with pytest.raises(Refusal) as refusal:
        open_report(sign_report(new_signer(), REPORT), "g1", GATEWAYS)
    assert refusal_code(refusal) == "signature.signer"


def test_the_largest_report_fits() -> None:
    applied = [
        AppliedStatement(key=f"host.{i:032x}", state="withdrawn", sequence=2**63 - 1, app_session="0b" * 16)
        for i in range(MAX_APPLIED)
    ]
    refused = RefusedLease(key=applied[0].key, code="admission.enrolled", floor_key="k" * 200, floor=bytes(16 * 1024))
    more = {"applied": applied, "revoked": [bytes(32)] * MAX_REVOKED, "refused": [refused] * MAX_REFUSED}
    report = REPORT.model_copy(update=more)
    assert open_report(sign_report(KEY, report), "g1", GATEWAYS) == report
    with pytest.raises(ValidationError):
        GatewayReport(gateway="g1", epoch="0c" * 16, applied=[*applied, applied[0]], at=1, floors=0)


@pytest.mark.parametrize(
    "change",
    [
        {"identity": "spiffe://sdn.example.org/host/h1/app/a2"},
        {"identity": "spiffe://sdn.example.org/host/h2/app/a1"},
        {"identity": "https://sdn.example.org/host/h1/app/a1"},
        {"identity": "spiffe://sdn.example.org/host/h1/app/a1\r\nX: y"},
        {"serial": "00"},
        {"serial": "1"},
        {"serial": "0A"},
        {"serial": "01" * 21},
        {"certificate": "ab"},
        {"expires_at": 100},
        {"sequence": 0},
        {"integrity": "none"},
    ],
)
def test_a_lease_that_contradicts_itself_is_none(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        lease(**change)


@pytest.mark.parametrize("key", ["cert.", "cert.zz", "app.01", "cert.01.02", "epoch", "cert." + "0" * 41])
def test_a_withdrawal_is_of_a_key(key: str) -> None:
    with pytest.raises(ValidationError):
        Withdrawal(key=key, issued_at=1, until=2, sequence=1, reason="x", ends=None)


@given(serial=st.integers(1, 2**159 - 1))
def test_every_serial_has_one_spelling(serial: int) -> None:
    text = serial_hex(serial)
    assert TypeAdapter[str](Serial).validate_python(text) == text
    assert int(text, 16) == serial


def test_identity() -> None:
    assert spiffe_id("sdn.example.org", "h1", "a1") == lease().identity
