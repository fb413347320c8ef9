"""MakeCredential against the TPM's half of it, written out here; and what an EK certificate must be."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from cryptography import x509
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.x509.oid import NameOID

from attestgate.manager.verification.tpm.credential import make_credential
from attestgate.manager.verification.tpm.ek import check_ek
from attestgate.manager.verification.tpm.enrolment import challenge, enrolment, golden_from, read_bundle
from attestgate.manager.verification.tpm.public_area import attestation_key
from attestgate.schemas.base import Refusal
from attestgate.schemas.tpm import TpmAnswer, TpmDescription
from tests.support.ima.lists import NOW, VECTORS
from tests.support.reasons import refusal_code
from tests.support.threats import rows, threat
from tests.support.tpm.credentials import EK, OTHER, VENDOR, EkPrivate, Vendor
from tests.support.tpm.soft import SoftTpm

RSA_EK = rsa.generate_private_key(public_exponent=65537, key_size=2048)
P384_EK = ec.generate_private_key(ec.SECP384R1())
NAME = b"\x00\x0b" + bytes(range(32))


def kdfa(digest: str, key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """TPM 2.0 Part 1, 11.4.10.2, in its own words."""
    made, counter = b"", 0
    while len(made) * 8 < bits:
        counter += 1
        fixed = label + b"\0" + context + bits.to_bytes(4, "big")
        made += hmac.digest(key, counter.to_bytes(4, "big") + fixed, digest)
    return made[: bits // 8]


def kdfe(digest: str, shared: bytes, label: bytes, u: bytes, v: bytes) -> bytes:
    """TPM 2.0 Part 1, 11.4.10.3: one round is enough for as many bits as the hash has."""
    return hashlib.new(digest, (1).to_bytes(4, "big") + shared + label + b"\0" + u + v).digest()


def activate(ek: EkPrivate, name: bytes, blob: bytes, secret: bytes) -> bytes:
    """TPM2_ActivateCredential; an AssertionError where a TPM says TPM_RC_INTEGRITY."""
    wide = isinstance(ek, ec.EllipticCurvePrivateKey) and ek.curve.key_size == 384
    digest, bits = ("sha384", 256) if wide else ("sha256", 128)
    if isinstance(ek, rsa.RSAPrivateKey):
        seed = ek.decrypt(secret, padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"IDENTITY\0"))
    else:
        size = ek.curve.key_size // 8
        x, y = secret[2 : 2 + size], secret[4 + size :]
        point = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), ek.curve)
        own = ek.public_key().public_numbers().x.to_bytes(size, "big")
        seed = kdfe(digest, ek.exchange(ec.ECDH(), point.public_key()), b"IDENTITY", x, own)
    size = hashlib.new(digest).digest_size
    mac, identity = blob[2 : 2 + size], blob[2 + size :]
    wanted = hmac.digest(kdfa(digest, seed, b"INTEGRITY", b"", size * 8), identity + name, digest)
    assert hmac.compare_digest(mac, wanted)
    decryptor = Cipher(algorithms.AES(kdfa(digest, seed, b"STORAGE", name, bits)), CFB(bytes(16))).decryptor()
    plain = decryptor.update(identity) + decryptor.finalize()
    return plain[2 : 2 + int.from_bytes(plain[:2], "big")]


@threat(rows.TPM_OTHER)
@pytest.mark.parametrize("ek", [EK, RSA_EK, P384_EK], ids=["P-256", "RSA", "P-384"])
def test_the_tpm_with_that_ek_opens_it_for_that_key_only(ek: EkPrivate) -> None:
    blob, secret = make_credential(ek.public_key(), NAME, b"c" * 32)
    assert activate(ek, NAME, blob, secret) == b"c" * 32
    with pytest.raises(AssertionError):
        activate(ek, NAME[:-1] + b"\xff", blob, secret)
    assert make_credential(ek.public_key(), NAME, b"c" * 32) != (blob, secret)


def test_another_ek_does_not_open_it() -> None:
    blob, secret = make_credential(EK.public_key(), NAME, b"c" * 32)
    with pytest.raises(AssertionError):
        activate(ec.generate_private_key(ec.SECP256R1()), NAME, blob, secret)


def test_an_ek_of_another_kind_is_refused() -> None:
    for key in (ec.generate_private_key(ec.SECP521R1()), rsa.generate_private_key(65537, 3072)):
        with pytest.raises(Refusal, match=r"ek\.key"):
            make_credential(key.public_key(), NAME, b"c" * 32)


def ek_code(der: bytes, roots: bytes, at: int = NOW) -> str:
    with pytest.raises(Refusal) as refusal:
        check_ek(der, roots, at)
    return refusal_code(refusal)


def test_an_ek_certificate_chains_to_a_configured_root() -> None:
    assert check_ek(VENDOR.ek(), VENDOR.bundle, NOW) == EK.public_key()
    assert check_ek(VENDOR.ek(RSA_EK, usage=None), OTHER.bundle + VENDOR.bundle, NOW) == RSA_EK.public_key()


def test_the_recorded_ek_certificate_chains_to_its_recorded_root() -> None:
    bundle = b"".join((VECTORS / name).read_bytes() for name in ("issuercert.pem", "swtpm-localca-rootca-cert.pem"))
    der = (VECTORS / "ek_cert.der").read_bytes()
    at = int(x509.load_der_x509_certificate(der).not_valid_before_utc.timestamp())
    assert isinstance(check_ek(der, bundle, at), ec.EllipticCurvePublicKey)
    assert ek_code(der, VENDOR.bundle, at) == "ek.root"


def test_each_thing_wrong_with_an_ek_certificate_has_its_reason() -> None:
    root_only = VENDOR.root.public_bytes(serialization.Encoding.PEM)
    intermediate_only = VENDOR.intermediate.public_bytes(serialization.Encoding.PEM)
    namesake = Vendor()
    assert ek_code(VENDOR.ek(), OTHER.bundle) == "ek.root"
    assert ek_code(VENDOR.ek(), namesake.bundle) == "ek.root"
    assert ek_code(VENDOR.ek(), root_only) == "ek.root"
    assert ek_code(VENDOR.ek(), intermediate_only) == "ek.root"
    assert ek_code(VENDOR.ek(usage="1.3.6.1.5.5.7.3.1"), VENDOR.bundle) == "ek.usage"
    assert ek_code(VENDOR.ek(ed25519.Ed25519PrivateKey.generate()), VENDOR.bundle) == "ek.key"
    assert ek_code(VENDOR.ek(), VENDOR.bundle, NOW + 3 * 86400) == "ek.certificate.expired"
    assert ek_code(VENDOR.ek(), VENDOR.bundle, NOW - 3 * 86400) == "ek.certificate.not_yet_valid"
    assert ek_code(b"0", VENDOR.bundle) == "ek.malformed"
    assert ek_code(VENDOR.root.public_bytes(serialization.Encoding.DER), VENDOR.bundle) == "ek.root"


def test_an_end_certificate_is_no_issuer() -> None:
    leaf_key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "leaf")])
    leaf = VENDOR.issue(leaf_key.public_key(), name, by=(VENDOR.name, VENDOR.key), ca=False)
    ek = VENDOR.issue(EK.public_key(), x509.Name([]), by=(name, leaf_key), ca=False)
    bundle = VENDOR.bundle + leaf.public_bytes(serialization.Encoding.PEM)
    assert ek_code(ek.public_bytes(serialization.Encoding.DER), bundle) == "ek.chain"


def test_a_tpm_is_enrolled_by_the_right_answer_only() -> None:
    tpm = SoftTpm()
    description = TpmDescription(ek_certificate=VENDOR.ek().hex(), ak=tpm.area.hex())
    asked, kept = challenge(description, read_bundle([VENDOR.bundle]), NOW)
    name = attestation_key(tpm.area).name
    answer = activate(EK, name, bytes.fromhex(asked.credential_blob), bytes.fromhex(asked.secret))
    quoted = tpm.quote(b"n" * 32)
    golden = golden_from(quoted.message, quoted.pcrs)
    record = enrolment(kept, TpmAnswer(credential=answer.hex()), [golden])
    assert record.ak == tpm.area and record.golden == tpm.enrolment.golden
    with pytest.raises(Refusal, match=r"tpm\.answer"):
        enrolment(kept, TpmAnswer(credential="00" * 32), [golden])
    assert answer.hex() not in kept.model_dump_json()


def test_golden_values_must_be_the_quotes() -> None:
    quoted = SoftTpm().quote(b"n" * 32)
    with pytest.raises(Refusal, match=r"tpm\.pcr_digest"):
        golden_from(quoted.message, quoted.pcrs[32:] + quoted.pcrs[:32])
    few = SoftTpm().quote(b"n" * 32, selection=b"\xfe\x07\x00")
    with pytest.raises(Refusal, match=r"tpm\.selection"):
        golden_from(few.message, few.pcrs)
    with pytest.raises(Refusal, match=r"ek\.root"):
        read_bundle([b"no certificate"])
