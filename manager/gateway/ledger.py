"""What a gateway knows: the newest signed statement about each key, and from that what nginx's dictionary must hold.

The rules:
  - A lease counts from its issue to its end, and for `longest_lease_s` at most, whatever end it names.
  - A lease from ahead of this clock, from the past, or for another set of gateways is refused.
  - For each key the sequence rises: an older statement, or another one with the same number, is refused.
  - A withdrawal is final and beats every sequence. It is remembered until no lease signed before it can be alive, so
    that a bus which plays an old lease again gains nothing; and for `remember_s`, for the sake of what else must not
    overrule it.
No I/O here: statements arrive with their signatures checked, the time is handed in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from attestgate.schemas.admission import HostLease, Integrity, Lease, Statement, Withdrawal
from attestgate.schemas.base import Hex32, Id, Model, Refusal, Seconds


class CertificateEntry(Model):
    """A certificate in nginx's dictionary, as compose/nginx/admission.js reads it."""

    kind: Literal["cert"] = "cert"
    sequence: int
    until: Seconds
    sha256: Hex32
    identity: str
    host_key: str
    """The key of its host session."""
    integrity: Integrity
    marks: str
    allow: list[str]


class HostEntry(Model):
    """A host session in nginx's dictionary."""

    kind: Literal["host"] = "host"
    sequence: int
    until: Seconds
    host: Id


Entry = CertificateEntry | HostEntry


@dataclass(frozen=True)
class _Record:
    statement: Statement
    ends: int
    """When the lease ends for this gateway; for a withdrawal, when it is forgotten."""
    forget_at: int
    """From here on no statement about this key that was taken so far can be alive."""
    session: str | None
    """Whose lease it is or was: a withdrawal does not say."""


class Ledger(Mapping[str, Statement]):
    """The newest statement of each key, for one gateway. Times are Unix seconds."""

    def __init__(self, gateway_set: str, *, longest_lease_s: int, remember_s: int = 0, skew_s: int = 5) -> None:
        self._set = gateway_set
        self._longest_s = longest_lease_s
        self._remember_s = max(longest_lease_s, remember_s)
        self._skew_s = skew_s
        self._records: dict[str, _Record] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, key: str) -> Statement:
        return self._records[key].statement

    def take(self, statement: Statement, at: int) -> bool:
        """Take a statement in. True if it changes something. Raises Refusal (`admission.*`)."""
        held = self._records.get(statement.key)
        if held is not None and held.statement == statement:
            return False
        record = (
            self._withdrawn(statement, held) if isinstance(statement, Withdrawal) else self._leased(statement, held, at)
        )
        if record.ends <= at:
            raise _refused("expired", statement, f"an end after {at}", record.ends, "nothing: it is over")
        self._records[statement.key] = record
        return True

    def _withdrawn(self, withdrawal: Withdrawal, held: _Record | None) -> _Record:
        # Any lease signed before the withdrawal has ended by then, also one that this gateway has not seen.
        ends = max(
            withdrawal.until,
            withdrawal.issued_at + self._remember_s + self._skew_s,
            held.forget_at if held else 0,
        )
        return _Record(withdrawal, ends, ends, held.session if held else None)

    def _leased(self, lease: Lease | HostLease, held: _Record | None, at: int) -> _Record:
        if isinstance(lease, Lease) and lease.gateways != self._set:
            raise _refused("set", lease, self._set, lease.gateways, "nothing: it is for other gateways")
        if lease.issued_at > at + self._skew_s:
            expected = f"an issue time of at most {at + self._skew_s}"
            raise _refused("future", lease, expected, lease.issued_at, "set the clocks of manager and gateway right")
        if held is not None and isinstance(held.statement, Withdrawal):
            raise _refused("withdrawn", lease, "no lease after a withdrawal", lease.sequence, "attest anew")
        if held is not None and lease.sequence <= held.statement.sequence:
            expected = f"a sequence above {held.statement.sequence}"
            raise _refused("sequence", lease, expected, lease.sequence, "find out who plays old statements again")
        ends = min(lease.expires_at, lease.issued_at + self._longest_s)
        session = lease.app_session if isinstance(lease, Lease) else lease.host_session
        return _Record(lease, ends, max(ends, held.forget_at if held else 0), session)

    def entry(self, key: str, at: int) -> Entry | None:
        """What nginx must hold under a key now; None for nothing."""
        record = self._records.get(key)
        if record is None or record.ends <= at or isinstance(record.statement, Withdrawal):
            return None
        lease = record.statement
        if isinstance(lease, Lease):
            return CertificateEntry(
                sequence=lease.sequence,
                until=record.ends,
                sha256=lease.certificate,
                identity=lease.identity,
                host_key=f"host.{lease.host_session}",
                integrity=lease.integrity,
                marks=", ".join(lease.marks),
                allow=lease.allow,
            )
        return HostEntry(sequence=lease.sequence, until=record.ends, host=lease.host)

    def session(self, key: str) -> str | None:
        """The session that a key's lease is or was of, as far as this gateway has heard."""
        record = self._records.get(key)
        return record.session if record else None

    def forget(self, at: int) -> dict[str, str | None]:
        """Drop what is over for good. Returns the keys whose lease lapsed without a withdrawal, and their sessions."""
        over = {key: record for key, record in self._records.items() if record.forget_at <= at}
        for key in over:
            del self._records[key]
        return {key: r.session for key, r in over.items() if not isinstance(r.statement, Withdrawal)}


@dataclass(frozen=True)
class Changes:
    """How to make a dictionary agree."""

    remove: list[str]
    put: dict[str, Entry]


def difference(wanted: Mapping[str, Entry], present: Mapping[str, str]) -> Changes:
    """What to change so that a dictionary which holds `present` (JSON text by key) holds `wanted`, byte for byte."""
    return Changes(
        remove=[key for key in present if key not in wanted],
        put={key: entry for key, entry in wanted.items() if present.get(key) != entry.model_dump_json()},
    )


def _refused(what: str, statement: Statement, expected: object, found: object, action: str) -> Refusal:
    return Refusal.because(f"admission.{what}", statement.key, expected=expected, found=found, action=action)
