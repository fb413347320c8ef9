"""The strict parser: what it reads, and that anything else is a Refusal."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from attestgate.manager.verification.sgx.quote import MAX_QUOTE, parse, parse_body
from attestgate.manager.verification.x509 import certificates
from attestgate.schemas.base import Refusal
from tests.support.reasons import refusal_code
from tests.support.sgx.recorded import load_vector
from tests.support.sgx.simulated import ENCLAVE, REPORT_DATA, SimulatedSgx
from tests.support.threats import rows, threat

AUTH_SIZE_AT = 436 + 64 + 64 + 384 + 64
QUOTE_FIELDS = {
    "version": (0, b"\x04\x00", "quote.version"),
    "key type": (2, b"\x03\x00", "quote.attestation_key_type"),
    "tdx": (4, b"\x81\x00\x00\x00", "quote.tdx"),
    "tee type": (4, b"\x01\x00\x00\x00", "quote.tee_type"),
    "vendor": (12, b"\x00", "quote.qe_vendor_id"),
    "reserved 1": (48 + 21, b"\x01", "quote.reserved"),
    "reserved 2": (48 + 96, b"\x01", "quote.reserved"),
    "reserved 3": (48 + 160, b"\x01", "quote.reserved"),
    "reserved 4": (48 + 262, b"\x01", "quote.reserved"),
    "signature shorter than said": (432, b"\xff\xff\x00\x00", "quote.size"),
    "signature longer than said": (432, b"\x00\x01\x00\x00", "quote.trailing"),
    "auth data longer than the quote": (AUTH_SIZE_AT, b"\xff\xff", "quote.size"),
    "certification data of another type": (AUTH_SIZE_AT + 34, b"\x01\x00", "quote.certification_data"),
    "certification data too long": (AUTH_SIZE_AT + 36, b"\xff\xff", "quote.size"),
    "certification data too short": (AUTH_SIZE_AT + 36, b"\x00\x01", "quote.trailing"),
}


def not_parsed(raw: bytes) -> str:
    with pytest.raises(Refusal) as caught:
        _ = parse(raw).pck
    return refusal_code(caught)


def test_fields(shared: SimulatedSgx) -> None:
    quote = parse(shared.quote())
    assert quote.report.mrenclave == ENCLAVE.mrenclave
    assert quote.report.mrsigner == ENCLAVE.mrsigner
    assert (quote.report.isv_prod_id, quote.report.isv_svn, quote.report.debug) == (7, 3, False)
    assert quote.report.report_data == REPORT_DATA
    assert len(quote.pck.ppid) == 16
    assert (quote.pck.ca, quote.pck.sgx_type) == ("platform", "scalable")


@threat(rows.TCB_OLD)
@pytest.mark.parametrize("case", QUOTE_FIELDS)
def test_each_field_has_its_own_reason(shared: SimulatedSgx, case: str) -> None:
    at, value, code = QUOTE_FIELDS[case]
    raw = bytearray(shared.quote())
    raw[at : at + len(value)] = value
    assert not_parsed(bytes(raw)) == code


@threat(rows.TCB_OLD)
def test_every_truncation_and_every_extension_is_refused(shared: SimulatedSgx) -> None:
    raw = shared.quote()
    for size in range(len(raw)):
        assert not_parsed(raw[:size]) == "quote.size"
    assert not_parsed(raw + b"\0") == "quote.trailing"
    assert not_parsed(raw + bytes(MAX_QUOTE)) == "quote.size"


def test_each_length_that_is_wrong_is_said(shared: SimulatedSgx) -> None:
    raw = shared.quote()
    signed, cut = raw[:432], 64 + 64 + 384 + 64 + 2 - 1
    for wrong, field in (
        (raw[:435], "quote.size"),
        (raw[:436], "quote.signature_data_len"),
        (signed + struct.pack("<I", cut) + raw[436 : 436 + cut], "quote.signature_data"),
        (bytes(MAX_QUOTE + 1), "quote.size"),
    ):
        with pytest.raises(Refusal) as caught:
            parse(wrong)
        assert (refusal_code(caught), caught.value.reasons[0].field) == ("quote.size", field)
    assert not_parsed(bytes(MAX_QUOTE)) == "quote.version"
    with pytest.raises(Refusal, match="384 bytes"):
        parse_body(bytes(383), "report")


def test_lengths_that_agree_with_each_other_but_not_with_the_end(shared: SimulatedSgx) -> None:
    raw = bytearray(shared.quote() + b"\0")
    raw[432:436] = struct.pack("<I", len(raw) - 436)
    assert not_parsed(bytes(raw)) == "quote.trailing"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"-----BEGIN CERTIFICATE-----", b"-----BEGIN CERTIFICATF-----"),
        (b"-----BEGIN CERTIFICATE-----\n", b"-----BEGIN CERTIFICATE-----*"),
    ],
)
def test_text_around_the_certificates_is_refused(shared: SimulatedSgx, old: bytes, new: bytes) -> None:
    assert not_parsed(shared.quote().replace(old, new, 1)).startswith("quote.pck_chain")


@pytest.mark.parametrize("text", [b"hello\n", b"-----BEGIN X-----\naGk=\n-----END X-----\n"])
def test_text_between_the_certificates_is_refused(shared: SimulatedSgx, text: bytes) -> None:
    raw = shared.quote()
    chain = parse(raw).pck_chain_pem
    middle = chain.index(b"-----BEGIN", 1)
    longer = chain[:middle] + text + chain[middle:]
    data = raw[436 : -len(chain) - 4] + struct.pack("<I", len(longer)) + longer
    assert not_parsed(raw[:432] + struct.pack("<I", len(data)) + data) == "quote.pck_chain"


def test_a_chain_of_two_is_refused(shared: SimulatedSgx) -> None:
    raw = shared.quote()
    chain = parse(raw).pck_chain_pem
    short = chain[: chain.rindex(b"-----BEGIN")]
    data = raw[436 : -len(chain) - 4] + struct.pack("<I", len(short)) + short
    assert not_parsed(raw[:432] + struct.pack("<I", len(data)) + data) == "quote.pck_chain"


@settings(deadline=None)
@given(st.binary(max_size=2000))
def test_random_bytes(raw: bytes) -> None:
    assert not_parsed(raw).startswith("quote.")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mangled_quotes_are_read_or_refused(shared: SimulatedSgx, data: st.DataObject) -> None:
    raw = bytearray(shared.quote())
    for _ in range(data.draw(st.integers(1, 8))):
        start = data.draw(st.integers(0, len(raw) - 1))
        raw[start : start + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    try:
        assert parse(bytes(raw)).pck.chain
    except Refusal as refusal:
        assert refusal.reasons[0].code.startswith("quote.")


def test_real_quotes(vectors: Path) -> None:
    folders = sorted(vectors.glob("dcap-*"))
    assert folders
    for folder in folders:
        vector = load_vector(folder)
        quote = parse(vector.quote)
        assert quote.pck.fmspc.hex() in vector.collateral.tcb_info.lower()
        assert not_parsed(vector.quote + b"\0") == "quote.trailing"


def test_a_certificate_whose_signature_is_written_otherwise_is_refused() -> None:
    """The length of a signature's bits can be written in eight ways if they end in zeros: DER, and we, know one."""
    key, subject = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    draft = x509.CertificateBuilder(subject, subject, key.public_key(), 1)
    draft = draft.not_valid_before(datetime(2026, 1, 1, tzinfo=UTC)).not_valid_after(datetime(2027, 1, 1, tzinfo=UTC))
    while (signed := draft.sign(key, SHA256())).signature[-1] % 2:
        pass
    assert certificates(signed.public_bytes(Encoding.PEM), "chain") == (signed,)
    der = bytearray(signed.public_bytes(Encoding.DER))
    der[-len(signed.signature) - 1] = 1
    other = x509.load_der_x509_certificate(bytes(der)).public_bytes(Encoding.PEM)
    with pytest.raises(Refusal, match="not whole bytes"):
        certificates(other, "chain")
