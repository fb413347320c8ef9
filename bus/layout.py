"""The streams, consumers and buckets: what is stored, for how long, and what is discarded at a limit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from attestgate.bus import subjects
from attestgate.schemas.base import MAX_MESSAGE

MIB = 1024 * 1024
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

    A message is redelivered without limit until it is acknowledged: one that the server gave up would stay in its
    stream, delivered to nobody. A worker moves what fails every time to quarantine (see `Delivery.attempt`).
    """

    name: str
    stream: str
    filter_subjects: tuple[str, ...]
    ack_wait_s: int = 30
    max_ack_pending: int = 2048


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

    @property
    def stream(self) -> str:
        """The stream that holds it."""
        return f"KV_{self.name}"

    def subject(self, pattern: str) -> str:
        """The subjects of a pattern of keys."""
        return f"{KEY_VALUE}{self.name}.{pattern}"

    def key_subject(self, key: str) -> str:
        """The subject of one key. Raises ValueError for an invalid key (ADR-8): a wildcard would read another's."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is not a valid bucket key")
        return self.subject(key)


IN = Stream(
    name="ATTEST_IN",
    subjects=(f"{subjects.IN}.*.*.*", f"{subjects.OPERATOR}.*.*"),
    # A message leaves when a worker acknowledges it.
    retention="workqueue",
    # The limit is per subject: when a sender's own subject is full, only that sender is refused; nothing is dropped.
    discard="new",
    max_msgs_per_subject=4,
    # Evidence older than its window is refused anyway; an operator's command has an expiry of its own.
    max_age_s=HOUR_S,
    max_bytes=1024 * MIB,
    max_msg_size=MAX_MESSAGE + 64 * 1024,
)
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
EVENTS = Stream(
    name="ATTEST_EVENTS",
    subjects=(f"{subjects.EVENTS}.>",),
    # For people to read; no decision depends on them, so the oldest is discarded first.
    retention="limits",
    discard="old",
    max_msgs_per_subject=1000,
    max_age_s=7 * DAY_S,
    max_bytes=256 * MIB,
    readable=True,
)
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
STREAMS = {stream.name: stream for stream in (IN, WORK, EVENTS, LOG)}

MANAGERS = Consumer(name="managers", stream=IN.name, filter_subjects=IN.subjects)
"""Everything that agents, gateways and operators send."""

WORKERS = Consumer(name="workers", stream=WORK.name, filter_subjects=(f"{subjects.WORK}.>", f"{subjects.DUE}.>"))
"""Everything that managers send to each other, and the deadlines that are due."""

CONSUMERS = {consumer.name: consumer for consumer in (MANAGERS, WORKERS)}

SESSIONS = BucketLayout("sessions", max_bytes=256 * MIB)
"""Session records, sealed."""

SUMMARIES = BucketLayout("summaries", max_bytes=64 * MIB)
"""What people may read of a session, in the clear; no decision depends on it."""

ENROLMENT = BucketLayout("enrolment", max_bytes=64 * MIB)
"""Enrolment records, signed by an operator."""

POLICIES = BucketLayout("policies", max_bytes=256 * MIB, max_value=MAX_MESSAGE)
"""Policy documents by hash, and the signed manifest that puts some in force."""

COLLATERAL = BucketLayout("collateral", max_bytes=32 * MIB, max_value=2 * MIB)
"""Attestation collateral as fetched, for every worker."""

ADMISSIONS = BucketLayout("admissions", max_bytes=128 * MIB)
"""Signed leases and tombstones that gateways follow."""

QUARANTINE = BucketLayout("quarantine", max_bytes=64 * MIB, max_value=MAX_MESSAGE)
"""The dead-letter queue: messages that a worker failed on at every attempt. When full, newer ones are dropped with an
event."""

TREE = BucketLayout("log", max_bytes=256 * MIB)
"""The decision log's head, and the tree's leaf hashes, 32 bytes per entry, kept forever: room for eight million."""

OPERATORS = BucketLayout("operators", max_bytes=4 * MIB)
"""The highest command sequence applied, by operator."""

BUCKETS = {
    bucket.name: bucket
    for bucket in (SESSIONS, SUMMARIES, ENROLMENT, POLICIES, COLLATERAL, ADMISSIONS, QUARANTINE, TREE, OPERATORS)
}

COPIED = (EVENTS.name, SUMMARIES.stream, ADMISSIONS.stream)
"""Streams that viewers have copies of, under the same names, in an account where they may create consumers
(bus.auth.permissions)."""

COPIER = "copier"
"""The durable consumer by which a copy follows its original."""


def copy_subject(stream: str) -> str:
    """Where the copier of a stream delivers."""
    return f"{subjects.COPY}.{stream}"


DELETED_FOR_S = DAY_S
"""How long the delete marker of a key stays in its bucket, for watchers that reconnect late."""
