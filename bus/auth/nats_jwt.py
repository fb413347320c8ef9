"""NATS's own keys and tokens: nkeys, JWTs signed with them (version 2, ADR-14), and the files that hold their seeds."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nkeys
from jwt import InvalidTokenError
from jwt.algorithms import Algorithm
from jwt.api_jws import PyJWS

from attestgate.schemas.base import Refusal

ALGORITHM = "ed25519-nkey"


class _NkeyAlgorithm(Algorithm):
    """Ed25519 with keys in NATS's encoding, for PyJWT. Only signs: the server verifies."""

    def prepare_key(self, key: bytes) -> Any:
        return nkeys.from_seed(key)

    def sign(self, msg: bytes, key: Any) -> bytes:
        return bytes(key.sign(msg))

    def verify(self, msg: bytes, key: Any, sig: bytes) -> bool:
        try:
            return bool(key.verify(msg, sig))
        except nkeys.ErrInvalidSignature:
            return False

    @staticmethod
    def to_jwk(key_obj: Any, as_dict: bool = False) -> Any:
        raise InvalidTokenError("nkeys have no JWK form")

    @staticmethod
    def from_jwk(jwk: Any) -> Any:
        raise InvalidTokenError("nkeys have no JWK form")


_jws = PyJWS()
_jws.register_algorithm(ALGORITHM, _NkeyAlgorithm())


def sign(seed: bytes, name: str, subject: str, claims: Mapping[str, object], *, at: int | None = None) -> str:
    """A token about the key `subject`, issued now or at `at` (Unix seconds)."""
    payload = {
        "jti": secrets.token_hex(16),
        "iat": int(time.time()) if at is None else at,
        "iss": public(seed),
        "name": name,
        "sub": subject,
        "nats": {**claims, "version": 2},
    }
    return _jws.encode(json.dumps(payload).encode(), seed, algorithm=ALGORITHM, headers={"typ": "JWT"})


def payload_of(token: str) -> dict[str, Any]:
    """What a token says, not verified: only the server does that. Raises ValueError, InvalidTokenError."""
    payload = json.loads(_jws.decode(token, options={"verify_signature": False}))
    if not isinstance(payload, dict):
        raise ValueError("no JSON object")
    return payload


def new_seed(prefix: int) -> bytes:
    """A new private key of this kind (`nkeys.PREFIX_BYTE_*`)."""
    return bytes(nkeys.encode_seed(secrets.token_bytes(32), prefix))


def public(seed: bytes) -> str:
    """The public half of a seed."""
    return bytes(nkeys.from_seed(seed).public_key).decode()


def read_seed(path: Path) -> bytes:
    """A seed from its file. Raises Refusal (`credentials.seed`)."""
    try:
        seed = path.read_bytes()
        nkeys.from_seed(seed)
    except (OSError, nkeys.NkeysError, ValueError) as error:
        raise Refusal.because(
            "credentials.seed",
            str(path),
            expected="a signing key that `keys init` created",
            found=getattr(error, "strerror", None) or "not an nkey seed",
            action="give the folder of the bus keys",
        ) from None
    return seed


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner reads. Raises Refusal if it exists: a key is never overwritten."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise Refusal.because(
            "file.write",
            str(path),
            expected="a new file",
            found=error.strerror or type(error).__name__,
            action="choose another folder, or move the old one away",
        ) from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
