"""Who may publish and subscribe to what on the bus: one table, from which accounts and credentials are derived.

Each role is a NATS account of its own, and only the manager's has JetStream. The others reach it through the imports
that follow from this table. Subject permissions alone are not enough: the server checks the subject that a client
publishes to, but neither the reply subject, to which it then sends its own answer, nor the deliver subject of a
consumer. Within one account an agent could thus have an acknowledgement stored over another's session record. Across
accounts a reply goes only into the requester's own account.

Viewers use the stock `nats` CLI, which creates consumers. They create them on copies (`layout.COPIED`) in an account of
their own, with its own JetStream: whatever a consumer delivers, and to whatever subject, stays there, where no decision
depends on it. A copy follows its original by one durable consumer that the manager has created (the server's durable
mirroring), so that the viewers' account needs no right to create one in the manager's.

Only managers read in batches (DIRECT.GET of a stream; of a key, it takes none). The server puts a batch together in a
queue that has no limit: one request of a hundred bytes has a whole stream copied into it, and connections that ask
without reading take gigabytes. All others ask for one message at a time: what they have not read is then bounded by
`max_pending` for each connection, and their connections by `max_connections`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from attestgate.bus import layout, subjects
from attestgate.schemas.base import MAX_MESSAGE
from attestgate.schemas.event_data import GatewayWhat
from attestgate.schemas.limits import largest

NAME = "{{name()}}"
"""The server puts the credential's name here (NATS scoped signing keys): of an application, two tokens."""

API = "$JS.API"
EDGE_API = "$JS.attest.API"
"""Prefix under which the roles without their own JetStream reach the few calls that they may make."""

VIEWER_API = "$JS.viewer.API"
"""Prefix under which the manager sets up the copies in the viewers' account."""


@dataclass(frozen=True)
class BusRole:
    """What a credential may do. `publish` and `subscribe` are subjects, `calls` are JetStream API calls.

    Of the roles outside, `publish` has no wildcard: the streams limit the messages on each subject, so a credential
    that could name fresh subjects at will would have room without end. `copies` are subjects within its own account:
    what it may do with the copies there. `max_payload` is in bytes, `max_subscriptions` a number at once for each
    connection, `max_connections` of all credentials of the role together (-1: no limit).
    """

    name: str
    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    max_payload: int = 64 * layout.KIB
    max_subscriptions: int = 64
    max_connections: int = -1

    @property
    def api(self) -> str:
        """The prefix before its JetStream API calls."""
        return API if self.name == MANAGER else EDGE_API

    @property
    def inbox(self) -> str:
        """Where replies to it go; the role is part of it, or a host named like a manager could listen in."""
        return f"_INBOX.{self.name}.{NAME}"

    def may_publish(self) -> list[str]:
        """Every subject for the permission template."""
        return [*self.publish, *(f"{self.api}.{call}" for call in self.calls), *self.copies]

    def may_subscribe(self) -> list[str]:
        """Every subject for the permission template."""
        return [*self.subscribe, f"{self.inbox}.>"]


MANAGER, VIEWER, GATEWAY = "manager", "viewer", "gateway"
GATEWAY_EVENTS = f"{subjects.EVENTS}.{GATEWAY}"


def _says(role: str) -> tuple[str, ...]:
    return tuple(f"{subjects.IN}.{role}.{NAME}.{step}" for step in subjects.STEPS[role])


def _agent(role: str, max_payload: int) -> BusRole:
    """A host's or an application's. Its connections have no limit: one stolen credential would take up all of them,
    and keep out its whole role. It is sent little: what managers say to it."""
    heard = (f"{subjects.OUT}.{role}.{NAME}.>",)
    return BusRole(role, _says(role), heard, max_payload=max_payload, max_subscriptions=8)


def _reads(*streams: str) -> tuple[str, ...]:
    """The calls to read streams one message at a time, from their leader."""
    return tuple(f"STREAM.MSG.GET.{stream}" for stream in streams)


def _keys(*buckets: layout.BucketLayout) -> tuple[str, ...]:
    """The calls to read a key's newest value from the stream itself. They take no batch."""
    return tuple(f"DIRECT.GET.{bucket.stream}.>" for bucket in buckets)


