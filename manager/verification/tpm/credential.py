"""TPM2_MakeCredential in software: a secret that only one TPM can open, and only for one of its own keys.

An answer with the secret shows that the attestation key named here is in the TPM with that endorsement key.
Source: TCG TPM 2.0 Library, Part 1: 24 "Credential Protection", 11.4.10 key derivation (KDFa: SP 800-108 in counter
mode with HMAC, KDFe: SP 800-56A), B.10.4 RSA secret sharing (OAEP, label "IDENTITY"), C.6.4 ECC secret sharing.
The EK's own parameters are those of its default template (TCG EK Credential Profile, annex B: L-1, L-2, H-3).
"""

from __future__ import annotations

from secrets import token_bytes

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

from attestgate.manager.verification.tpm.quote import refused
from attestgate.schemas.base import Secret

EndorsementKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
_LABEL = b"IDENTITY\0"


def make_credential(ek: EndorsementKey, name: bytes, credential: bytes) -> tuple[bytes, bytes]:
    """The credential blob (TPM2B_ID_OBJECT) and encrypted secret (TPM2B_ENCRYPTED_SECRET), without outer lengths.

    `name` is the attestation key's, `credential` at most 32 bytes. Raises Refusal (`ek.key`).
    """
    hashed, key_bits = _parameters(ek)
    seed, secret = _share_seed(ek, hashed)
    key = _kdfa(hashed, seed, b"STORAGE", name, key_bits)
    encryptor = Cipher(algorithms.AES(key.reveal()), CFB(bytes(16))).encryptor()
    identity = encryptor.update(_sized(credential)) + encryptor.finalize()
    mac = hmac.HMAC(_kdfa(hashed, seed, b"INTEGRITY", b"", hashed.digest_size * 8).reveal(), hashed)
    mac.update(identity + name)
    return _sized(mac.finalize()) + identity, secret


def _parameters(ek: EndorsementKey) -> tuple[hashes.HashAlgorithm, int]:
    """The EK's nameAlg, and the bits of its AES key, by the default template of its kind."""
    if isinstance(ek, rsa.RSAPublicKey) and ek.key_size == 2048:
        return hashes.SHA256(), 128
    if isinstance(ek, ec.EllipticCurvePublicKey) and isinstance(ek.curve, ec.SECP256R1):
        return hashes.SHA256(), 128
    if isinstance(ek, ec.EllipticCurvePublicKey) and isinstance(ek.curve, ec.SECP384R1):
        return hashes.SHA384(), 256
    raise refused("ek.key", "EK", "RSA 2048, P-256 or P-384", "another key", "use the EK certificate of such a key")


def _share_seed(ek: EndorsementKey, hashed: hashes.HashAlgorithm) -> tuple[Secret, bytes]:
    """A seed, and what brings it to the TPM."""
    if isinstance(ek, rsa.RSAPublicKey):
        seed = Secret(token_bytes(hashed.digest_size))
        oaep = padding.OAEP(padding.MGF1(hashed), hashed, _LABEL)
        return seed, ek.encrypt(seed.reveal(), oaep)
    ephemeral = ec.generate_private_key(ek.curve)
    size = (ek.curve.key_size + 7) // 8
    point, own = ephemeral.public_key().public_numbers(), ek.public_numbers()
    x, y = (coordinate.to_bytes(size, "big") for coordinate in (point.x, point.y))
    info = _LABEL + x + own.x.to_bytes(size, "big")
    shared = ephemeral.exchange(ec.ECDH(), ek)
    seed = Secret(ConcatKDFHash(hashed, hashed.digest_size, info).derive(shared))
    return seed, _sized(x) + _sized(y)


def _kdfa(hashed: hashes.HashAlgorithm, key: Secret, label: bytes, context: bytes, bits: int) -> Secret:
    kdf = KBKDFHMAC(
        hashed, Mode.CounterMode, bits // 8, 4, 4, CounterLocation.BeforeFixed, label=label, context=context, fixed=None
    )
    return Secret(kdf.derive(key.reveal()))


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data
