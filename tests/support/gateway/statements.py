"""Leases and withdrawals as a manager makes them, with nothing behind them."""

from __future__ import annotations

from typing import Any

from attestgate.manager.gateway.desired_state import DesiredState
from attestgate.manager.gateway.floors import Row
from attestgate.manager.gateway.kept_floors import KeptFloors
from attestgate.manager.gateway.lease_table import LeaseTable
from attestgate.schemas.admission import HostLease, Lease, Statement, Tenure, Withdrawal

SESSION = "0a" * 16
APP_SESSION = "0b" * 16
CERT, HOST = "cert.01", f"host.{SESSION}"
APP_TENURE = Tenure(place="app.a1.h1", session=APP_SESSION, rank=1)
HOST_TENURE = Tenure(place="host.h1", session=SESSION, rank=1)


def lease(issued_at: int = 100, expires_at: int = 130, sequence: int = 1, **more: Any) -> Lease:
    values: dict[str, Any] = {
        "gateways": "sdn",
        "serial": "01",
        "certificate": "ab" * 32,
        "identity": "spiffe://sdn.example.org/host/h1/app/a1",
        "app": "a1",
        "host": "h1",
        "app_session": APP_SESSION,
        "host_session": SESSION,
        "integrity": "anchored",
        "simulated": False,
        "observe_only": False,
        "allow": ["* /**"],
        "rank": 1,
        "enrolled": 1,
        "policy": 1,
    }
    return Lease(issued_at=issued_at, expires_at=expires_at, sequence=sequence, **values | more)


def host(issued_at: int = 100, expires_at: int = 130, sequence: int = 1, **more: Any) -> HostLease:
    values: dict[str, Any] = {"host": "h1", "host_session": SESSION, "rank": 1, "enrolled": 1, "policy": 1}
    return HostLease(issued_at=issued_at, expires_at=expires_at, sequence=sequence, **values | more)


def withdrawal(
    key: str = CERT, issued_at: int = 110, until: int = 130, sequence: int = 2, ends: Tenure | None = None
) -> Withdrawal:
    return Withdrawal(key=key, issued_at=issued_at, until=until, sequence=sequence, reason="app.revoked", ends=ends)


class FloorsInMemory(KeptFloors):
    """Floors as with a disk that takes no time."""

    def __init__(self, longest_lease_s: int = 3600, operators: frozenset[bytes] = frozenset()) -> None:
        super().__init__(operators=operators, longest_lease_s=longest_lease_s)

    def take(self, statement: Statement, value: bytes, at: int) -> list[Row]:
        rows = super().take(statement, value, at)
        self.wrote(rows, self.known.counter)
        return rows


def desired_state(longest_lease_s: int) -> DesiredState:
    """What an nginx must hold, by such floors."""
    floors = FloorsInMemory(longest_lease_s)
    return DesiredState(LeaseTable("sdn", floors=floors, longest_lease_s=longest_lease_s), floors)
