"""Who may say and hear what on the bus: one table, from which accounts and credentials are made.

Each role is a NATS account of its own, and only the manager's has JetStream. The others reach it by the imports that
follow from this table. A subject permission alone would not do: the server checks the subject that a client publishes
to, but not the reply subject, to which it then sends its own answer, nor the deliver subject of a consumer. In one
account an agent could so have an acknowledgement stored over another's session record. Across accounts a reply goes
nowhere but into the asker's own account.
"""

from __future__ import annotations

from dataclasses import dataclass

from bus import layout, subjects
from schemas.base import MAX_MESSAGE

NAME = "{{name()}}"
"""The server puts the credential's name here (NATS scoped signing keys)."""

API = "$JS.API"
EDGE_API = "$JS.attest.API"
"""Under this prefix the roles without JetStream of their own reach the few calls that they may make."""

HEADERS = 64 * 1024
"""Room for headers beside a payload, in bytes: the server counts both."""


@dataclass(frozen=True)
class Role:
    """What a credential may do. `publish` and `subscribe` are subjects, `calls` are JetStream API calls.

    `max_payload` is in bytes, `max_subscriptions` a number at once.
    """

    name: str
    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
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
        return [*self.publish, *(f"{self.api}.{call}" for call in self.calls)]

    def may_subscribe(self) -> list[str]:
        """Every subject for the permission template."""
        return [*self.subscribe, f"{self.inbox}.>"]


MANAGER = "manager"


def _says(role: str) -> tuple[str, ...]:
    return tuple(f"{subjects.IN}.{role}.{NAME}.{step}" for step in subjects.STEPS[role])


def _agent(role: str, max_payload: int) -> Role:
    return Role(role, _says(role), (f"{subjects.OUT}.{role}.{NAME}.>",), max_payload=max_payload)


def _reads(*buckets: layout.BucketLayout) -> tuple[str, ...]:
    """The calls to read buckets: the newest of a key from the leader, and pages without a consumer."""
    return tuple(f"{call}.{bucket.stream}" for bucket in buckets for call in ("STREAM.MSG.GET", "DIRECT.GET"))


HISTORY = f"DIRECT.GET.{layout.EVENTS.name}"
"""The call to read back events."""


def _changes(*buckets: layout.BucketLayout) -> tuple[str, ...]:
    return tuple(bucket.subject(">") for bucket in buckets)


def _manager() -> Role:
    buckets = tuple(layout.BUCKETS.values())
    stored = [*layout.STREAMS, *(bucket.stream for bucket in buckets)]
    sets_up = tuple(f"STREAM.{verb}.{name}" for name in stored for verb in ("CREATE", "UPDATE", "INFO"))
    consumes = tuple(
        f"CONSUMER.{verb}.{consumer.stream}.{consumer.name}"
        for consumer in layout.CONSUMERS.values()
        for verb in ("CREATE", "INFO", "MSG.NEXT")
    )
    return Role(
        MANAGER,
        publish=(
            *(f"{prefix}.>" for prefix in (subjects.OUT, subjects.EVENTS, subjects.WORK, subjects.SCHEDULE)),
            *_changes(*buckets),
            *(f"$JS.ACK.{consumer.stream}.{consumer.name}.>" for consumer in layout.CONSUMERS.values()),
        ),
        subscribe=_changes(*buckets),
        calls=(*sets_up, *consumes, *_reads(*buckets), HISTORY),
        max_payload=MAX_MESSAGE,
        max_subscriptions=-1,
    )


def _viewer() -> Role:
    seen = (layout.SUMMARIES, layout.ADMISSIONS)
    stored = [*layout.STREAMS, *(bucket.stream for bucket in seen)]
    return Role(
        "viewer",
        subscribe=(f"{subjects.EVENTS}.>", *_changes(*seen)),
        calls=(
            *_reads(*seen),
            *(f"DIRECT.GET.{bucket.stream}.>" for bucket in seen),
            *(f"STREAM.INFO.{name}" for name in stored),
            *(f"CONSUMER.INFO.{consumer.stream}.{consumer.name}" for consumer in layout.CONSUMERS.values()),
            HISTORY,
        ),
    )


ROLES = {
    role.name: role
    for role in (
        _manager(),
        _agent("host", MAX_MESSAGE),
        _agent("app", 64 * 1024),
        Role(
            "gateway",
            publish=(*_says("gateway"), f"{subjects.EVENTS}.gateway.{NAME}.*"),
            subscribe=_changes(layout.ADMISSIONS),
            calls=_reads(layout.ADMISSIONS),
            max_payload=256 * 1024,
        ),
        Role(
            "operator",
            publish=(f"{subjects.OPERATOR}.{NAME}.*",),
            subscribe=(f"{subjects.EVENTS}.>", *_changes(layout.SUMMARIES)),
            calls=(*_reads(layout.SUMMARIES), HISTORY),
            max_payload=MAX_MESSAGE,
        ),
        _viewer(),
    )
}


@dataclass(frozen=True)
class Import:
    """A subject of the manager's account that another account sees as `local`. A service is asked, a stream heard."""

    subject: str
    local: str
    kind: str


def imports(role: Role) -> list[Import]:
    """What the role's account imports from the manager's: its permissions, wide enough for every name."""
    services = [Import(s, s, "service") for s in dict.fromkeys(map(_any_name, role.publish))]
    calls = [Import(f"{API}.{call}", f"{EDGE_API}.{call}", "service") for call in role.calls]
    streams = [Import(s, s, "stream") for s in dict.fromkeys(map(_any_name, role.subscribe))]
    return [*services, *calls, *streams]


def exports() -> dict[str, str]:
    """What the manager's account exports: the kind by subject."""
    edges = (role for role in ROLES.values() if role.name != MANAGER)
    return {item.subject: item.kind for role in edges for item in imports(role)}


def _any_name(subject: str) -> str:
    head, name, _ = subject.partition(NAME)
    return f"{head}>" if name else subject
