"""The largest message of each role and step, in bytes: checked before anything of a message is read.

Each follows from its model's own limits (schemas/bounds.py) and from what its encryption or signature adds. What
carries a measurement list or policies is bounded by the bus alone, and holds these as single byte strings.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel

from attestgate.schemas import messages
from attestgate.schemas.admission import MAX_REPORT
from attestgate.schemas.base import MAX_MESSAGE, check_size
from attestgate.schemas.bounds import bounds_of

FRAME = 192
"""Most that a channel message is longer than its plaintext (bus/crypto/channel.py)."""
ENVELOPE = 1280
"""Most that a sealed message is longer than its plaintext: the key's encapsulation, the tag, the session's id."""
SIGNED = 192
"""Most that a signed statement is longer than its payload: version, signer and signature."""
SMALL = 48 * 1024
"""Packed bytes up to which a host's answer to a recheck is `recheck_evidence`; a longer one is `recheck_list`."""
COMMAND = 256 * 1024
"""An operator's command without policies."""


def _plain(kind: type[BaseModel]) -> int:
    return bounds_of(kind).size


def _framed(kind: type[BaseModel]) -> int:
    return min(_plain(kind) + FRAME, MAX_MESSAGE)


def _sealed(kind: type[BaseModel]) -> int:
    return min(_plain(kind) + ENVELOPE, MAX_MESSAGE)


def _signed(kind: type[BaseModel]) -> int:
    return min(_plain(kind) + SIGNED, MAX_MESSAGE)


INBOUND: Mapping[tuple[str, str], int] = {
    ("host", "hello"): _plain(messages.HostHello),
    ("host", "evidence"): _sealed(messages.HostEvidence),
    ("host", "key_proof"): _framed(messages.Proof),
    ("host", "recheck_evidence"): SMALL + FRAME,
    ("host", "recheck_list"): _framed(messages.HostRecheckEvidence),
    ("host", "key_delivered"): _framed(messages.KeyDelivered),
    ("host", "resume"): _plain(messages.Resume),
    ("app", "hello"): _plain(messages.AppHello),
    ("app", "evidence"): _sealed(messages.AppEvidence),
    ("app", "colocation_proof"): _framed(messages.Proof),
    ("app", "recheck_evidence"): _framed(messages.AppRecheckEvidence),
    ("app", "resume"): _plain(messages.Resume),
    ("gateway", "report"): MAX_REPORT,
}
"""By role and step, as in bus.subjects.STEPS: what an agent or a gateway may send to the manager."""

_BOTH: Mapping[str, int] = {
    "challenge": _signed(messages.Challenge),
    "refused": _signed(messages.Refused),
    "rejected": _signed(messages.Rejected),
    "recheck": _framed(messages.Recheck),
    "ended": _framed(messages.Ended),
}
OUTBOUND: Mapping[tuple[str, str], int] = {
    **{(role, step): size for role in ("host", "app") for step, size in _BOTH.items()},
    ("host", "grant"): _sealed(messages.HostGrant) + SIGNED,
    ("host", "accepted"): _framed(messages.Accepted),
    ("host", "deliver_key"): _framed(messages.DeliverKey),
    ("app", "grant"): _sealed(messages.AppGrant) + SIGNED,
    ("app", "certificate"): _framed(messages.Certificate),
    ("app", "renew"): _framed(messages.Certificate),
    ("app", "ready"): _framed(messages.Ready),
}
"""By role and step: what the manager may send to an agent."""

_WITH_DOCUMENTS = ("put-policy", "try-policy")


def largest(role: str, *steps: str) -> int:
    """The largest of some steps of a role."""
    return max(INBOUND[role, step] for step in steps)


def check_inbound(role: str, step: str, data: bytes) -> None:
    """Raises Refusal `message.size` for a message above the maximum of its step, one of bus.subjects.STEPS."""
    check_size(f"{role} {step}", data, INBOUND[role, step])


def check_command(command: str, data: bytes) -> None:
    """The same for an operator's command, by the last token of its subject."""
    check_size(command, data, MAX_MESSAGE if command in _WITH_DOCUMENTS else COMMAND)
