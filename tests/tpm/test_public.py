"""TPMT_PUBLIC: what an attestation key is, and each attribute that makes another key no attestation key."""

from __future__ import annotations

import hashlib
from struct import pack

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from attestgate.manager.verification.tpm.public_area import (
    DECRYPT,
    FIXED_PARENT,
    FIXED_TPM,
    RESTRICTED,
    SENSITIVE_DATA_ORIGIN,
    SIGN,
    attestation_key,
    parse_public,
)
from attestgate.manager.verification.tpm.quote import read_key
from attestgate.schemas.base import Refusal
from tests.support.ima.lists import VECTORS
from tests.support.reasons import refusal_code
from tests.support.tpm.soft import AK_ATTRIBUTES, ALG_NULL, SHA256, ecc_area, tpm2b

KEY = ec.generate_private_key(ec.SECP256R1()).public_key()
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
RECORDED = (VECTORS / "ak.tpmt").read_bytes()


def rsa_area(bits: int = 2048, exponent: int = 0, modulus: int | None = None) -> bytes:
    """A TPMT_PUBLIC of an RSA attestation key."""
    number = RSA_KEY.public_numbers().n if modulus is None else modulus
    parameters = pack(">H", ALG_NULL) + pack(">HH", 0x0014, SHA256) + pack(">HI", bits, exponent)
    return pack(">HHI", 0x0001, SHA256, AK_ATTRIBUTES) + tpm2b(b"") + parameters + tpm2b(number.to_bytes(256, "big"))


def area_refused(area: bytes) -> str:
    with pytest.raises(Refusal) as refusal:
        attestation_key(area)
    return refusal_code(refusal)


def test_the_recorded_key_is_an_attestation_key_and_the_one_in_the_pem() -> None:
    public = attestation_key(RECORDED)
    assert public.key == read_key((VECTORS / "ak.pem").read_bytes())
    assert public.name == b"\x00\x0b" + hashlib.sha256(RECORDED).digest()


def test_keys_of_both_kinds_are_read() -> None:
    assert attestation_key(ecc_area(KEY)).key == KEY
    assert attestation_key(rsa_area()).key == RSA_KEY
    assert attestation_key(rsa_area(exponent=65537)).key == RSA_KEY


@pytest.mark.parametrize("bit", [FIXED_TPM, FIXED_PARENT, SENSITIVE_DATA_ORIGIN, RESTRICTED, SIGN])
def test_each_attribute_counts(bit: int) -> None:
    assert area_refused(ecc_area(KEY, attributes=AK_ATTRIBUTES & ~bit)) == "tpm.ak"


@pytest.mark.parametrize(
    ("area", "expected"),
    [
        (ecc_area(KEY, attributes=AK_ATTRIBUTES | DECRYPT), "tpm.ak"),
        (ecc_area(KEY, scheme=pack(">H", ALG_NULL)), "tpm.ak"),
        (ecc_area(KEY, scheme=pack(">HH", 0x0018, 0x0004)), "tpm.ak"),
        (ecc_area(KEY, scheme=pack(">HH", 0x001A, SHA256)), "tpm.ak"),
        (ecc_area(KEY, name_alg=0x0004), "tpm.ak"),
        (ecc_area(KEY, symmetric=pack(">HHH", 0x0006, 128, 0x0043)), "tpm.ak"),
        (ecc_area(KEY, curve=0x0010), "tpm.ak"),
        (ecc_area(KEY, curve=0x0004), "tpm.ak"),
        (ecc_area(KEY, rest=b"\0"), "tpm.trailing"),
        (ecc_area(KEY)[:-1], "tpm.truncated"),
        (pack(">H", 0x0008) + ecc_area(KEY)[2:], "tpm.ak"),
        (rsa_area(bits=1024), "tpm.ak"),
        (rsa_area(modulus=3), "tpm.ak"),
        (rsa_area(exponent=2), "tpm.ak"),
        (b"", "tpm.truncated"),
    ],
    ids=[
        *(
            "decrypts",
            "no scheme",
            "SHA-1",
            "ECDAA",
            "name of SHA-1",
            "symmetric",
            "no curve",
            "P-384",
            "trailing byte",
        ),
        *("one byte less", "HMAC key", "RSA 1024", "modulus 3", "exponent 2", "empty"),
    ],
)
def test_other_keys_are_refused(area: bytes, expected: str) -> None:
    assert area_refused(area) == expected


@given(st.integers(0, len(RECORDED) - 1), st.integers(1, 255))
def test_any_byte_changed_is_another_name_or_no_key(place: int, flip: int) -> None:
    changed = bytearray(RECORDED)
    changed[place] ^= flip
    try:
        assert attestation_key(bytes(changed)).name != attestation_key(RECORDED).name
    except Refusal as refusal:
        assert refusal.reasons


@given(st.binary(max_size=200))
def test_random_areas_are_refused(data: bytes) -> None:
    with pytest.raises(Refusal):
        parse_public(data)
