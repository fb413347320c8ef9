"""Export of events to a SIEM, as JSON lines: in order, each at least once, resuming where an earlier run stopped.

They are read from the streams that keep them, routine and alarms, so a lost connection loses none; once the receiver
has an event, its stream's sequence is saved in a file.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TextIO

import structlog

from attestgate.bus import layout, subjects
from attestgate.bus.api import Bus, BusError, Message, StoredMessage
from attestgate.schemas.base import Refusal
from attestgate.schemas.events import Event, largest, read_event

log = structlog.get_logger(__name__)
PATTERN = f"{subjects.EVENTS}.>"
LOOK_AGAIN_S = 5.0
"""How often the stream is polled even if no event is heard."""
AUTHPRIV, WARNING, NOTICE = 10, 4, 5
"""Syslog facility and severities (RFC 5424, 6.2.1)."""
LOUD = frozenset(
    {"refused", "untrusted", "expired", "revoked", "evidence-rejected", "dropped", "quarantined", "nginx-failed"}
)
"""Events that go to syslog as warnings."""
DATAGRAM = 8192
"""Longest message to syslog in bytes: RFC 5425 asks that receivers take this much."""


class Sink(Protocol):
    """Where lines go."""

    def write(self, lines: Sequence[bytes]) -> None:
        """Write events; returns once the receiver has them. Raises OSError."""
        ...


class Stream:
    """An open text stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, lines: Sequence[bytes]) -> None:
        """See Sink."""
        self._stream.writelines(f"{line.decode()}\n" for line in lines)
        self._stream.flush()


class File:
    """A file, reopened for each batch, so that it can be rotated; flushed to disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, lines: Sequence[bytes]) -> None:
        """See Sink."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        with os.fdopen(descriptor, "ab") as file:
            file.writelines(line + b"\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())


class Syslog:
    """The local syslog's socket, or one over UDP (RFC 5424 messages as RFC 5426 sends them)."""

    def __init__(self, address: Path | tuple[str, int]) -> None:
        self._family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
        self._address = str(address) if isinstance(address, Path) else address

    def write(self, lines: Sequence[bytes]) -> None:
        """See Sink. An event longer than a message may be is sent without its data, and says so."""
        with socket.socket(self._family, socket.SOCK_DGRAM) as sender:
            sender.connect(self._address)
            for line in lines:
                sender.send(syslog_message(line))


class Position:
    """The sequence of the last exported event of each stream. Without a file it is lost at exit."""

    def __init__(self, path: Path | None) -> None:
        """Raises Refusal `file.position` for a file that holds something else."""
        self._path = path
        self.last = dict.fromkeys(layout.TOLD, 0)
        if path is None:
            return
        try:
            numbers = [int(number) for number in path.read_text(encoding="ascii").split()]
            # One number is a file of before alarms had a stream of their own.
            if not 1 <= len(numbers) <= len(layout.TOLD) or min(numbers) < 0:
                raise ValueError
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise Refusal.because(
                "file.position",
                str(path),
                expected="a number for each stream of events: the sequence of the last one exported",
                found=getattr(error, "strerror", None) or "something else",
                action="correct that file, or remove it to start at the oldest retained event",
            ) from None
        self.last.update(zip(layout.TOLD, numbers, strict=False))

    def reached(self, last: Mapping[str, int]) -> None:
        """Save that of each stream everything up to this sequence has been exported."""
        self.last.update(last)
        if self._path is not None:
            new = self._path.with_name(f"{self._path.name}.new")
            new.write_text(" ".join(map(str, self.last.values())) + "\n", encoding="ascii")
            new.replace(self._path)


async def follow(bus: Bus, sink: Sink, position: Position) -> None:
    """Export events until cancelled. Failures at either end are logged and retried.

    Raises BrokenPipeError when the reader of a stream has gone.
    """
    more = asyncio.Event()

    async def heard(_: Message) -> None:
        more.set()

    subscription = await bus.listen(PATTERN, heard)
    try:
        while True:
            more.clear()
            try:
                while await _one_page(bus, sink, position):
                    pass
            except BrokenPipeError:
                raise
            except (BusError, OSError) as error:
                log.warning("export failed, retrying", after=position.last, error=str(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN_S):
                    await more.wait()
    finally:
        await subscription.close()


async def _one_page(bus: Bus, sink: Sink, position: Position) -> bool:
    """Export one page of each stream, in the order in which they were stored; whether there is more."""
    pages = {name: await bus.page(name, position.last[name], PATTERN) for name in layout.TOLD}
    # What is stored later than the end of a page with a next one waits for that.
    until = min((page[-1].stored_ns for page, more in pages.values() if more), default=None)
    batch = [
        (name, stored)
        for name, (page, _) in pages.items()
        for stored in page
        if until is None or stored.stored_ns <= until
    ]
    batch.sort(key=lambda item: item[1].stored_ns)
    if batch:
        handing = asyncio.ensure_future(asyncio.to_thread(_hand_on, batch, sink, position))
        try:
            await asyncio.shield(handing)
        except asyncio.CancelledError:
            await handing  # a later run resumes after what was exported
            raise
    return until is not None


def _hand_on(batch: list[tuple[str, StoredMessage]], sink: Sink, position: Position) -> None:
    events = [(stored, event_of(stored.subject, stored.data)) for _, stored in batch]
    skipped = [stored for stored, event in events if event is None]
    if skipped:
        first = skipped[0]
        log.warning("skipped: no events", count=len(skipped), subject=first.subject, sequence=first.sequence)
    sink.write([event.body() for _, event in events if event is not None])
    position.reached({name: stored.sequence for name, stored in batch})


def event_of(subject: str, data: bytes) -> Event | None:
    """The event stored on a subject, or None if it is not one: a gateway can store anything under its own name."""
    # A gateway's credential may publish on gateways' subjects only: before the content is read, the subject says which.
    if len(data) > largest(subject.removeprefix(f"{subjects.EVENTS}.").partition(".")[0]):
        return None
    with suppress(Refusal):
        event = read_event(data, source=subject)
        if f"{subjects.EVENTS}.{event.kind}.{event.name}.{event.what}" == subject:
            return event
    return None


def syslog_message(line: bytes) -> bytes:
    """One event as a syslog message (RFC 5424, 6): severity by what happened, MSGID its kind and what."""
    event = read_event(line, source="event")
    severity = WARNING if event.what in LOUD else NOTICE
    when = datetime.fromtimestamp(event.at, UTC).isoformat().replace("+00:00", "Z")
    head = (
        f"<{AUTHPRIV * 8 + severity}>1 {when} {socket.gethostname()} attestgate - {event.kind}.{event.what} - ".encode()
    )
    if len(head) + len(line) > DATAGRAM:
        line = event.within(DATAGRAM - len(head))
    return head + line
