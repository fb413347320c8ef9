"""A signed tree head of the decision log, as a C2SP checkpoint: text that standard witnesses and tools read.

The formats are C2SP's: tlog-checkpoint for the text, signed-note for the signature (Ed25519, type 0x01). Two extension
lines of our own follow the root. A note's text begins with a letter or digit, every other statement of a manager with
msgpack's array marker: neither can be mistaken for the other.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Annotated

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import StringConstraints

from attestgate.schemas.base import Bytes32, Count, Model, Refusal, Seconds

MAX_NOTE = 16 * 1024
ED25519 = b"\x01"
"""Signature type, in a key's id."""
_BODY = re.compile(
    r"([a-z0-9][a-z0-9./-]{0,299})\n(0|[1-9]\d{0,18})\n([A-Za-z0-9+/]{43}=)\ncursor (\d{1,19})\ntime (\d{1,12})\n"
)
_NUMBERED = re.compile(r"(.+/decisions)/([2-9]|[1-9][0-9]{1,8})")
_SIGNATURE = re.compile(r"— (\S{1,300}) ([A-Za-z0-9+/]+={0,2})")


class Checkpoint(Model):
    """A tree's size and root hash. `cursor`: the last sequence of the stream ATTEST_LOG that the log includes."""

    origin: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9./-]{0,299}$", max_length=300)]
    size: Count
    root: Bytes32
    cursor: Count
    at: Seconds

    @property
    def log(self) -> str:
        """The log's name, which all its trees have in common: the first tree's origin."""
        numbered = _NUMBERED.fullmatch(self.origin)
        return numbered[1] if numbered else self.origin

    @property
    def tree(self) -> int:
        """The tree's number in its log, from 1."""
        numbered = _NUMBERED.fullmatch(self.origin)
        return int(numbered[2]) if numbered else 1

    def text(self) -> str:
        """What is signed."""
        root = base64.b64encode(self.root).decode()
        return f"{self.origin}\n{self.size}\n{root}\ncursor {self.cursor}\ntime {self.at}\n"


def origin_of(trust_domain: str, tree: int = 1) -> str:
    """A tree's name, and that of the key that signs its heads. The first tree's is the log's."""
    log = f"{trust_domain}/attestgate/decisions"
    return log if tree == 1 else f"{log}/{tree}"


def sign_checkpoint(key: Ed25519PrivateKey, checkpoint: Checkpoint) -> str:
    """The note: text, empty line, signature line."""
    text = checkpoint.text()
    identifier = key_id(checkpoint.origin, key.public_key().public_bytes_raw())
    signature = base64.b64encode(identifier + key.sign(text.encode())).decode()
    return f"{text}\n— {checkpoint.origin} {signature}\n"


def open_checkpoint(note: str, signers: set[bytes]) -> Checkpoint:
    """A checkpoint, verified with one of `signers` (Ed25519 public keys).

    Signatures by others, such as witnesses, are ignored, as signed-note requires. Raises Refusal (`log.checkpoint`,
    `signature.*`).
    """
    text, _, lines = note.partition("\n\n")
    found = _BODY.fullmatch(f"{text}\n")
    if found is None or len(note) > MAX_NOTE:
        raise Refusal.because(
            "log.checkpoint",
            "checkpoint",
            expected="a checkpoint of the decision log (C2SP tlog-checkpoint)",
            found=note[:80],
            action="give the file that `attestgate log head` wrote",
        )
    origin, size, root, cursor, at = found.groups()
    if not any(_signed(f"{text}\n", origin, line, signers) for line in lines.splitlines()):
        raise Refusal.because(
            "signature.invalid",
            "checkpoint",
            expected="a valid Ed25519 signature by a manager",
            found="no such signature",
            action="get it again: it was changed in transit, or another deployment's manager signed it",
        )
    return Checkpoint(origin=origin, size=int(size), root=base64.b64decode(root), cursor=int(cursor), at=int(at))


def key_id(name: str, public: bytes) -> bytes:
    """A key's id in a signature line: the first four bytes of a hash over its name, type and bytes."""
    return hashlib.sha256(name.encode() + b"\n" + ED25519 + public).digest()[:4]


def _signed(text: str, origin: str, line: str, signers: set[bytes]) -> bool:
    """Whether a signature line is one of the signers', under the log's own name."""
    found = _SIGNATURE.fullmatch(line)
    if found is None or found[1] != origin:
        return False
    try:
        raw = base64.b64decode(found[2], validate=True)
    except binascii.Error:
        return False
    for public in signers:
        if raw[:4] == key_id(origin, public):
            try:
                Ed25519PublicKey.from_public_bytes(public).verify(raw[4:], text.encode())
            except (InvalidSignature, ValueError):
                continue
            return True
    return False
