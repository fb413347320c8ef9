"""A host that is trusted now: what whatever an application is granted rests on."""

from __future__ import annotations

from dataclasses import dataclass

from attestgate.manager.sessions.record import HostRecord
from attestgate.manager.sessions.states import State
from attestgate.schemas.base import Secret, SessionId
from attestgate.schemas.messages import Outcome
from attestgate.schemas.sgx import PlatformIdentity


@dataclass(frozen=True)
class TrustedHost:
    """A host session as it was trusted when it was looked at. Made by `trusted` alone.

    `lease_end` is in Unix seconds; `k` is the session's key K, which its enclave has proven to have.
    """

    session: SessionId
    lease_end: int
    k: Secret
    outcome: Outcome
    platform: PlatformIdentity


def trusted(record: HostRecord, now: int, skew_s: int) -> TrustedHost | None:
    """The host of a session if it is trusted at Unix second `now`; None if it is not."""
    if record.state not in (State.TRUSTED, State.RECHECKING) or record.stale(now, skew_s):
        return None
    if record.lease_end is None or now >= record.lease_end:
        return None
    if record.k is None or record.outcome is None or record.platform is None:
        raise AssertionError(f"trust without a verdict or a key in {record.state}")
    return TrustedHost(record.session, record.lease_end, record.k, record.outcome, record.platform)
