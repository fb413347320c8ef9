"""The values of the explored world: what workers seal and sign, what everybody remembers, and what may happen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

from attestgate.manager.gateway.floors import Floors, Revocation, Source
from attestgate.manager.sessions.rank import next_rank
from attestgate.schemas.admission import Statement, Tenure, revoke_key
from tests.support.floors.gate import LEASE_S
from tests.support.gateway.statements import host, lease, withdrawal

BEGAN, TICK_S = 1000, LEASE_S // 2
OPERATOR, THIEF = b"\x01" * 32, b"\x02" * 32
OPEN, CURRENT, OVER = 0, 1, 2
FOREVER = 2**63 - 1


class Session(NamedTuple):
    """A session's id, and its place."""

    id: str
    place: str


class Record(NamedTuple):
    """A record as a worker sealed it: the bus may show it for as long as nobody remembers a newer one."""

    session: int
    stage: int
    rank: int
    enrolled: int
    policy: int
    issued: int


class Said(NamedTuple):
    """What a worker signed: a lease, or the withdrawal that ends a session."""

    ends: bool
    session: int
    rank: int
    enrolled: int
    policy: int
    issued: int
    number: int


class Worker(NamedTuple):
    """A worker's clock, in ticks from the right one, and what it remembers."""

    clock: int = 0
    current: tuple[tuple[str, int, str], ...] = ()
    """Of each place the highest (rank, session)."""
    seen: tuple[tuple[int, int], ...] = ()
    """How far it has seen the record of a session come; only an end outlives a restart."""
    command: int = 0
    policy: int = 1


class Seen(NamedTuple):
    """What was true when a gateway learned something: by this it is judged."""

    taken: frozenset[int] = frozenset()
    out: frozenset[int] = frozenset()
    """Sessions that were followed by another of their place."""
    ended: frozenset[int] = frozenset()
    revoked: tuple[tuple[bytes, int], ...] = ()
    policies: tuple[tuple[int, int], ...] = ()
    """Policy versions, and the second when each was first seen."""


class Gateway(NamedTuple):
    """A gateway by its number, what it has seen, and what of that is on its disk."""

    gate: int
    seen: Seen = Seen()
    kept: Seen = Seen()


class State(NamedTuple):
    """The whole deployment."""

    tick: int
    since: tuple[int | None, ...]
    """The ticks in which the sessions so far have come into their order: when each was first given a rank."""
    drifted: frozenset[int]
    commands: tuple[int, ...]
    """The operators' commands about the subject: the sequence of an Enrol, or that of a Revoke below zero."""
    policy: int
    thief: Literal["unknown", "in", "out"]
    """A stolen operator's key with which the subject was revoked for all time: whether it is in the settings."""
    stepped: bool
    records: frozenset[Record]
    said: frozenset[Said]
    workers: tuple[Worker, ...]
    gates: tuple[Gateway, ...]


@dataclass(frozen=True)
class Rules:
    """What the workers and the gateways do."""

    rank_given: Literal["made", "current"] = "made"
    """When a record is made, or when its session becomes current."""
    rank: Callable[[int, int], int] = next_rank
    floors: type[Floors] = Floors
    tells_all: bool = True
    """Whether what one worker learns by a gateway's report counts for the ranks that the others give."""


REAL = Rules()


@dataclass(frozen=True)
class Scope:
    """What may happen, and how much of it."""

    sessions: tuple[Session, ...]
    current: bool = False
    """Whether the first session is current at the start."""
    ticks: int = 0
    clocks: tuple[int, ...] = ()
    """What a worker's clock may be set to, in ticks from the right one."""
    drift: bool = False
    commands: int = 0
    policies: int = 1
    restarts: bool = False
    disks: bool = False
    """Whether a gateway's disk may be late."""
    imports: bool = False
    """Whether a gateway may import the floors of another."""
    thief: bool = False
    gateways: int = 2


def second(tick: int) -> int:
    """The Unix second of a tick."""
    return BEGAN + TICK_S * tick


def operators(thief: str) -> frozenset[bytes]:
    """Whose Revokes count."""
    return frozenset({OPERATOR} if thief == "out" else {OPERATOR, THIEF})


def current(worker: Worker, place: str) -> tuple[int, str]:
    """The highest (rank, session) of a place that a worker remembers."""
    return next(((rank, session) for known, rank, session in worker.current if known == place), (0, ""))


@cache
def revocation(subject: Literal["host", "app"], signer: bytes, sequence: int) -> Revocation:
    """An operator's Revoke, as a gateway has read it."""
    id = "h1" if subject == "host" else "a1"
    value = f"{subject} {signer.hex()} {sequence}".encode()
    return Revocation(
        subject_kind=subject,
        id=id,
        signer=signer,
        operator="op1",
        sequence=sequence,
        reason="stolen",
        source=Source(key=revoke_key(subject, id, signer), value=value),
    )


@cache
def statement(session: Session, said: Said) -> Statement:
    """What a worker has said, as the gateways read it."""
    key = f"host.{session.id}" if session.place.startswith("host.") else f"cert.{said.session + 1:02x}"
    times = {"issued_at": said.issued, "sequence": said.number}
    if said.ends:
        tenure = Tenure(place=session.place, session=session.id, rank=said.rank)
        return withdrawal(key, until=said.issued + LEASE_S, ends=tenure, **times)
    basis = {"rank": said.rank, "enrolled": said.enrolled, "policy": said.policy}
    times["expires_at"] = said.issued + LEASE_S
    if session.place.startswith("host."):
        return host(host_session=session.id, **times, **basis)
    _, app, on = session.place.split(".")
    identity = f"spiffe://sdn.example.org/host/{on}/app/{app}"
    return lease(app_session=session.id, serial=f"{said.session + 1:02x}", host=on, identity=identity, **times, **basis)
