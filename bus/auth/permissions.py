"""Who may say and hear what on the bus: one table, from which accounts and credentials are made.

Each role is a NATS account of its own, and only the manager's has JetStream. The others reach it by the imports that
follow from this table. A subject permission alone would not do: the server checks the subject that a client publishes
to, but not the reply subject, to which it then sends its own answer, nor the deliver subject of a consumer. In one
account an agent could so have an acknowledgement stored over another's session record. Across accounts a reply goes
nowhere but into the asker's own account.

Viewers come with the stock `nats` CLI, which makes consumers. They make them on copies (`layout.COPIED`) in an account
of their own, with a JetStream of its own: whatever a consumer delivers, and to whatever subject, it does there, where
nobody decides on anything. A copy follows its original by one durable consumer that the manager has made (the server's
durable mirroring), so that the viewers' account needs no right to make one in the manager's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from attestgate.bus import layout, subjects
from attestgate.schemas.base import MAX_MESSAGE

NAME = "{{name()}}"
"""The server puts the credential's name here (NATS scoped signing keys)."""

API = "$JS.API"
EDGE_API = "$JS.attest.API"
"""Under this prefix the roles without JetStream of their own reach the few calls that they may make."""

VIEWER_API = "$JS.viewer.API"
"""Under this prefix the manager sets up the copies in the viewers' account."""

HEADERS = 64 * 1024
"""Room for headers beside a payload, in bytes: the server counts both."""


@dataclass(frozen=True)
class BusRole:
    """What a credential may do. `publish` and `subscribe` are subjects, `calls` are JetStream API calls.

    `copies` are subjects within its own account: what it may do with the copies there. `max_payload` is in bytes,
    `max_subscriptions` a number at once.
    """

    name: str
    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    max_payload: int = 64 * 1024
    max_subscriptions: int = 64

    @property
    def api(self) -> str:
        """The prefix before its JetStream API calls."""
        return API if self.name == MANAGER else EDGE_API

    @property
    def inbox(self) -> str:
        """Where answers to it go; with the role in it, or a host named like a manager could listen in."""
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
    return BusRole(role, _says(role), (f"{subjects.OUT}.{role}.{NAME}.>",), max_payload=max_payload)


def _reads(*buckets: layout.BucketLayout) -> tuple[str, ...]:
    """The calls to read buckets: the newest of a key from the leader, and pages without a consumer."""
    return tuple(f"{call}.{bucket.stream}" for bucket in buckets for call in ("STREAM.MSG.GET", "DIRECT.GET"))


HISTORY = f"DIRECT.GET.{layout.EVENTS.name}"
"""The call to read back events."""

LOGGED = f"DIRECT.GET.{layout.LOG.name}"
DECISIONS = (LOGGED, *_reads(layout.TREE))
"""The calls to read the decision log: its entries, and with its tree."""


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
    copiers = tuple(f"CONSUMER.CREATE.{stream}.{layout.COPIER}" for stream in layout.COPIED)
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
        calls=(*sets_up, *consumes, *copiers, *_reads(*buckets), HISTORY, LOGGED),
        max_payload=MAX_MESSAGE,
        max_subscriptions=-1,
    )


def _viewer() -> BusRole:
    seen = (layout.SUMMARIES, layout.ADMISSIONS)
    stored = [*layout.STREAMS, *(bucket.stream for bucket in seen)]
    return BusRole(
        VIEWER,
        subscribe=(f"{subjects.EVENTS}.>", *_changes(*seen)),
        calls=(
            *_reads(*seen),
            *(f"DIRECT.GET.{bucket.stream}.>" for bucket in seen),
            *(f"STREAM.INFO.{name}" for name in stored),
            *(f"CONSUMER.INFO.{consumer.stream}.{consumer.name}" for consumer in layout.CONSUMERS.values()),
            HISTORY,
            *DECISIONS,
        ),
        copies=(
            *(f"{API}.{call}" for call in ("INFO", "STREAM.NAMES", "STREAM.LIST")),
            *(subject for stream in layout.COPIED for subject in _uses_copy(stream)),
        ),
    )


def _uses_copy(stream: str) -> list[str]:
    """What the nats CLI does to show a stream, to read it and to follow it: with consumers of its own."""
    whole = ("STREAM.INFO", "STREAM.MSG.GET", "DIRECT.GET", "CONSUMER.NAMES", "CONSUMER.LIST", "CONSUMER.CREATE")
    within = ("DIRECT.GET", "CONSUMER.CREATE", "CONSUMER.INFO", "CONSUMER.MSG.NEXT", "CONSUMER.DELETE")
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
        _agent("app", 64 * 1024),
        BusRole(
            GATEWAY,
            publish=(*_says(GATEWAY), f"{GATEWAY_EVENTS}.{NAME}.*"),
            subscribe=_changes(layout.ADMISSIONS),
            calls=_reads(layout.ADMISSIONS),
            max_payload=256 * 1024,
        ),
        BusRole(
            "operator",
            publish=(f"{subjects.OPERATOR}.{NAME}.*",),
            subscribe=(f"{subjects.EVENTS}.>", *_changes(layout.SUMMARIES)),
            calls=(*_reads(layout.SUMMARIES, layout.QUARANTINE), HISTORY, *DECISIONS),
            max_payload=MAX_MESSAGE,
        ),
        _viewer(),
    )
}


@dataclass(frozen=True)
class Import:
    """A subject of the account of `role` that another account sees as `local`. A service is asked, a stream heard."""

    role: str
    subject: str
    local: str
    kind: Literal["service", "stream"]


def imports(role: BusRole) -> list[Import]:
    """What a role's account imports: its permissions, wide enough for every name, and what the copies follow by.

    A message that reached the manager's account by a service is not passed on by its stream exports (the server sees to
    it that nothing goes round), so whoever hears events imports the gateways' own from where they are said.
    """
    if role.name == MANAGER:
        return [Import(VIEWER, f"{API}.{call}", f"{VIEWER_API}.{call}", "service") for call in SETS_UP_COPIES]
    services = [Import(MANAGER, s, s, "service") for s in dict.fromkeys(map(_any_name, role.publish))]
    calls = [Import(MANAGER, f"{API}.{call}", f"{EDGE_API}.{call}", "service") for call in role.calls]
    streams = [Import(MANAGER, s, s, "stream") for s in dict.fromkeys(map(_any_name, role.subscribe))]
    hears = f"{subjects.EVENTS}.>" in role.subscribe
    said = [Import(GATEWAY, f"{GATEWAY_EVENTS}.>", f"{GATEWAY_EVENTS}.>", "stream")] if hears else []
    return [*services, *calls, *streams, *said, *(_follows() if role.name == VIEWER else ())]


def exports(role: str) -> dict[str, Literal["service", "stream"]]:
    """What the account of a role exports: the kind by subject."""
    return {item.subject: item.kind for other in ROLES.values() for item in imports(other) if item.role == role}


def _follows() -> Iterator[Import]:
    """By what a copy in the viewers' account follows its original. No credential may use these; its server does."""
    for stream in layout.COPIED:
        reset, answers = f"CONSUMER.RESET.{stream}.{layout.COPIER}", f"$JS.FC.{stream}.{layout.COPIER}.*"
        copied = layout.copy_subject(stream)
        yield Import(MANAGER, f"{API}.{reset}", f"{EDGE_API}.{reset}", "service")
        yield Import(MANAGER, answers, answers, "service")
        yield Import(MANAGER, copied, copied, "stream")


def _any_name(subject: str) -> str:
    head, name, _ = subject.partition(NAME)
    return f"{head}>" if name else subject
