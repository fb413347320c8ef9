"""The streams, consumers and buckets: what is stored, for how long, and what is discarded at a limit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from attestgate.bus import subjects
from attestgate.schemas.base import MAX_MESSAGE
from attestgate.schemas.enrolment import MAX_AUTHORS
from attestgate.schemas.event_data import BY_NAME
from attestgate.schemas.events import MAX_EVENT
from attestgate.schemas.limits import COMMAND, largest

KIB = 1024
MIB = 1024 * KIB
HEADERS = 4 * KIB
"""Room for headers beside a message's payload, in bytes: the server counts both."""
HOUR_S = 3600
DAY_S = 24 * HOUR_S
_KEY = re.compile(r"[-/_=a-zA-Z0-9]+(?:\.[-/_=a-zA-Z0-9]+)*")


@dataclass(frozen=True)
class Stream:
    """One JetStream stream. Sizes are bytes; a limit of -1 and an age of 0 mean none.

    `own_features` turns on message schedules, per-message TTL and rollup. They affect other subjects through headers,
    which no subject permission covers, so only a stream that the manager alone can write may have them. `readable`
    allows reading without a consumer (direct get).
    """

    name: str
    subjects: tuple[str, ...]
    retention: Literal["limits", "workqueue"]
    discard: Literal["old", "new"]
    max_age_s: int
    max_bytes: int
    max_msgs_per_subject: int = -1
    max_msg_size: int = -1
    duplicate_window_s: int = 60
    own_features: bool = False
    readable: bool = False


@dataclass(frozen=True)
class Consumer:
    """A shared durable pull consumer with explicit acknowledgement; any number of workers pull from it.

    It has no limit of messages that are delivered and not acknowledged: a message that is put back with a delay counts
    against that limit until it is acknowledged, so with one, a sender that is too fast would stop all deliveries. What
    can wait is bounded by the stream instead, for each sender by itself.

    A message is redelivered without limit until it is acknowledged: one that the server gave up would stay in its
    stream, delivered to nobody. A worker moves what fails every time to quarantine (see `Delivery.attempt`).
    """

    name: str
    stream: str
    filter_subjects: tuple[str, ...]
    at_once: int
    """How many of its messages one worker has in progress at the same time: small where one costs much, so that the
    others find the worker free."""
    ack_wait_s: int = 30


KEY_VALUE = "$KV."
"""Prefix of the subjects of all buckets (ADR-8)."""
OPERATION, DELETIONS = "KV-Operation", ("DEL", "PURGE")
"""Header of a message that is an operation on its key rather than a value, and the operations that delete."""
TTL = "Nats-TTL"
"""Header that makes a message expire from its bucket after so long: `60s`."""


@dataclass(frozen=True)
class BucketLayout:
    """One key-value bucket: a stream KV_<name> with the newest value per key (history 1)."""

    name: str
    max_bytes: int
    max_value: int = 256 * 1024
    duplicate_window_s: int = 60
    discard: Literal["old", "new"] = "new"
    """What a full bucket refuses (the new) or loses (the old)."""

    @property
    def stream(self) -> str:
        """The stream that holds it."""
        return f"KV_{self.name}"

    def subject(self, pattern: str) -> str:
        """The subjects of a pattern of keys."""
        return f"{KEY_VALUE}{self.name}.{pattern}"

    @staticmethod
    def is_key(key: str) -> bool:
        """Whether a key is valid (ADR-8). The bus may list others, which nobody here can ask for."""
        return _KEY.fullmatch(key) is not None

    def key_subject(self, key: str) -> str:
        """The subject of one key. Raises ValueError for an invalid key (ADR-8): a wildcard would read another's."""
        if not self.is_key(key):
            raise ValueError(f"{key!r} is not a valid bucket key")
        return self.subject(key)


def _from(role: str, *steps: str) -> tuple[str, ...]:
    """The subjects of some steps of a role, whoever sends them."""
    names = ".".join("*" * subjects.name_tokens(role))
    return tuple(f"{subjects.IN}.{role}.{names}.{step}" for step in steps)


