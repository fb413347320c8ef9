"""TPM quotes: the recorded ones, ones signed by keys of each kind, and each field turned bad."""

from __future__ import annotations

import hashlib
from struct import pack

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from attestgate.manager.verification.tpm.quote import (
    ECDSA,
    MAX_STRUCTURE,
    RSAPSS,
    RSASSA,
    QuotedPcrs,
    parse_attest,
    read_key,
    verify_quote,
)
from attestgate.schemas.base import Refusal
from tests.support.ima.lists import NONCES, VECTORS, quote
from tests.support.reasons import refusal_code
from tests.support.tpm.quotes import (
    EC_KEY,
    NONCE,
    RSA_KEY,
    SHA1,
    SHA256,
    SHA384,
    VALUES,
    attest,
    ecdsa,
    pem,
    rsa_signature,
    sized,
)

MESSAGE, SIGNATURE, PCRS = ((VECTORS / f"clean.quote.{part}").read_bytes() for part in ("msg", "sig", "pcrs"))
AK = read_key((VECTORS / "ak.pem").read_bytes())


def check(message: bytes, signature: bytes | None = None, pcrs: bytes = VALUES, nonce: bytes = NONCE) -> QuotedPcrs:
    return verify_quote(message, ecdsa(message) if signature is None else signature, pcrs, EC_KEY.public_key(), nonce)


def quote_refused(message: bytes, signature: bytes | None = None, pcrs: bytes = VALUES, nonce: bytes = NONCE) -> str:
    with pytest.raises(Refusal) as refusal:
        check(message, signature, pcrs, nonce)
    return refusal_code(refusal)


@pytest.mark.parametrize("name", ["clean", "drift"])
def test_recorded_quotes_verify_and_their_boot_aggregate_is_the_lists(name: str) -> None:
    quoted = quote(name)
    assert (quoted.bank, sorted(quoted.values)) == ("sha256", list(range(11)))
    assert quoted.attest.nonce == NONCES[name] and quoted.attest.reset_count == 6 and quoted.attest.safe
    aggregate = quoted.boot_aggregate("sha256")
    assert aggregate is not None and aggregate.hex().startswith("24f5d38d7bb02cb7")


def test_boot_aggregate_needs_its_pcrs_and_sha1_takes_eight() -> None:
    values = {index: bytes([index]) * 20 for index in range(8)}
    attest_of = quote("clean").attest
    aggregate = hashlib.sha1(b"".join(values.values())).digest()
    quoted = QuotedPcrs({"sha1": values, "sha256": values}, attest_of)
    assert quoted.boot_aggregate("sha1") == aggregate
    assert quoted.boot_aggregate("sha256") is None and quoted.boot_aggregate("sha384") is None
    assert quoted.boot("sha1") is None and quoted.boot("sha384") is None


@pytest.mark.parametrize("scheme", [RSASSA, RSAPSS])
def test_rsa_quotes_verify(scheme: int) -> None:
    signature = rsa_signature(scheme, attest())
    assert verify_quote(attest(), signature, VALUES, RSA_KEY.public_key(), NONCE).values[1] == VALUES[32:64]
    other = pack(">H", RSASSA + RSAPSS - scheme) + signature[2:]
    with pytest.raises(Refusal, match=r"tpm\.signature"):
        verify_quote(attest(), other, VALUES, RSA_KEY.public_key(), NONCE)


def test_ecdsa_verifies_as_structure_and_as_der() -> None:
    assert check(attest()).values[0] == VALUES[:32]
    assert check(attest(), EC_KEY.sign(attest(), ec.ECDSA(hashes.SHA256()))).values[10] == VALUES[320:]


def test_other_banks_and_selections() -> None:
    selection = pack(">IHB", 1, SHA1, 3) + b"\x00\x04\x80"
    values = bytes(40)
    message = attest(selection=selection, digest=hashlib.sha256(values).digest())
    assert check(message, pcrs=values).values == {10: bytes(20), 23: bytes(20)}
    selection = pack(">IHB", 1, SHA384, 2) + b"\x01\x00"
    message = attest(selection=selection, digest=hashlib.sha256(bytes(48)).digest())
    assert check(message, pcrs=bytes(48)).bank == "sha384"


def test_values_of_several_banks_follow_the_order_of_the_selection() -> None:
    selection = pack(">IHB", 2, SHA256, 3) + b"\x01\x04\x00" + pack(">HB", SHA1, 3) + b"\x00\x05\x00"
    values = b"a" * 32 + b"b" * 32 + b"c" * 20 + b"d" * 20
    message = attest(selection=selection, digest=hashlib.sha256(values).digest())
    quoted = check(message, pcrs=values)
    assert quoted.banks == {"sha256": {0: b"a" * 32, 10: b"b" * 32}, "sha1": {8: b"c" * 20, 10: b"d" * 20}}
    assert (quoted.bank, quoted.values[10]) == ("sha256", b"b" * 32)
    assert quote_refused(message, pcrs=values[64:] + values[:64]) == "tpm.pcr_digest"
    assert quote_refused(message, pcrs=values[:-1]) == "tpm.pcr_values"
    only_sha1 = pack(">IHB", 2, SHA256, 3) + b"\x01\x00\x00" + pack(">HB", SHA1, 3) + b"\x00\x04\x00"
    message = attest(selection=only_sha1, digest=hashlib.sha256(bytes(52)).digest())
    assert check(message, pcrs=bytes(52)).bank == "sha1", "the bank that PCR 10 is quoted in"


