"""What a gateway has seen taken away, and never gives back for an older statement: its floors.

Every worker of the managers signs with one key, so an old lease is as well signed as a new one. A bus that shows a
gateway an older state of the deployment is found out by what the gateway itself has seen before. Rules:
  - Of the sessions of a place, the one with the highest (rank, session) counts. A lease below it is refused, and one
    that is held is cut. A session that a withdrawal has ended gets no lease again.
  - A lease with an `enrolled` below the highest of its subject is refused; one that is held runs out.
  - A lease with a policy version below one that was first seen `longest_lease_s` ago is refused, and one that is held
    ends by then.
  - An operator's Revoke cuts its subject at once, and refuses every lease whose `enrolled` is not above its sequence.
    It counts while its key is among the operators of the settings. It has no time, so no clock has a say.
  - Floors only rise. There is one row a place, subject, and operator key of a revoked subject, and one of the policy.
No I/O: statements arrive with their signatures verified, and all times are arguments.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from attestgate.schemas.admission import (
    HostLease,
    Lease,
    Place,
    Rank,
    Sequence,
    Statement,
    Tenure,
    Withdrawal,
    revoke_key,
)
from attestgate.schemas.base import Bytes32, Id, Model, Reason, Refusal, Seconds, SessionId, shown
from attestgate.schemas.enrolment import SubjectKind
from attestgate.schemas.in_force import digest_of

MAX_NEWER = 16
"""Most policy versions whose time is kept: of more within the length of a lease, the oldest ones and the newest."""


class Source(Model):
    """The value of the bucket that set a floor, as it was signed, under its key there."""

    key: Annotated[str, Field(max_length=200)]
    value: Annotated[bytes, Field(max_length=16 * 1024)]


class PlaceFloor(Model):
    """The session of a place that counts, and whether it is over."""

    kind: Literal["place"] = "place"
    place: Place
    rank: Rank
    session: SessionId
    ended: bool
    source: Source

    @property
    def name(self) -> str:
        """Its row's name: no two floors have the same."""
        return f"place {self.place}"


class EnrolledFloor(Model):
    """The newest enrolment of a subject (`host.<id>`, `app.<id>`) that a lease taken rested on."""

    kind: Literal["enrolled"] = "enrolled"
    subject: Annotated[str, Field(max_length=68)]
    enrolled: Sequence
    source: Source

    @property
    def name(self) -> str:
        """Its row's name."""
        return f"enrolled {self.subject}"


class SeenPolicy(Model):
    """A policy version, and the Unix second when it was first seen as the highest of all."""

    version: Sequence
    seen_at: Seconds
    source: Source


class PolicyFloor(Model):
    """The policy versions of the leases taken, each above those before it: `least` is refused below, whatever the time.

    Of those in `newer` the newest is the highest version known. Lower versions may be in use for the length of a lease
    from when each was first seen.
    """

    kind: Literal["policy"] = "policy"
    least: SeenPolicy | None
    newer: Annotated[list[SeenPolicy], Field(max_length=MAX_NEWER)]

    @property
    def name(self) -> str:
        """Its row's name."""
        return "policy"

    @property
    def seen(self) -> list[SeenPolicy]:
        """All of them, the lowest and oldest first."""
        return [*([self.least] if self.least is not None else []), *self.newer]

    @property
    def highest(self) -> SeenPolicy:
        """The highest version known."""
        return self.seen[-1]


