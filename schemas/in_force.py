"""What stands under a key of the buckets `enrolment` and `policies`: what its authors signed, and that it is in force.

An author's signature says what somebody wanted; the managers' beside it says that it was applied: under which key, by
which command, when. Both are checked at each use. The newest statement of each author is kept, the highest `order`
first: of those whose authors are in the settings it is the one in force. So what a stolen key did ends with that key.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

from pydantic import Field

from attestgate.schemas.base import Bytes32, Id, Model, Reasons, Seconds
from attestgate.schemas.enrolment import MAX_AUTHORS, Sequence
from attestgate.schemas.signing import Purpose, Signed
from attestgate.schemas.versioned import Versioned


class InForce(Model):
    """A manager applied a command of `operator` at `applied_at`.

    `statement` is the SHA-256 of what stands beside, `command` that of the operator's command, each as it was signed.
    `order` is the command's sequence, or a policy manifest's version.
    """

    statement: Bytes32
    command: Bytes32
    operator: Id
    order: Sequence
    applied_at: Seconds


IN_FORCE = Purpose("in force", "manager", InForce)


class Standing(Model):
    """An author's statement, and the manager's that it is in force."""

    statement: Signed
    in_force: Signed


class Standings(Versioned):
    """A bucket's value."""

    standing: Annotated[list[Standing], Field(min_length=1, max_length=MAX_AUTHORS)]


class Answer(Model):
    """A manager's answer to a command: applied, or refused and why. The signature's context is the command's SHA-256.

    `at` is the manager's clock, `newest` the highest sequence that it knows of this operator and of the command's
    subject: what a command must be above, and by which an operator whose clock is wrong can sign again.
    """

    applied: bool
    at: Seconds
    newest: Annotated[int, Field(ge=0, lt=2**63)]
    reasons: Reasons


ANSWER = Purpose("answer", "manager", Answer)


def digest_of(signed: bytes) -> bytes:
    """The SHA-256 that names a signed message."""
    return hashlib.sha256(signed).digest()


def place_of(bucket: str, key: str) -> str:
    """The place of the managers' statement that something is in force."""
    return f"{bucket}/{key}"
