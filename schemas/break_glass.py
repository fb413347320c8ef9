"""Break-glass: an operator's signed admission of one certificate, for a short time, without the manager.

It reaches a gateway as a file, so that neither manager nor bus has to be up. It is signed for one set of gateways.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from attestgate.schemas.admission import Rules, Serial, SpiffeId
from attestgate.schemas.base import Hex32, Id, Model, Refusal, Seconds, unpack
from attestgate.schemas.clocks import stale
from attestgate.schemas.signing import Purpose, Signed, TrustedKeys

MAX_FILE = 16 * 1024


class BreakGlass(Model):
    """The admission that the operator signs."""

    operator: Id
    serial: Serial
    certificate: Hex32
    """SHA-256 of the certificate's DER."""
    identity: SpiffeId
    allow: Rules
    issued_at: Seconds
    expires_at: Seconds
    reason: Annotated[str, Field(min_length=1, max_length=200)]


BREAK_GLASS = Purpose("break glass", "operator", BreakGlass)


def at_gateways(name: str) -> str:
    """The place of an operator's statement to a set of gateways."""
    return f"gateways/{name}"


def open_break_glass(data: bytes, operators: TrustedKeys, gateways: str, longest_s: int) -> BreakGlass:
    """A file's admission, whatever the time: what is refused here stays so.

    Raises Refusal (`message.*`, `signature.*`, `break-glass.*`).
    """
    admission = operators.read(BREAK_GLASS, unpack(Signed, data, limit=MAX_FILE), at_gateways(gateways))
    if admission.expires_at - admission.issued_at > longest_s:
        found = f"{admission.expires_at - admission.issued_at} s"
        raise _refused("expires_at", f"at most {longest_s} s", found, "sign it for a shorter time")
    return admission


def check_time(admission: BreakGlass, at: int) -> None:
    """Raises Refusal (`break-glass.issued_at`, `break-glass.expires_at`) unless it is valid at Unix second `at`."""
    if stale(admission.issued_at, at):
        raise _refused("issued_at", f"by {at}", admission.issued_at, "synchronize the clocks")
    if admission.expires_at <= at:
        raise _refused("expires_at", f"after {at}", admission.expires_at, "remove the file: it has expired")


def _refused(field: str, expected: object, found: object, action: str) -> Refusal:
    return Refusal.because(f"break-glass.{field}", field, expected=expected, found=found, action=action)
