"""A flooder: a process that publishes with one credential as fast as the server takes it, and waits for no answer.

It speaks NATS itself, without a client's politeness: several connections, whole buffers of messages, each with a reply
subject, so that the server answers all of them: to nobody, or, of requests, into an inbox to which the connection has
subscribed. What a connection gets back is read and thrown away, or left for the server to keep; one that the server
closes is opened again. Without a credential a flooder only connects.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_bytes, token_hex
from urllib.parse import urlsplit

from attestgate.bus import subjects
from attestgate.bus.auth.credentials import Holder, holder
from attestgate.bus.auth.permissions import API, EDGE_API, NAME, ROLES
from attestgate.bus.crypto.channel import Frame
from attestgate.bus.lifetime import until_told
from attestgate.manager.local.keyfiles import read_identity
from attestgate.schemas.admission import MAX_APPLIED, AppliedStatement, GatewayReport, sign_report
from attestgate.schemas.base import MAX_MESSAGE, Model, pack
from attestgate.schemas.events import largest
from attestgate.schemas.limits import COMMAND, FRAME, INBOUND
from attestgate.schemas.signing import Signer
from tests.support.bus.unread import connect_lines
from tests.support.hostile_messages import costliest, hello

CONNECTIONS, UNREAD, SILENT = 4, 60, 1000
"""How many connections there are at once: that publish, that read no answer, and without a credential."""
BUFFER = 64 * 1024
"""Bytes of messages that are written at once, where more than one fits."""
GARBAGE = b"garbage"
AGAIN_S = 0.05
FRAMES = ("key_proof", "recheck_evidence", "key_delivered", "recheck_list")
CHUNK = 64 * 1024
ANY = "x"
"""In place of a wildcard in a subject."""
GONE_NS = 1_000_000_000
"""After how long without a subscriber the server forgets a consumer."""
Publication = tuple[str, bytes]


class Flood(Model):
    """What one flooder does. `kind` is one of `KINDS`, or, without a credential, nothing: it connects.

    `source` is the address that its connections come from; the kernel chooses one for "".
    """

    kind: str
    url: str
    credentials: Path | None = None
    source: str = ""
    session: str = ""
    identity: Path | None = None
    trust_domain: str = ""

    def holder(self) -> Holder:
        """Whose credential it has."""
        assert self.credentials is not None
        return holder(self.credentials)


def published_subjects(role: str, name: str) -> list[str]:
    """Every subject that a credential may publish to, a token in place of each wildcard."""
    allowed = (subject.replace(NAME, name) for subject in ROLES[role].may_publish())
    return [".".join(ANY if token in ("*", ">") else token for token in subject.split(".")) for subject in allowed]


def largest_on(role: str, subject: str) -> bytes:
    """The largest message that a credential may publish to a subject: of an agent's, one as its step has it."""
    step = subject.rsplit(".", 1)[1]
    if (role, step) in INBOUND:
        return list(costliest(role, step))[-1][1]
    most = ROLES[role].max_payload
    if subject.startswith(f"{subjects.OPERATOR}."):
        most = MAX_MESSAGE if step in subjects.POLICY_COMMANDS else COMMAND
    elif subject.startswith(f"{subjects.EVENTS}."):
        most = min(most, largest(role))
    return bytes(most)


def small(flood: Flood) -> Iterator[Publication]:
    """Seven bytes of garbage."""
    who = flood.holder()
    return itertools.cycle([(subject, GARBAGE) for subject in published_subjects(who.role, who.name)])


def large(flood: Flood) -> Iterator[Publication]:
    """The largest messages that are permitted."""
    who = flood.holder()
    return itertools.cycle([(s, largest_on(who.role, s)) for s in published_subjects(who.role, who.name)])


def hellos(flood: Flood) -> Iterator[Publication]:
    """Valid hellos, each with fresh random bytes."""
    who = flood.holder()
    subject = subjects.inbound(who.role, who.name, "hello")
    while True:
        yield subject, hello(who.role, who.name, token_bytes(32))


def frames(flood: Flood) -> Iterator[Publication]:
    """Well-formed frames for a live session, the largest of each step, which do not decrypt."""
    name = flood.holder().name
    junk = {step: bytes(INBOUND["host", step] - FRAME) for step in FRAMES}
    for counter in itertools.cycle(range(1, 64)):
        for step, ciphertext in junk.items():
            frame = Frame(session=flood.session, counter=counter, ack=0, salt=token_bytes(32), ciphertext=ciphertext)
            yield subjects.inbound("host", name, step), pack(frame)


def reports(flood: Flood) -> Iterator[Publication]:
    """A gateway's signed reports of certificates and sessions that it makes up, as many as one holds."""
    assert flood.identity is not None
    key, name = Signer(flood.trust_domain, read_identity(flood.identity)), flood.holder().name
    while True:
        applied = [
            AppliedStatement(key=f"cert.{token_hex(20)}", state="admitted", sequence=1, app_session=token_hex(16))
            for _ in range(MAX_APPLIED)
        ]
        report = GatewayReport(gateway=name, epoch=token_hex(16), applied=applied, at=int(time.time()), floors=0)
        yield subjects.inbound("gateway", name, "report"), sign_report(key, report)


def api_calls(role: str, name: str) -> list[tuple[str, str]]:
    """The JetStream API calls of a credential, in the managers' account and in its own: subject, and what is called."""
    return [
        (subject, subject.removeprefix(f"{prefix}."))
        for subject in published_subjects(role, name)
        for prefix in (API, EDGE_API)
        if subject.startswith(f"{prefix}.")
    ]


