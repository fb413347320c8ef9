"""Events handed on to a SIEM, as JSON lines: in order, each at least once, from where an earlier run left off.

They are read from the stream that keeps them, so a lost connection loses none; what is written is remembered by the
stream's sequence, in a file, once the receiver has it.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TextIO

import structlog

from attestgate.bus import layout, subjects
from attestgate.bus.api import Bus, BusError, Message, StoredMessage
from attestgate.schemas.base import Refusal, parse_json
from attestgate.schemas.events import Event

log = structlog.get_logger(__name__)
PATTERN = f"{subjects.EVENTS}.>"
LOOK_AGAIN_S = 5.0
"""How long nothing may be heard before the stream is looked at all the same."""
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
        """Hand events on; returns once the receiver has them. Raises OSError."""
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
    """A file, opened anew for each batch, so that it can be rotated; on disk when `write` returns."""

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
        """See Sink. An event longer than a message may be goes without its data, and says so."""
        with socket.socket(self._family, socket.SOCK_DGRAM) as sender:
            sender.connect(self._address)
            for line in lines:
                sender.send(syslog_message(line))


class Position:
    """The sequence of the last event handed on. Without a file it is forgotten at the end."""

    def __init__(self, path: Path | None) -> None:
        """Raises Refusal `file.position` for a file that holds something else."""
        self._path = path
        self.last = 0
        if path is None:
            return
        try:
            self.last = int(path.read_text(encoding="ascii"))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise Refusal.because(
                "file.position",
                str(path),
                expected="a number: the sequence of the last event handed on",
                found=getattr(error, "strerror", None) or "something else",
                action="correct that file, or remove it to begin with the oldest event kept",
            ) from None

    def reached(self, sequence: int) -> None:
        """Everything up to this has been handed on."""
        self.last = sequence
        if self._path is not None:
            new = self._path.with_name(f"{self._path.name}.new")
            new.write_text(f"{sequence}\n", encoding="ascii")
            new.replace(self._path)


async def follow(bus: Bus, sink: Sink, position: Position) -> None:
    """Hand events on until cancelled. What cannot be done now, at either end, is tried again, and logged.

    Raises BrokenPipeError when nobody reads a stream any more.
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
                log.warning("events not handed on", after=position.last, error=str(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN_S):
                    await more.wait()
    finally:
        await subscription.close()


async def _one_page(bus: Bus, sink: Sink, position: Position) -> bool:
    """Hand one page on; whether there is more."""
    page, more = await bus.page(layout.EVENTS.name, position.last, PATTERN)
    if page:
        handing = asyncio.ensure_future(asyncio.to_thread(_hand_on, page, sink, position))
        try:
            await asyncio.shield(handing)
        except asyncio.CancelledError:
            await handing  # whoever goes on later begins after what was handed on
            raise
    return more


def _hand_on(page: list[StoredMessage], sink: Sink, position: Position) -> None:
    lines = []
    for stored in page:
        event = event_of(stored.subject, stored.data)
        if event is None:
            log.warning("left out: no event", subject=stored.subject, sequence=stored.sequence)
        else:
            lines.append(event.body())
    sink.write(lines)
    position.reached(page[-1].sequence)


def event_of(subject: str, data: bytes) -> Event | None:
    """The event that is stored on a subject; None for what is none: a gateway can store anything under its own name."""
    with suppress(Refusal):
        event = parse_json(Event, data, source=subject)
        if f"{subjects.EVENTS}.{event.kind}.{event.subject}.{event.what}" == subject:
            return event
    return None


def syslog_message(line: bytes) -> bytes:
    """One event as a syslog message (RFC 5424, 6): severity by what happened, MSGID its kind and what."""
    event = parse_json(Event, line, source="event")
    severity = WARNING if event.what in LOUD else NOTICE
    when = datetime.fromtimestamp(event.at, UTC).isoformat().replace("+00:00", "Z")
    head = (
        f"<{AUTHPRIV * 8 + severity}>1 {when} {socket.gethostname()} attestgate - {event.kind}.{event.what} - ".encode()
    )
    if len(head) + len(line) > DATAGRAM:
        line = event.model_copy(update={"data": {"cut": len(line)}}).body()
    return head + line
