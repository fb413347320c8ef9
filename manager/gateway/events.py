"""The events of a gateway: what each is called and what data it carries (schemas/event_data.py)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from attestgate.manager.gateway.dictionary import Rejection, RequestRefusal
from attestgate.manager.gateway.entries import CertificateEntry, DictionaryChanges
from attestgate.manager.gateway.floors import BelowFloor, Revocation
from attestgate.manager.gateway.lease_table import LeaseTable
from attestgate.manager.gateway.reports import Reporter
from attestgate.schemas.admission import RefusedLease, Withdrawal
from attestgate.schemas.base import Refusal
from attestgate.schemas.break_glass import BreakGlass

REJECTED_S = 60.0
"""Least time between two events `connections-rejected` of one port and limit."""
_MAX_BELOW = 10_000


class GatewayEvents:
    """Turns what happens at one gateway into events. Renewing an admitted key is no event."""

    def __init__(self, reporter: Reporter, leases: LeaseTable, clock: Callable[[], float]) -> None:
        self._reporter = reporter
        self._leases = leases
        self._clock = clock
        self._admitted: set[str] = set()
        self._rejected: Counter[tuple[int, str]] = Counter()
        """Connections rejected that no event has told of yet, by port and limit."""
        self._rejected_at: dict[tuple[int, str], float] = {}
        self._below: dict[tuple[str, str], None] = {}
        """Leases below a floor that an event has told of, by key and code; the oldest first."""

    def applied(self, changes: DictionaryChanges) -> None:
        """nginx has made these changes: `withdrawn` and, for keys that were not admitted before, `admitted`."""
        for key in changes.remove:
            self._admitted.discard(key)
            self._withdrawn(key)
        for key, entry in changes.put.items():
            if key not in self._admitted:
                self._admitted.add(key)
                who = entry.identity if isinstance(entry, CertificateEntry) else entry.host
                data: dict[str, object] = {"key": key, "who": who, "sequence": entry.sequence, "until": entry.until}
                self._reporter.event("admitted", data, self._leases.session(key))

    def _withdrawn(self, key: str) -> None:
        session, held = self._leases.session(key), self._leases.get(key)
        if isinstance(held, Withdrawal):
            # The decision is timed in whole seconds: the reported delay is at most one second too long.
            after = max(round(self._clock() - held.issued_at, 3), 0.0)
            self._reporter.event("withdrawn", {"key": key, "reason": held.reason, "after_s": after}, session)
        else:
            fault = self._leases.fault(key)
            reason = fault.reasons[0].code if fault is not None else "not leased"
            self._reporter.event("withdrawn", {"key": key, "reason": reason}, session)

    def reconciled(self, changes: DictionaryChanges) -> None:
        """A comparison of everything found nginx to differ, if it did."""
        if changes.put or changes.remove:
            self._reporter.event("reconciled", {"put": len(changes.put), "removed": len(changes.remove)})

    def lapsed(self, sessions: Mapping[str, str | None]) -> None:
        """The leases of these keys have expired; nginx has dropped them by itself."""
        for key, session in sessions.items():
            self._admitted.discard(key)
            self._reporter.event("lapsed", {"key": key}, session)

    def requests_refused(self, refusals: Iterable[RequestRefusal]) -> None:
        """nginx has refused these requests."""
        for refusal in refusals:
            session = self._leases.session(f"cert.{refusal.serial.lower()}")
            self._reporter.event("request-refused", refusal.model_dump(), session)

    def connections_rejected(self, rejections: Iterable[Rejection]) -> None:
        """nginx has closed these connections; called every second, also with none: events are spread over time."""
        for rejection in rejections:
            self._rejected[rejection.port, rejection.limit] += rejection.times
        now = time.monotonic()
        due = [where for where in self._rejected if now >= self._rejected_at.get(where, now)]
        for where in due:
            self._rejected_at[where] = now + REJECTED_S
            data: dict[str, object] = {"port": where[0], "limit": where[1], "times": self._rejected.pop(where)}
            self._reporter.event("connections-rejected", data)

    def refused(self, key: str, refusal: Refusal) -> None:
        """A statement, a revocation list or a break-glass file was refused."""
        data: dict[str, object] = {"key": key, "reason": refusal.reasons[0].model_dump()}
        self._reporter.event("refused", data, self._leases.session(key))

    def below_floor(self, key: str, refusal: BelowFloor) -> None:
        """A lease is below a floor: the managers get what set the floor each time, the event is published once."""
        code, source = refusal.reasons[0].code, refusal.source
        self._reporter.report_refused(RefusedLease(key=key, code=code, floor_key=source.key, floor=source.value))
        if (key, code) not in self._below:
            self._below[key, code] = None
            if len(self._below) > _MAX_BELOW:
                del self._below[next(iter(self._below))]
            self.refused(key, refusal)

    def blocked(self, revocation: Revocation) -> None:
        """An operator's Revoke is known here, and cuts its subject."""
        data = revocation.model_dump(include={"operator", "sequence", "reason"})
        self._reporter.event("blocked", {"subject": revocation.subject, **data})

    def floors_unwritten(self, problem: str, rows: int) -> None:
        """The disk does not take the floors."""
        self._reporter.event("floors-unwritten", {"problem": problem, "rows": rows})

    def floors_written(self, rows: int) -> None:
        """The disk takes the floors again."""
        self._reporter.event("floors-written", {"rows": rows})

    def break_glass(self, admission: BreakGlass) -> None:
        """An operator's admission takes effect."""
        data = admission.model_dump(include={"operator", "identity", "serial", "reason"})
        self._reporter.event("break-glass", {**data, "until": admission.expires_at})

    def clock_stepped(self, by_s: float) -> None:
        """This machine's clock was set, or it was suspended."""
        self._reporter.event("clock-stepped", {"by_s": round(by_s, 3)})

    def nginx_failed(self, problem: str) -> None:
        """nginx could not be brought in line."""
        self._reporter.event("nginx-failed", {"problem": problem})