def _of(*buckets: layout.BucketLayout) -> tuple[str, ...]:
    return tuple(bucket.stream for bucket in buckets)


DECISIONS = _reads(layout.LOG.name, layout.TREE.stream)
"""The calls to read the decision log: its entries, and its tree."""


def _changes(*buckets: layout.BucketLayout) -> tuple[str, ...]:
    return tuple(bucket.subject(">") for bucket in buckets)


SETS_UP_COPIES = tuple(f"STREAM.{verb}.{stream}" for stream in layout.COPIED for verb in ("CREATE", "UPDATE", "INFO"))
"""The calls in the viewers' account that the manager may make."""


def _manager() -> BusRole:
    buckets = tuple(layout.BUCKETS.values())
    stored = [*layout.STREAMS, *(bucket.stream for bucket in buckets)]
    sets_up = tuple(f"STREAM.{verb}.{name}" for name in stored for verb in ("CREATE", "UPDATE", "INFO"))
    consumes = tuple(
        f"CONSUMER.{verb}.{consumer.stream}.{consumer.name}"
        for consumer in layout.CONSUMERS.values()
        for verb in ("CREATE", "INFO", "MSG.NEXT")
    )
    pages = tuple(f"DIRECT.GET.{name}" for name in (*_of(*buckets), *layout.TOLD, layout.LOG.name))
    copiers = tuple(f"CONSUMER.CREATE.{stream}.{layout.COPIER}" for stream in layout.COPIED)
    retires = tuple(f"STREAM.DELETE.{stream}" for stream in layout.RETIRED)
    return BusRole(
        MANAGER,
        publish=(
            *(
                f"{prefix}.>"
                for prefix in (subjects.OUT, subjects.EVENTS, subjects.LOG, subjects.WORK, subjects.SCHEDULE)
            ),
            *_changes(*buckets),
            *(f"$JS.ACK.{consumer.stream}.{consumer.name}.>" for consumer in layout.CONSUMERS.values()),
            *(f"{VIEWER_API}.{call}" for call in SETS_UP_COPIES),
        ),
        subscribe=_changes(*buckets),
        calls=(*sets_up, *consumes, *copiers, *retires, *_reads(*_of(*buckets)), *pages, *_keys(*buckets)),
        max_payload=MAX_MESSAGE,
        max_subscriptions=-1,
    )


SHOWN = (layout.SUMMARIES, layout.ADMISSIONS)
"""Buckets for everybody who watches: readable lines of sessions, signed leases."""

OPERATED = (layout.SUMMARIES, layout.ADMISSIONS, layout.ENROLMENT, layout.POLICIES, layout.QUARANTINE)
"""Buckets that operators, their command line and a dashboard read: nothing in them is secret, and all but the
summaries and the quarantine is signed."""


def _operator() -> BusRole:
    return BusRole(
        "operator",
        publish=tuple(
            f"{subjects.OPERATOR}.{NAME}.{command}" for command in (*subjects.COMMANDS, *subjects.POLICY_COMMANDS)
        ),
        subscribe=(f"{subjects.EVENTS}.>", subjects.REPORTS, *_changes(*OPERATED)),
        calls=(*_reads(*_of(*OPERATED), *layout.TOLD), *DECISIONS),
        max_payload=MAX_MESSAGE,
        max_connections=8,
    )


def _gateway() -> BusRole:
    events = (f"{GATEWAY_EVENTS}.{NAME}.{what}" for what in get_args(GatewayWhat))
    return BusRole(
        GATEWAY,
        publish=(*_says(GATEWAY), *events),
        subscribe=_changes(layout.ADMISSIONS),
        calls=(*_reads(layout.ADMISSIONS.stream), *_keys(layout.ADMISSIONS)),
        max_payload=largest(GATEWAY, *subjects.STEPS[GATEWAY]),
        max_connections=16,
    )