def test_a_bank_that_the_tpm_does_not_have_is_quoted_without_pcrs() -> None:
    """Seen of swtpm: it signs the selection that was asked for, with that bank left empty."""
    selection = pack(">IHB", 2, SHA1, 3) + bytes(3) + pack(">HB", SHA256, 3) + b"\xff\x07\x00"
    assert check(attest(selection=selection)).banks == check(attest()).banks


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (attest(magic=0xFF544348), "tpm.magic"),
        (attest(kind=0x8014), "tpm.type"),
        (attest(safe=2), "tpm.clock"),
        (attest(nonce=b"m" * 32), "tpm.nonce"),
        (attest(nonce=NONCE + b"n"), "tpm.nonce"),
        (attest(nonce=b""), "tpm.nonce"),
        (attest(selection=pack(">I", 0)), "tpm.selection"),
        (attest(selection=pack(">I", 2**32 - 1)), "tpm.selection"),
        (
            attest(selection=pack(">IHB", 2, SHA256, 3) + b"\xff\x07\x00" + pack(">HB", SHA256, 3) + bytes(3)),
            "tpm.selection",
        ),
        (attest(selection=pack(">IHB", 1, 0x0012, 3) + b"\xff\x07\x00"), "tpm.bank"),
        (attest(selection=pack(">IHB", 1, SHA256, 3) + bytes(3)), "tpm.selection"),
        (attest(selection=pack(">IHB", 1, SHA256, 4) + b"\xff\x07\x00\x01"), "tpm.selection"),
        (attest(selection=pack(">IHB", 1, SHA256, 255) + b"\xff\x07\x00"), "tpm.truncated"),
        (attest(digest=b""), "tpm.hash"),
        (attest(digest=hashlib.sha1(VALUES).digest()), "tpm.hash"),
        (attest(digest=bytes(32)), "tpm.pcr_digest"),
        (attest(rest=b"\x00"), "tpm.trailing"),
        (attest()[:-1], "tpm.truncated"),
        (b"", "tpm.truncated"),
        (bytes(MAX_STRUCTURE + 1), "tpm.size"),
    ],
)
def test_each_field_turned_bad_has_its_own_reason(message: bytes, expected: str) -> None:
    assert quote_refused(message) == expected


def test_values_must_be_the_quoted_ones() -> None:
    assert quote_refused(attest(), pcrs=VALUES[:-1]) == "tpm.pcr_values"
    assert quote_refused(attest(), pcrs=VALUES + b"\x00") == "tpm.pcr_values"
    assert quote_refused(attest(), pcrs=VALUES[32:] + VALUES[:32]) == "tpm.pcr_digest"


@pytest.mark.parametrize(
    "signature",
    [
        b"",
        b"\x30",
        b"\x30\x06\x02\x01\x01\x02\x01\x01",
        ecdsa(attest()) + b"\x00",
        ecdsa(attest())[:-1],
        ecdsa(attest(), ec.generate_private_key(ec.SECP256R1())),
        ecdsa(attest(nonce=b"other")),
        pack(">HH", ECDSA, SHA1) + ecdsa(attest())[4:],
        pack(">HH", ECDSA, SHA384) + ecdsa(attest())[4:],
        pack(">HH", 0x0005, SHA256) + ecdsa(attest())[4:],
        pack(">HH", ECDSA, SHA256) + sized(b"") + sized(b""),
        pack(">HH", ECDSA, SHA256) + sized(b"\xff" * 64) + sized(b"\xff" * 64),
        rsa_signature(RSASSA, attest()),
        ecdsa(attest(), hashed=hashes.SHA384(), algorithm=SHA384),
        encode_dss_signature(0, 0),
    ],
    ids=[
        *("empty", "one byte", "DER", "one byte more", "one byte less", "another key's", "another nonce's"),
        *(
            "as SHA-1",
            "as SHA-384",
            "another scheme",
            "no numbers",
            "numbers out of range",
            "RSA",
            "SHA-384",
            "DER zeros",
        ),
    ],
)
def test_any_other_signature_is_refused(signature: bytes) -> None:
    assert quote_refused(attest(), signature) in {"tpm.signature", "tpm.truncated", "tpm.trailing"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        pem(ed25519.Ed25519PrivateKey.generate().public_key()),
        pem(ec.generate_private_key(ec.SECP256K1()).public_key()),
        pem(rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key()),
    ],
)
def test_keys_that_are_no_attestation_keys_are_refused(data: bytes) -> None:
    with pytest.raises(Refusal, match=r"tpm\.key"):
        read_key(data)


def test_keys_are_read_as_they_are() -> None:
    for key in (EC_KEY.public_key(), RSA_KEY.public_key()):
        assert read_key(pem(key)) == key


@given(st.integers(0, len(MESSAGE) - 1), st.integers(1, 255))
def test_every_byte_of_a_recorded_quote_counts(place: int, flip: int) -> None:
    message = bytearray(MESSAGE)
    message[place] ^= flip
    with pytest.raises(Refusal):
        verify_quote(bytes(message), SIGNATURE, PCRS, AK, NONCES["clean"])


@given(st.binary(max_size=300))
def test_random_structures_are_refused(data: bytes) -> None:
    with pytest.raises(Refusal):
        parse_attest(b"\xff\x54\x43\x47\x80\x18" + data if len(data) % 2 else data)
    with pytest.raises(Refusal):
        verify_quote(MESSAGE, data, PCRS, AK, NONCES["clean"])