class Revocation(Model):
    """The newest Revoke of a subject by one operator's key, as it was signed (`source`)."""

    kind: Literal["revoked"] = "revoked"
    subject_kind: SubjectKind
    id: Id
    signer: Bytes32
    operator: Id
    """The name that it was signed under: part of the place of its signature."""
    sequence: Sequence
    reason: Annotated[str, Field(max_length=200)]
    source: Source

    @property
    def name(self) -> str:
        """Its row's name."""
        return f"revoked {self.subject}.{self.signer.hex()}"

    @property
    def subject(self) -> str:
        """The subject, as the floors of enrolments name it."""
        return f"{self.subject_kind}.{self.id}"

    @property
    def key(self) -> str:
        """Its key in the bucket."""
        return revoke_key(self.subject_kind, self.id, self.signer)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the Revoke, as it was signed."""
        return digest_of(self.source.value)


Row: TypeAlias = Annotated[PlaceFloor | EnrolledFloor | PolicyFloor | Revocation, Field(discriminator="kind")]
AnyLease: TypeAlias = Lease | HostLease


class BelowFloor(Refusal):
    """A lease is below a floor, which `source` has set. The codes are `admission.rank`, `admission.ended`,
    `admission.enrolled`, `admission.policy` and `admission.revoked`."""

    def __init__(self, reason: Reason, source: Source) -> None:
        super().__init__(reason)
        self.source = source


class Floors:
    """The floors of one gateway: `check` before a lease is taken, `take` what is. `steady` is monotonic seconds.

    `counter` counts the changes. `operators` are the public keys whose Revokes count.
    """

    def __init__(
        self,
        rows: Iterable[Row] = (),
        *,
        operators: Collection[bytes],
        longest_lease_s: int,
        counter: int = 0,
        steady: float = 0.0,
    ) -> None:
        self.counter = counter
        self._operators = frozenset(operators)
        self._longest_s = longest_lease_s
        self._places: dict[str, PlaceFloor] = {}
        self._enrolled: dict[str, EnrolledFloor] = {}
        self._policy: PolicyFloor | None = None
        self._policy_since: dict[int, float] = {}
        """When each version was first seen, or read after a restart: the wall clock may be set back meanwhile."""
        self._revoked: dict[str, dict[bytes, Revocation]] = {}
        for row in rows:
            self._put(row, steady)

    def rows(self) -> Iterator[Row]:
        """Every floor."""
        yield from self._places.values()
        yield from self._enrolled.values()
        if self._policy is not None:
            yield self._policy
        for by_signer in self._revoked.values():
            yield from by_signer.values()

    def check(self, lease: AnyLease, at: int, steady: float) -> None:
        """Raises BelowFloor for a lease that may not be taken at Unix second `at`."""
        self._check_revoked(lease)
        self._check_place(lease)
        enrolled = self._enrolled.get(lease.subject)
        if enrolled is not None and lease.enrolled < enrolled.enrolled:
            action = "find out who shows the managers an older enrolment; it passes once they know the newer one"
            raise _below("enrolled", lease, enrolled.enrolled, lease.enrolled, action, enrolled.source)
        least = self._least_policy(at, steady)
        if self._policy is not None and least is not None and lease.policy < least.version:
            action = "find out which manager worker is kept on an older policy"
            raise _below("policy", lease, least.version, lease.policy, action, self._policy.highest.source)

    def fault(self, lease: AnyLease) -> BelowFloor | None:
        """Why a lease that was taken before may not stay until it runs out; None if it may."""
        try:
            self._check_revoked(lease)
            self._check_place(lease)
        except BelowFloor as refusal:
            return refusal
        return None

    def stands(self, lease: AnyLease) -> bool:
        """Whether a lease that was taken before may stay until it runs out."""
        return self.fault(lease) is None

    def _check_revoked(self, lease: AnyLease) -> None:
        for revocation in self._counting(lease.subject):
            if lease.enrolled <= revocation.sequence:
                action = "enrol it again, if it may come back"
                raise _below(
                    "revoked", lease, f"above {revocation.sequence}", lease.enrolled, action, revocation.source
                )

    def _check_place(self, lease: AnyLease) -> None:
        tenure = lease.tenure
        floor = self._places.get(tenure.place)
        if floor is None:
            return
        if floor.ended and tenure.session == floor.session:
            raise _below("ended", lease, "a session that has not ended", tenure.session, "attest again", floor.source)
        if _order(tenure) < (floor.rank, floor.session):
            expected = f"rank {floor.rank} of session {floor.session}, or above"
            action = "none, if it was superseded; else find out who shows the managers an older state"
            raise _below("rank", lease, expected, f"rank {tenure.rank} of {tenure.session}", action, floor.source)

    def _least_policy(self, at: int, steady: float) -> SeenPolicy | None:
        """The highest version below which all leases have had the time to run out."""
        if self._policy is None:
            return None
        over = [seen for seen in self._policy.newer if self._over(seen, at, steady)]
        return over[-1] if over else self._policy.least

    def _over(self, seen: SeenPolicy, at: int, steady: float) -> bool:
        since = self._policy_since[seen.version]
        return at - seen.seen_at >= self._longest_s or steady - since >= self._longest_s

    def policy_until(self, version: int, steady: float) -> int | None:
        """When a lease with this policy version ends, in Unix seconds, whatever it says itself; None if at no time."""
        if self._policy is None or self._policy.highest.version <= version:
            return None
        above = next(seen for seen in self._policy.seen if seen.version > version)
        if above is self._policy.least or steady - self._policy_since[above.version] >= self._longest_s:
            return 0
        return above.seen_at + self._longest_s

    def _counting(self, subject: str) -> Iterator[Revocation]:
        return (r for r in self._revoked.get(subject, {}).values() if r.signer in self._operators)

    def in_force(self, subject: str) -> list[Revocation]:
        """The Revokes of `host.<id>` or `app.<id>` that no lease with a newer enrolment has ended."""
        enrolled = self._enrolled.get(subject)
        least = enrolled.enrolled if enrolled is not None else 0
        return [revocation for revocation in self._counting(subject) if revocation.sequence >= least]

    def all_in_force(self) -> Iterator[Revocation]:
        """The Revokes in force, of all subjects."""
        for subject in self._revoked:
            yield from self.in_force(subject)

    def take(self, statement: Statement, value: bytes, at: int, steady: float) -> list[Row]:
        """Raise the floors to a lease that has passed `check`, or to a withdrawal. Returns the rows that changed.

        `value` is the statement as the bucket has it.
        """
        source = Source(key=statement.key, value=value)
        if isinstance(statement, Withdrawal):
            ends = statement.ends
            changed: list[Row | None] = [] if ends is None else [self._raised_place(ends, source, ended=True)]
        else:
            changed = [
                self._raised_place(statement.tenure, source, ended=False),
                self._raised_enrolled(statement, source),
                self._raised_policy(statement.policy, source, at, steady),
            ]
        return self.put([row for row in changed if row is not None], steady)

    def take_revocation(self, revocation: Revocation) -> list[Row]:
        """Take an operator's Revoke, unless a newer one by the same key is known. Returns the rows that changed."""
        return self.put([] if self.holds(revocation) else [revocation])

    def merge(self, rows: Iterable[Row], steady: float = 0.0) -> list[Row]:
        """Raise each floor to another gateway's, where that is higher. Returns the rows that changed."""
        return self.put([higher for row in rows if (higher := self._merged(row)) is not None], steady)

    def _merged(self, row: Row) -> Row | None:
        if isinstance(row, PlaceFloor):
            tenure = Tenure(place=row.place, session=row.session, rank=row.rank)
            return self._raised_place(tenure, row.source, ended=row.ended)
        if isinstance(row, EnrolledFloor):
            held = self._enrolled.get(row.subject)
            return row if held is None or held.enrolled < row.enrolled else None
        if isinstance(row, Revocation):
            return None if self.holds(row) else row
        return self._merged_policy(row)

    def _merged_policy(self, other: PolicyFloor) -> PolicyFloor | None:
        own = self._policy or PolicyFloor(least=None, newer=[])
        least = max((f.least for f in (own, other) if f.least is not None), key=lambda s: s.version, default=None)
        newer: list[SeenPolicy] = []
        # From the highest down: one counts only if it was seen before those above it.
        for seen in sorted([*own.newer, *other.newer], key=lambda s: (-s.version, s.seen_at)):
            if (not newer or seen.seen_at < newer[0].seen_at) and (least is None or seen.version > least.version):
                newer.insert(0, seen)
        merged = PolicyFloor(least=least, newer=_bounded(newer))
        return None if _said(merged) == _said(own) else merged

    def put(self, rows: list[Row], steady: float = 0.0) -> list[Row]:
        """Replace these rows, by those that `take` of another copy of these floors has returned."""
        for row in rows:
            self._put(row, steady)
        self.counter += len(rows)
        return rows

    def _put(self, row: Row, steady: float) -> None:
        if isinstance(row, PlaceFloor):
            self._places[row.place] = row
        elif isinstance(row, EnrolledFloor):
            self._enrolled[row.subject] = row
        elif isinstance(row, PolicyFloor):
            self._policy = row
            self._policy_since = {s.version: self._policy_since.get(s.version, steady) for s in row.seen}
        else:
            self._revoked.setdefault(row.subject, {})[row.signer] = row

    def _raised_place(self, tenure: Tenure, source: Source, *, ended: bool) -> PlaceFloor | None:
        floor = self._places.get(tenure.place)
        rank = tenure.rank
        if floor is not None and floor.session == tenure.session:
            # One session has one rank. Whatever is signed of it, neither its rank nor its end is taken back.
            rank, ended = max(rank, floor.rank), ended or floor.ended
            if (rank, ended) == (floor.rank, floor.ended):
                return None
        elif floor is not None and _order(tenure) < (floor.rank, floor.session):
            return None
        return PlaceFloor(place=tenure.place, rank=rank, session=tenure.session, ended=ended, source=source)

    def _raised_enrolled(self, lease: AnyLease, source: Source) -> EnrolledFloor | None:
        subject = lease.subject
        floor = self._enrolled.get(subject)
        if floor is not None and floor.enrolled >= lease.enrolled:
            return None
        return EnrolledFloor(subject=subject, enrolled=lease.enrolled, source=source)

    def _raised_policy(self, version: int, source: Source, at: int, steady: float) -> PolicyFloor | None:
        floor = self._policy
        if floor is not None and floor.highest.version >= version:
            return None
        least = self._least_policy(at, steady)
        newer = [] if floor is None else [s for s in floor.newer if least is None or s.version > least.version]
        newer = [s for s in newer if s.seen_at != at]  # the new one comes to its time with them
        seen = SeenPolicy(version=version, seen_at=at, source=source)
        return PolicyFloor(least=least, newer=_bounded([*newer, seen]))

    def cover(self, statement: Statement) -> bool:
        """Whether these floors are at, or above, all that a statement raises."""
        if isinstance(statement, Withdrawal):
            return statement.ends is None or self._covers_place(statement.ends, ended=True)
        enrolled = self._enrolled.get(statement.subject)
        return (
            self._covers_place(statement.tenure, ended=False)
            and enrolled is not None
            and enrolled.enrolled >= statement.enrolled
            and self._policy is not None
            and self._policy.highest.version >= statement.policy
        )

    def _covers_place(self, tenure: Tenure, *, ended: bool) -> bool:
        floor = self._places.get(tenure.place)
        if floor is None:
            return False
        if floor.session == tenure.session:
            return floor.rank >= tenure.rank and floor.ended >= ended
        return (floor.rank, floor.session) > _order(tenure)

    def holds(self, revocation: Revocation) -> bool:
        """Whether these floors have a Revoke, or a newer one by the same key."""
        held = self._revoked.get(revocation.subject, {}).get(revocation.signer)
        return held is not None and held.sequence >= revocation.sequence


def _bounded(newer: list[SeenPolicy]) -> list[SeenPolicy]:
    """Without those before the newest, if there are too many: so the oldest come to their time."""
    return newer if len(newer) <= MAX_NEWER else [*newer[: MAX_NEWER - 1], newer[-1]]


def _said(floor: PolicyFloor) -> tuple[int, list[tuple[int, int]]]:
    """What a floor says, whoever said it."""
    return floor.least.version if floor.least is not None else 0, [(s.version, s.seen_at) for s in floor.newer]


def _order(tenure: Tenure) -> tuple[int, str]:
    return tenure.rank, tenure.session


def _below(code: str, lease: AnyLease, expected: object, found: object, action: str, source: Source) -> BelowFloor:
    reason = Reason(
        code=f"admission.{code}", field=lease.key, expected=shown(expected), found=shown(found), action=action
    )
    return BelowFloor(reason, source)
