"""A stream and its shared consumer in memory: limits, deduplication, redelivery, as `bus.layout` says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from attestgate.bus import layout, subjects
from attestgate.bus.api import ONCE, BusError, Conflict, Message, StoredMessage

Taken = tuple[StoredMessage, int]
"""Message, attempt (from 1)."""


class MessageIds:
    """The message ids (Nats-Msg-Id) that a stream has seen within its window."""

    def __init__(self, window_s: int, now: Callable[[], float]) -> None:
        self._window_s = window_s
        self._now = now
        self._seen: dict[str, float] = {}

    def fresh(self, message_id: str | None) -> bool:
        """Whether an id is new; no id always is."""
        oldest = self._now() - self._window_s
        while self._seen and next(iter(self._seen.values())) <= oldest:
            del self._seen[next(iter(self._seen))]
        return message_id not in self._seen

    def note(self, message_id: str | None) -> None:
        """Remember an id."""
        if message_id is not None:
            self._seen.setdefault(message_id, self._now())


class MemoryStream:
    """Messages by sequence; one that is no longer here was acknowledged, or discarded at a limit."""

    def __init__(self, stream: layout.Stream, now: Callable[[], float], stamp: Callable[[], int]) -> None:
        self._layout = stream
        self._last = 0
        self._stamp = stamp
        self._stored: dict[int, StoredMessage] = {}
        self._by_subject: defaultdict[str, list[int]] = defaultdict(list)
        self._ids = MessageIds(stream.duplicate_window_s, now)

    def takes(self, subject: str) -> bool:
        """Whether a subject belongs to this stream."""
        return any(subjects.matches(pattern, subject) for pattern in self._layout.subjects)

    def store(self, subject: str, data: bytes, headers: Mapping[str, str], message_id: str | None) -> bool:
        """Store a message; False if its id was seen within the window. Raises Conflict (see ONCE), BusError."""
        if ONCE.items() <= headers.items() and self._by_subject[subject]:
            raise Conflict(f"store {subject}: lost compare-and-set")
        if not self._ids.fresh(message_id):
            return False
        limit = self._layout.max_msgs_per_subject
        same = self._by_subject[subject]
        if 0 <= limit <= len(same):
            if self._layout.discard == "new":
                raise BusError(f"store {subject}: maximum messages per subject exceeded")
            self.remove(same[0])
        if 0 <= self._layout.max_msg_size < len(data):
            raise BusError(f"store {subject}: message size exceeds maximum allowed")
        self._last += 1
        all_headers = dict(headers) | ({"Nats-Msg-Id": message_id} if message_id else {})
        self._stored[self._last] = StoredMessage(subject, self._last, all_headers, data, self._stamp())
        same.append(self._last)
        self._ids.note(message_id)
        return True

    def first_sight(self, message_id: str) -> bool:
        """Whether an id is new within the duplicate window; it is not new the next time."""
        fresh = self._ids.fresh(message_id)
        self._ids.note(message_id)
        return fresh

    def messages(self) -> list[Message]:
        """All, oldest first."""
        return [Message(stored.subject, stored.data, stored.headers) for stored in self._stored.values()]

    def items(self) -> list[StoredMessage]:
        """All as they are kept, oldest first."""
        return list(self._stored.values())

    def remove(self, sequence: int) -> None:
        """Forget one; a missing one is no error."""
        message = self._stored.pop(sequence, None)
        if message is not None:
            self._by_subject[message.subject].remove(sequence)


@dataclass
class _Out:
    """A delivered message: when it may be redelivered, and how often it was delivered."""

    again_at: float
    attempts: int


class MemoryConsumer:
    """The messages of a work-queue stream that were delivered and not acknowledged yet."""

    def __init__(self, consumer: layout.Consumer, stream: MemoryStream, now: Callable[[], float]) -> None:
        self.layout = consumer
        self._stream = stream
        self._now = now
        self._out: dict[int, _Out] = {}

    def take(self) -> Taken | None:
        """The oldest message that nobody has, or None."""
        now = self._now()
        for stored in self._stream.items():
            if not any(subjects.matches(pattern, stored.subject) for pattern in self.layout.filter_subjects):
                continue
            out = self._out.setdefault(stored.sequence, _Out(0.0, 0))
            if out.again_at <= now:
                out.again_at, out.attempts = now + self.layout.ack_wait_s, out.attempts + 1
                return stored, out.attempts
        return None

    def acknowledge(self, sequence: int) -> None:
        """Done: remove it from the stream."""
        self._out.pop(sequence, None)
        self._stream.remove(sequence)

    def postpone(self, sequence: int, delay_s: float) -> None:
        """Redeliver it after a delay, unless it was acknowledged."""
        if sequence in self._out:
            self._out[sequence].again_at = self._now() + delay_s