def asked(role: str, name: str) -> list[Publication]:
    """A request of each JetStream API call that a credential may make, such that it costs something to answer."""
    return [(subject, _request(called)) for subject, called in api_calls(role, name)]


def _request(called: str) -> bytes:
    """The body of a call: `called` is its verb, then the stream where it is of one, then a consumer or a key."""
    body: dict[str, object] = {}
    match called.split("."):
        case ["STREAM", "INFO", _]:
            body = {"subjects_filter": ">"}
        case ["STREAM", "MSG", "GET", _] | ["DIRECT", "GET", _]:
            body = {"seq": 1, "next_by_subj": ">"}
        case ["CONSUMER", "CREATE", stream, *consumer]:
            body = {"stream_name": stream, "config": {"ack_policy": "none", **({"name": ANY} if consumer else {})}}
        case ["CONSUMER", "MSG", "NEXT", *_]:
            body = {"batch": 256, "no_wait": True}
    return json.dumps(body).encode() if body else b""


def stored(role: str, name: str) -> list[Publication]:
    """What brings a credential stored messages: a request for each stream that it may read, and where it may have a
    consumer, one that delivers all to its inbox."""
    inbox = f"{Holder(role, name).inbox}.{ANY}"
    found = []
    for subject, called in api_calls(role, name):
        if called.startswith("STREAM.MSG.GET."):
            found.append((subject, _request(called)))
        elif match := re.fullmatch(r"CONSUMER\.CREATE\.(\w+)", called):
            config = {"deliver_subject": inbox, "ack_policy": "none", "inactive_threshold": GONE_NS}
            found.append((subject, json.dumps({"stream_name": match[1], "config": config}).encode()))
    return found


def calls(flood: Flood) -> Iterator[Publication]:
    """JetStream API calls, over and over."""
    return itertools.cycle(asked(*flood.holder()))


def unread(flood: Flood) -> Iterator[Publication]:
    """Requests for what is stored, over and over."""
    return itertools.cycle(stored(*flood.holder()))


@dataclass(frozen=True)
class Kind:
    """What is published, on how many connections, and what becomes of the answers."""

    messages: Callable[[Flood], Iterator[Publication]]
    connections: int = CONNECTIONS
    subscribes: bool = False
    reads: bool = True


KINDS = {
    "small": Kind(small),
    "large": Kind(large),
    "hellos": Kind(hellos),
    "frames": Kind(frames),
    "reports": Kind(reports),
    "calls": Kind(calls, subscribes=True),
    "unread": Kind(unread, UNREAD, subscribes=True, reads=False),
}


class Connections:
    """Silent connections, as many as are to be had."""

    count = SILENT

    def __init__(self, flood: Flood) -> None:
        self._flood = flood
        self._begun = False
        self.sent = 0
        """What was written, in messages; of silent connections, how many were opened."""

    async def run(self) -> None:
        """Flood until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self.count):
                group.create_task(self._again_and_again())

    async def _again_and_again(self) -> None:
        where = urlsplit(self._flood.url)
        source = (self._flood.source, 0) if self._flood.source else None
        while True:
            with suppress(OSError, EOFError):
                reader, writer = await asyncio.open_connection(where.hostname, where.port, local_addr=source)
                try:
                    await self._connected(reader, writer)
                finally:
                    writer.transport.abort()
            await asyncio.sleep(AGAIN_S)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """What one connection does, until the server closes it."""
        self._begin()
        self.sent += 1
        await _discard(reader, writer)

    def _begin(self) -> None:
        """Say that the flood is on its way: a limited sender takes a minute for its first large messages."""
        if not self._begun:
            self._begun = True
            print("flooding", flush=True)


class Flooder(Connections):
    """The connections of one credential."""

    def __init__(self, flood: Flood) -> None:
        super().__init__(flood)
        self._kind = KINDS[flood.kind]
        self._inbox = flood.holder().inbox
        self._messages = self._kind.messages(flood)
        self.count = self._kind.connections

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._flood.credentials is not None
        # What the kernel would hold back for a limited sender is not sent.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        line = await reader.readline()
        if not line.startswith(b"INFO "):
            return
        writer.write(connect_lines(self._flood.credentials, json.loads(line.removeprefix(b"INFO "))["nonce"]))
        if self._kind.subscribes:
            writer.write(f"SUB {self._inbox}.> 1\r\n".encode())
        reading = asyncio.create_task((_discard if self._kind.reads else _leave)(reader, writer))
        try:
            while not reading.done():
                count, data = self._buffer()
                writer.write(data)
                self._begin()
                await writer.drain()
                self.sent += count
                await asyncio.sleep(0)
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await reading

    def _buffer(self) -> tuple[int, bytes]:
        """How many messages, and their bytes."""
        parts: list[bytes] = []
        size = 0
        while size < BUFFER:
            subject, data = next(self._messages)
            parts.append(f"PUB {subject} {self._inbox}.{ANY} {len(data)}\r\n".encode() + data + b"\r\n")
            size += len(parts[-1])
        return len(parts), b"".join(parts)


async def _discard(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read what the server says until it closes; answer its PINGs."""
    while data := await reader.read(CHUNK):
        if b"PING\r\n" in data:
            writer.write(b"PONG\r\n")


async def _leave(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read nothing until the server closes."""
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await writer.wait_closed()


async def _flood(flood: Flood) -> None:
    """Flood until cancelled, then say how much was sent."""
    flooder = Flooder(flood) if flood.credentials else Connections(flood)
    try:
        await flooder.run()
    finally:
        print(flooder.sent, flush=True)


if __name__ == "__main__":
    os.nice(19)  # it has a machine of its own: what it computes here takes nothing from the server
    until_told(_flood(Flood.model_validate_json(sys.argv[1])))