def _orders(commands: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{subjects.OPERATOR}.*.{command}" for command in commands)


def _inbound(name: str, taken: tuple[str, ...], *, payload: int, in_all: int, waiting: int = 4) -> Stream:
    """A stream in which messages from outside wait for a worker: of one role, so that it fills its own only.

    `payload` is what one message may have in bytes, `in_all` bytes what the stream may hold, `waiting` how many
    messages may wait on one subject. A credential enumerates its subjects (bus/auth/permissions.py), so what one sender
    can have stored is their number * `waiting` * `payload`.
    """
    return Stream(
        name=name,
        subjects=taken,
        # A message leaves when a worker acknowledges it.
        retention="workqueue",
        # Per subject: when a sender's own subject is full, only that sender is refused; nothing is dropped.
        discard="new",
        max_msgs_per_subject=waiting,
        # Evidence older than its window is refused anyway; an operator's command has an expiry of its own.
        max_age_s=HOUR_S,
        max_bytes=in_all,
        max_msg_size=payload + HEADERS,
    )


_SMALL = tuple(step for step in subjects.STEPS["host"] if step not in subjects.LISTS)
_OF_APPS = subjects.STEPS["app"]

HOSTS = _inbound("ATTEST_HOST", _from("host", *_SMALL), payload=largest("host", *_SMALL), in_all=128 * MIB)
"""What hosts send, but for measurement lists."""

LISTS = _inbound("ATTEST_LISTS", _from("host", *subjects.LISTS), payload=MAX_MESSAGE, in_all=768 * MIB, waiting=2)
"""Measurement lists: the only large messages of agents."""

APPS = _inbound("ATTEST_APP", _from("app", *_OF_APPS), payload=largest("app", *_OF_APPS), in_all=128 * MIB)
"""What applications send."""

GATEWAYS = _inbound("ATTEST_GATEWAY", _from("gateway", "report"), payload=largest("gateway", "report"), in_all=32 * MIB)
"""Gateways' signed reports."""

OPERATOR = _inbound("ATTEST_OPERATOR", _orders(subjects.COMMANDS), payload=COMMAND, in_all=64 * MIB)
"""Operators' signed commands, but for policies."""

POLICY = _inbound("ATTEST_POLICY", _orders(subjects.POLICY_COMMANDS), payload=MAX_MESSAGE, in_all=256 * MIB, waiting=2)
"""Operators' commands that carry policies."""

INBOUND = (HOSTS, LISTS, APPS, GATEWAYS, OPERATOR, POLICY)
"""The streams in which messages from outside wait."""

WORK = Stream(
    name="ATTEST_WORK",
    subjects=(f"{subjects.WORK}.>", f"{subjects.SCHEDULE}.>", f"{subjects.DUE}.>"),
    # Schedules stay here unconsumed until they fire; what fires, and other work, leaves when acknowledged.
    retention="workqueue",
    # The server allows no other policy with schedules. A deadline lost so costs promptness only: the record has it.
    discard="old",
    # No deadline is further away than the certificate's day (settings.Timing); a week is only for cleaning up.
    max_age_s=7 * DAY_S,
    max_bytes=512 * MIB,
    own_features=True,
)


def _events(name: str, *, alarms: bool, per_subject: int, in_all: int) -> Stream:
    """Events for people to read; no decision depends on them, so the oldest is discarded first.

    The limit per subject is a sender's room: what one causes discards its own older events, not another's.
    """
    return Stream(
        name=name,
        subjects=tuple(
            f"{subjects.EVENTS}.{kind}.{'.'.join('*' * subjects.name_tokens(kind))}.{what}"
            for (kind, what), told in BY_NAME.items()
            if told.alarm is alarms
        ),
        retention="limits",
        discard="old",
        max_msgs_per_subject=per_subject,
        max_age_s=7 * DAY_S,
        max_bytes=in_all,
        max_msg_size=MAX_EVENT + HEADERS,
        readable=True,
    )


EVENTS = _events("ATTEST_EVENTS", alarms=False, per_subject=100, in_all=256 * MIB)
"""Routine."""

ALARMS = _events("ATTEST_ALARMS", alarms=True, per_subject=100, in_all=128 * MIB)
"""The end of trust, and what an operator must look into: no flood of routine pushes it out."""

LOG = Stream(
    name="ATTEST_LOG",
    subjects=(f"{subjects.LOG}.*.*.*",),
    # Decisions as signed, in the order in which the decision log takes them in. The oldest are discarded first; their
    # hashes stay in the bucket `log`.
    retention="limits",
    discard="old",
    max_age_s=365 * DAY_S,
    max_bytes=1024 * MIB,
    max_msg_size=128 * 1024,
    readable=True,
)
TOLD = (EVENTS.name, ALARMS.name)
"""The streams of events, which are read together."""

STREAMS = {stream.name: stream for stream in (*INBOUND, WORK, EVENTS, ALARMS, LOG)}

RETIRED = ("ATTEST_IN",)
"""Streams of earlier versions, whose subjects others have now: deleted when a worker starts."""

WORKERS = Consumer(
    name="workers", stream=WORK.name, filter_subjects=(f"{subjects.WORK}.>", f"{subjects.DUE}.>"), at_once=64
)
"""Everything that managers send to each other, and the deadlines that are due."""

OUTSIDE = (
    Consumer("host-rechecks", HOSTS.name, _from("host", "recheck_evidence"), at_once=64),
    Consumer("host-recheck-lists", LISTS.name, _from("host", "recheck_list"), at_once=2),
    Consumer("app-rechecks", APPS.name, _from("app", "recheck_evidence"), at_once=64),
    Consumer("gateway-reports", GATEWAYS.name, GATEWAYS.subjects, at_once=8),
    Consumer("operator-commands", OPERATOR.name, OPERATOR.subjects, at_once=8),
    Consumer("host-steps", HOSTS.name, _from("host", "key_proof", "key_delivered", "resume"), at_once=32),
    Consumer("app-steps", APPS.name, _from("app", "evidence", "colocation_proof", "resume"), at_once=32),
    Consumer("host-evidence", LISTS.name, _from("host", "evidence"), at_once=2),
    Consumer("host-hellos", HOSTS.name, _from("host", "hello"), at_once=8),
    Consumer("app-hellos", APPS.name, _from("app", "hello"), at_once=8),
    Consumer("operator-policies", POLICY.name, POLICY.subjects, at_once=2),
)
"""What comes from outside, by role and class of step, in the order in which a worker serves them: trust that is held
comes before trust that is asked for."""

CONSUMERS = {consumer.name: consumer for consumer in (WORKERS, *OUTSIDE)}

SESSIONS = BucketLayout("sessions", max_bytes=256 * MIB)
"""Session records, sealed."""

SUMMARIES = BucketLayout("summaries", max_bytes=64 * MIB, discard="old")
"""What people may read of a session, in the clear; no decision depends on it, so a full bucket holds up no session."""

ENROLMENT = BucketLayout("enrolment", max_bytes=64 * MIB, max_value=MAX_AUTHORS * (COMMAND + KIB))
"""About each subject the newest command of each operator, and the managers' word that it is in force."""

POLICIES = BucketLayout("policies", max_bytes=256 * MIB, max_value=MAX_MESSAGE)
"""Policy documents by hash, and of each author the newest manifest in force, and on trial."""

COLLATERAL = BucketLayout("collateral", max_bytes=32 * MIB, max_value=2 * MIB)
"""Attestation collateral as fetched, for every worker."""

ADMISSIONS = BucketLayout("admissions", max_bytes=128 * MIB)
"""Signed leases and tombstones that gateways follow."""

QUARANTINE = BucketLayout("quarantine", max_bytes=128 * MIB, max_value=MAX_MESSAGE)
"""The dead-letter queue: messages that a worker failed on at every attempt. Each sender has room for a few; what does
not fit is dropped with an event."""

TREE = BucketLayout("log", max_bytes=256 * MIB)
"""The decision log's head, and the leaf hashes of its newest tree and the one before, 32 bytes per entry: it has room
for two trees as large as they get (manager/audit/head)."""

OPERATORS = BucketLayout("operators", max_bytes=4 * MIB)
"""The newest command applied of each operator's key, as a manager signed it."""

BUCKETS = {
    bucket.name: bucket
    for bucket in (SESSIONS, SUMMARIES, ENROLMENT, POLICIES, COLLATERAL, ADMISSIONS, QUARANTINE, TREE, OPERATORS)
}


def largest_in(stream: str) -> int:
    """The largest message that a stream of events or decisions, or a bucket's stream, takes, in bytes."""
    if stream in STREAMS:
        return STREAMS[stream].max_msg_size
    return next(bucket.max_value for bucket in BUCKETS.values() if bucket.stream == stream)


def most_pulled(consumer: Consumer) -> int:
    """How many messages one request to a consumer may ask for: no more than are as large as the largest there is.

    What was asked for and is not read yet waits in the server, which disconnects whoever leaves too much there.
    """
    size = STREAMS[consumer.stream].max_msg_size
    return max(1, (MAX_MESSAGE + HEADERS) // size) if size > 0 else consumer.at_once


COPIED = (*TOLD, SUMMARIES.stream, ADMISSIONS.stream)
"""Streams that viewers have copies of, under the same names, in an account where they may create consumers
(bus.auth.permissions)."""

COPY = 64 * MIB
"""The most that a copy holds: the newest. A consumer that nobody reads has the server hold all of it in memory."""

COPIER = "copier"
"""The durable consumer by which a copy follows its original."""


def copy_subject(stream: str) -> str:
    """Where the copier of a stream delivers."""
    return f"{subjects.COPY}.{stream}"


DELETED_FOR_S = DAY_S
"""How long the delete marker of a key stays in its bucket, for watchers that reconnect late."""
