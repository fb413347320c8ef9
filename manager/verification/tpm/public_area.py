"""A TPM's public area: its name, the key that it verifies with, and whether it may serve as an attestation key.

Source: TCG TPM 2.0 Library, Part 2: 12.2.4 TPMT_PUBLIC, 8.3 TPMA_OBJECT, 12.2.3.5 TPMS_RSA_PARMS, 12.2.3.6
TPMS_ECC_PARMS; Part 1: 16 "Names". All integers are big-endian.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from attestgate.manager.verification.tpm.quote import (
    ECDSA,
    MIN_RSA_BITS,
    RSAPSS,
    RSASSA,
    AttestationKey,
    Reader,
    refused,
)

TYPE_RSA, TYPE_ECC = 0x0001, 0x0023
ALG_NULL = 0x0010
DEFAULT_EXPONENT = 65537
FIXED_TPM, FIXED_PARENT, SENSITIVE_DATA_ORIGIN = 1 << 1, 1 << 4, 1 << 5
RESTRICTED, DECRYPT, SIGN = 1 << 16, 1 << 17, 1 << 18

_HASHES = {0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
_CURVES: dict[int, ec.EllipticCurve] = {0x0003: ec.SECP256R1(), 0x0004: ec.SECP384R1()}


@dataclass(frozen=True, slots=True)
class Public:
    """A public area. `scheme` and `scheme_hash` are TPM_ALG_IDs, ALG_NULL where a key is not bound to any."""

    name: bytes
    attributes: int
    symmetric: int
    scheme: int
    scheme_hash: int
    key: AttestationKey


def attestation_key(area: bytes) -> Public:
    """A TPMT_PUBLIC that is an attestation key: it signs nothing but what the TPM itself made, and cannot leave it.

    Raises Refusal (`tpm.*`, `tpm.ak`).
    """
    public = parse_public(area)
    # fixedTPM, fixedParent: no copy elsewhere; sensitiveDataOrigin: nobody chose the private key; restricted: software
    # cannot have it sign a quote of its own making. All of it is the host's claim until its enrolment is answered.
    wanted = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | RESTRICTED | SIGN
    if public.attributes & (wanted | DECRYPT) != wanted:
        expected = "fixedTPM, fixedParent, sensitiveDataOrigin, restricted and sign, not decrypt"
        raise refused(
            "tpm.ak", "AK, objectAttributes", expected, hex(public.attributes), "make the AK as a signing key"
        )
    if public.scheme not in (RSASSA, RSAPSS, ECDSA) or public.scheme_hash not in _HASHES:
        found = f"{public.scheme:#06x} with hash {public.scheme_hash:#06x}"
        raise refused(
            "tpm.ak", "AK, scheme", "RSASSA, RSAPSS or ECDSA with SHA-256 or longer", found, "make another AK"
        )
    if public.symmetric != ALG_NULL:
        raise refused("tpm.ak", "AK, symmetric", "TPM_ALG_NULL", hex(public.symmetric), "make the AK as a signing key")
    return public


def parse_public(area: bytes) -> Public:
    """Read a TPMT_PUBLIC of an RSA or ECC key. Raises Refusal (`tpm.*`)."""
    read = Reader(area, "TPMT_PUBLIC")
    kind = read.number(2)
    name_alg = read.number(2)
    if name_alg not in _HASHES:
        raise refused("tpm.ak", "AK, nameAlg", "SHA-256, SHA-384 or SHA-512", hex(name_alg), "make another AK")
    attributes = read.number(4)
    read.sized()  # authPolicy: who may use the key, which its signature does not depend on
    symmetric = read.number(2)
    if symmetric != ALG_NULL:
        read.take(4)
    scheme = read.number(2)
    scheme_hash = ALG_NULL if scheme == ALG_NULL else read.number(2)
    if kind == TYPE_RSA:
        key: AttestationKey = _rsa(read)
    elif kind == TYPE_ECC:
        key = _ecc(read)
    else:
        raise refused("tpm.ak", "AK, type", "RSA or ECC", hex(kind), "make another AK")
    read.end()
    name = name_alg.to_bytes(2, "big") + hashlib.new(_HASHES[name_alg], area).digest()
    return Public(name, attributes, symmetric, scheme, scheme_hash, key)


def _rsa(read: Reader) -> rsa.RSAPublicKey:
    bits, exponent = read.number(2), read.number(4) or DEFAULT_EXPONENT
    modulus = int.from_bytes(read.sized(), "big")
    if bits < MIN_RSA_BITS or modulus.bit_length() != bits:
        found = f"{modulus.bit_length()} bits, said to be {bits}"
        raise refused("tpm.ak", "AK, RSA", f"{MIN_RSA_BITS} bits or more", found, "make a stronger AK")
    try:
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError:
        raise refused("tpm.ak", "AK, RSA", "a public key", f"exponent {exponent}", "send what the TPM made") from None


def _ecc(read: Reader) -> ec.EllipticCurvePublicKey:
    curve = _CURVES.get(number := read.number(2))
    if curve is None:
        raise refused("tpm.ak", "AK, curve", "P-256 or P-384", hex(number), "make another AK")
    kdf = read.number(2)
    if kdf != ALG_NULL:
        read.take(2)
    x, y = (int.from_bytes(read.sized(), "big") for _ in "xy")
    try:
        return ec.EllipticCurvePublicNumbers(x, y, curve).public_key()
    except ValueError:
        raise refused("tpm.ak", "AK, point", f"a point of {curve.name}", "another", "send what the TPM made") from None