def _viewer() -> BusRole:
    """Reads copies. Of the managers' streams it sees how full they are, and it reads the decision log: copies of the
    log and of its tree would follow one another at any distance, and the log would look truncated meanwhile."""
    stored = [*layout.STREAMS, *(bucket.stream for bucket in SHOWN)]
    return BusRole(
        VIEWER,
        subscribe=(f"{subjects.EVENTS}.>", *_changes(*SHOWN)),
        calls=(
            *("INFO", "STREAM.NAMES", "STREAM.LIST"),
            *(f"STREAM.INFO.{name}" for name in stored),
            *(f"CONSUMER.{verb}.{name}" for name in stored for verb in ("NAMES", "LIST")),
            *(f"CONSUMER.INFO.{consumer.stream}.{consumer.name}" for consumer in layout.CONSUMERS.values()),
            *DECISIONS,
        ),
        copies=(
            *(f"{API}.{call}" for call in ("INFO", "STREAM.NAMES", "STREAM.LIST")),
            *(subject for stream in layout.COPIED for subject in _uses_copy(stream)),
        ),
        max_connections=16,
    )


def _uses_copy(stream: str) -> list[str]:
    """What the nats CLI does to show a stream, to read it and to follow it: with consumers of its own."""
    whole = ("STREAM.INFO", "STREAM.MSG.GET", "CONSUMER.NAMES", "CONSUMER.LIST", "CONSUMER.CREATE")
    within = ("CONSUMER.CREATE", "CONSUMER.INFO", "CONSUMER.MSG.NEXT", "CONSUMER.DELETE")
    return [
        *(f"{API}.{call}.{stream}" for call in whole),
        *(f"{API}.{call}.{stream}.>" for call in within),
        *(f"{answer}.{stream}.>" for answer in ("$JS.ACK", "$JS.FC")),
    ]


ROLES = {
    role.name: role
    for role in (
        _manager(),
        _agent("host", MAX_MESSAGE),
        _agent("app", largest("app", *subjects.STEPS["app"])),
        _gateway(),
        _operator(),
        _viewer(),
    )
}


@dataclass(frozen=True)
class Import:
    """A subject of the account of `role` that another account sees as `local`: request (service) or feed (stream)."""

    role: str
    subject: str
    local: str
    kind: Literal["service", "stream"]


def imports(role: BusRole) -> list[Import]:
    """What a role's account imports: its permissions, wide enough for every name, and what the copies follow by.

    A message that reached the manager's account by a service is not passed on by its stream exports (the server
    prevents loops), so roles that subscribe to events or reports import the gateways' own from the gateways' account.
    """
    if role.name == MANAGER:
        return [Import(VIEWER, f"{API}.{call}", f"{VIEWER_API}.{call}", "service") for call in SETS_UP_COPIES]
    services = [Import(MANAGER, s, s, "service") for s in dict.fromkeys(map(_any_name, role.publish))]
    calls = [Import(MANAGER, f"{API}.{call}", f"{EDGE_API}.{call}", "service") for call in role.calls]
    heard = dict.fromkeys(map(_any_name, role.subscribe))
    streams = [Import(MANAGER, s, s, "stream") for s in heard if s != subjects.REPORTS]
    said = [Import(GATEWAY, s, s, "stream") for s in _said_by_gateways(role)]
    return [*services, *calls, *streams, *said, *(_follows() if role.name == VIEWER else ())]


def _said_by_gateways(role: BusRole) -> list[str]:
    events = [f"{GATEWAY_EVENTS}.>"] if f"{subjects.EVENTS}.>" in role.subscribe else []
    return [*events, *(subject for subject in role.subscribe if subject == subjects.REPORTS)]


def exports(role: str) -> dict[str, Literal["service", "stream"]]:
    """What the account of a role exports: the kind by subject."""
    return {item.subject: item.kind for other in ROLES.values() for item in imports(other) if item.role == role}


def _follows() -> Iterator[Import]:
    """The imports by which a copy in the viewers' account follows its original. Used by the server, no credential."""
    for stream in layout.COPIED:
        reset, answers = f"CONSUMER.RESET.{stream}.{layout.COPIER}", f"$JS.FC.{stream}.{layout.COPIER}.*"
        copied = layout.copy_subject(stream)
        yield Import(MANAGER, f"{API}.{reset}", f"{EDGE_API}.{reset}", "service")
        yield Import(MANAGER, answers, answers, "service")
        yield Import(MANAGER, copied, copied, "stream")


def _any_name(subject: str) -> str:
    """What an account imports for all its names: the permission template narrows it to the credential's own."""
    head, name, _ = subject.partition(NAME)
    return f"{head}>" if name else subject
