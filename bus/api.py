"""The bus's interface. `bus.client.nats` is the real one, `bus.memory` runs the same handlers in tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class BusError(Exception):
    """The bus could not do it now (no connection, time-out, no stream). A retry may succeed."""


class Conflict(BusError):
    """Compare-and-set failed: the entry was changed first."""


MAX_CONFLICTS = 50
"""Lost compare-and-sets in a row after which whoever tries gives up for now, and is redelivered or comes again later: a
bus that has them all lost makes no loop."""


@dataclass(frozen=True)
class Entry:
    """One value in a bucket. `value` is None where the watcher reports a deletion."""

    key: str
    value: bytes | None
    revision: int


class Bucket(Protocol):
    """A key-value bucket (a JetStream KV). Keys are dotted names; revisions rise with every write to the bucket."""

    async def get(self, key: str) -> Entry | None:
        """The newest value, or None if there is none or it was deleted."""
        ...

    async def create(self, key: str, value: bytes) -> int:
        """Write a key that must not exist. Returns the revision. Raises Conflict."""
        ...

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Write a key whose newest revision is `revision`. Returns the new one. Raises Conflict."""
        ...

    async def put(self, key: str, value: bytes) -> int:
        """Write a key whatever it holds. Returns the revision."""
        ...

    async def delete(self, key: str) -> None:
        """Remove a key; a missing one is no error."""
        ...

    async def keys(self, pattern: str = ">") -> list[str]:
        """Every valid key with a value that fits the pattern (`*` one token, `>` one or more at the end), sorted."""
        ...

    def watch(self, pattern: str = ">") -> AsyncIterator[Entry | None]:
        """Every present value, then None once, then each change as it happens, until closed. Reconnects itself."""
        ...


@dataclass(frozen=True)
class Message:
    """A message as a plain subscription receives it."""

    subject: str
    data: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredMessage:
    """One message as a stream keeps it; `stored_ns` is when it was stored, by the server's clock, Unix nanoseconds."""

    subject: str
    sequence: int
    headers: Mapping[str, str]
    data: bytes
    stored_ns: int = 0


async def in_order(stored: Sequence[AsyncIterator[StoredMessage]]) -> AsyncIterator[StoredMessage]:
    """What several streams hold, each in its order, as one sequence by the time of storage."""
    heads = {source: await anext(source, None) for source in stored}
    while left := {source: head for source, head in heads.items() if head is not None}:
        source, head = min(left.items(), key=lambda item: item[1].stored_ns)
        yield head
        heads[source] = await anext(source, None)


EXPECTED = "Nats-Expected-Last-Subject-Sequence"
"""Header that says which sequence must be the newest on the message's subject; 0 for none."""
ONCE = {EXPECTED: "0"}
"""Headers of a message that is stored only if there is none on its subject; `publish` raises Conflict if there is."""


async def compare_and_set(bucket: Bucket, key: str, before: Entry | None, value: bytes) -> bool:
    """Compare-and-set: whether a bucket took a value in the place of what was read. Raises BusError."""
    try:
        if before is None or before.value is None:
            await bucket.create(key, value)
        else:
            await bucket.update(key, value, before.revision)
    except Conflict:
        return False
    return True


class Delivery(Protocol):
    """One message of a stream, to be acknowledged. `attempt` counts from 1."""

    @property
    def subject(self) -> str: ...

    @property
    def data(self) -> bytes: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def attempt(self) -> int: ...

    async def done(self) -> None:
        """Handled: acknowledge it, so that the stream may delete it."""
        ...

    async def again(self, delay_s: float = 0.0) -> None:
        """Not handled: deliver it again after `delay_s`."""
        ...

    async def working(self) -> None:
        """Still in progress: restart the redelivery clock."""
        ...


class Subscription(Protocol):
    """A plain subscription, active until it is closed."""

    async def close(self) -> None: ...


class Bus(Protocol):
    """Streams, buckets and plain messages under one connection."""

    async def publish(
        self, subject: str, data: bytes, *, message_id: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Store a message in the stream that takes `subject`; returns once the server has it. Raises BusError.

        `message_id` makes a repeat within the stream's window a no-op (Nats-Msg-Id).
        """
        ...

    async def send(self, subject: str, data: bytes) -> None:
        """Send a plain message: delivered to current subscribers, stored nowhere."""
        ...

    async def listen(self, subject: str, handler: Callable[[Message], Awaitable[None]]) -> Subscription:
        """Call `handler` for every message on `subject` (wildcards allowed), one after another."""
        ...

    def consume(self, consumer: str, *, batch: int = 16) -> AsyncIterator[Delivery]:
        """Messages of a shared durable pull consumer named in `bus.layout`; several workers may share it."""
        ...

    def history(self, subject: str) -> AsyncIterator[Message]:
        """Every event and alarm now stored on `subject` (wildcards allowed), oldest first; then it ends."""
        ...

    async def page(self, stream: str, after: int, pattern: str = ">") -> tuple[list[StoredMessage], bool]:
        """What a stream has on `pattern` after a sequence, oldest first, and whether there is more. Raises BusError."""
        ...

    async def schedule(self, subject: str, data: bytes, *, at: int, message_id: str | None = None) -> None:
        """Have the server publish `data` to `bus.subjects.due(subject)` at Unix second `at`.

        A later call with the same `subject` (see `bus.subjects.deadline`) replaces the earlier one.
        """
        ...

    def bucket(self, name: str) -> Bucket:
        """A bucket of `bus.layout` by its name."""
        ...

    async def flush(self) -> None:
        """Return once the server has seen everything sent and every subscription made so far."""
        ...

    async def close(self) -> None: ...
