"""The signer of enclaves: an RSA-3072 key, known to the platform by the hash of its modulus (MRSIGNER).

Source: SDM vol. 3D, SIGSTRUCT: exponent 3, MRSIGNER = SHA-256 of the modulus, little-endian. The simulated daemon signs
whatever it launches, so there MRSIGNER identifies the machine's owner; only MRENCLAVE identifies the code.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa

from attestgate.enclave.simulated.files import not_a, read_key, write_key

_KEY_BITS = 3072
_EXPONENT = 3


def create(path: Path) -> None:
    """Create a signer's key, PEM, mode 0600."""
    write_key(path, rsa.generate_private_key(public_exponent=_EXPONENT, key_size=_KEY_BITS))


def read_mrsigner(path: Path) -> bytes:
    """MRSIGNER (32 bytes) of a signer's key. Raises Refusal (`file.*`)."""
    key = read_key(path)
    if not isinstance(key, rsa.RSAPrivateKey) or key.key_size != _KEY_BITS:
        raise not_a(path, f"RSA-{_KEY_BITS} private key")
    modulus = key.public_key().public_numbers().n
    return hashlib.sha256(modulus.to_bytes(_KEY_BITS // 8, "little")).digest()
