"""Measurement lists for tests: the recorded ones, and ones built entry by entry."""

from __future__ import annotations

import hashlib
from struct import pack

from attestgate.compose.local.recorded import FOLDER
from attestgate.manager.verification.ima.measurement_list import entries, frames
from attestgate.manager.verification.ima.runtime_policy import LoadedPolicy, RuntimePolicy, learn, load
from attestgate.manager.verification.tpm import quote as tpm
from attestgate.schemas.host_policy import HostPolicy

VECTORS = FOLDER
NONCES = {"clean": b"nonce-one-clean-0000000000000001", "drift": b"nonce-two-drift-0000000000000002"}
ANCHORED = {"clean": 446, "drift": 457}
ENTRIES = {"clean": 448, "drift": 459}
NOW = 1_764_000_000


def recorded(name: str) -> bytes:
    """A recorded binary list."""
    return (VECTORS / f"{name}.bin").read_bytes()


def quote(name: str) -> tpm.QuotedPcrs:
    """The verified quote that belongs to a recorded list."""
    message, signature, pcrs = ((VECTORS / f"{name}.quote.{part}").read_bytes() for part in ("msg", "sig", "pcrs"))
    return tpm.verify_quote(message, signature, pcrs, tpm.read_key((VECTORS / "ak.pem").read_bytes()), NONCES[name])


def framed(name: str) -> list[bytes]:
    """The entries of a recorded list, each with its own bytes."""
    return list(frames(recorded(name), "little"))


def document(*lists: bytes, **changes: object) -> RuntimePolicy:
    """A policy that knows these lists."""
    policy, left_out = learn([entries(data) for data in lists])
    assert not left_out
    return policy.model_copy(update=changes)


def loaded(*lists: bytes, **changes: object) -> LoadedPolicy:
    """The same, loaded."""
    return load(document(*lists, **changes).text())


def host(policy: LoadedPolicy, **settings: object) -> HostPolicy:
    """A host policy that refers to a runtime policy."""
    return HostPolicy.model_validate({"version": 1, "runtime_policy": policy.sha256, **settings})


def sized(*fields: bytes, order: str = "<") -> bytes:
    """Template data: each field with its length in front."""
    return b"".join(pack(f"{order}I", len(field)) + field for field in fields)


def frame(
    template: bytes, *fields: bytes, order: str = "<", pcr: int = 10, template_hash: bytes | None = None
) -> bytes:
    """One entry of a binary list; its template hash is right unless one is given."""
    data = sized(*fields, order=order)
    return framed_data(template, data, order=order, pcr=pcr, template_hash=template_hash)


def framed_data(
    template: bytes, data: bytes, *, order: str = "<", pcr: int = 10, template_hash: bytes | None = None
) -> bytes:
    """One entry around template data as given."""
    hashed = hashlib.sha1(data).digest() if template_hash is None else template_hash
    return pack(f"{order}I", pcr) + hashed + sized(template, data, order=order)


def old_frame(digest: bytes, path: bytes, *, order: str = "<", template_hash: bytes | None = None) -> bytes:
    """One entry of the old template `ima`."""
    hashed = hashlib.sha1(digest + path.ljust(256, b"\0")).digest() if template_hash is None else template_hash
    return pack(f"{order}I", 10) + hashed + sized(b"ima", order=order) + digest + sized(path, order=order)


def ng(digest: bytes = bytes(range(32)), algorithm: bytes = b"sha256") -> bytes:
    """A d-ng field."""
    return algorithm + b":\0" + digest


def boot_aggregate(order: str = "<") -> bytes:
    """The entry that every list starts with."""
    return frame(b"ima-ng", ng(b"\x01" * 32), b"boot_aggregate\0", order=order)
