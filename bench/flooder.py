"""A flooder: a process that publishes with one credential as fast as the server takes it, and waits for no answer.

It speaks NATS itself, without a client's politeness: several connections, whole buffers of messages, each with a reply
subject to which nobody listens, so that the server answers all of them. What a connection gets back is read and thrown
away; one that the server closes is opened again.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from secrets import token_bytes, token_hex
from urllib.parse import urlsplit

import nkeys

from attestgate.bus import subjects
from attestgate.bus.auth.credentials import JWT_BEGINS, holder
from attestgate.bus.auth.permissions import NAME, ROLES
from attestgate.bus.crypto.channel import Frame
from attestgate.bus.lifetime import until_told
from attestgate.manager.local.keyfiles import read_identity
from attestgate.schemas.admission import MAX_APPLIED, AppliedStatement, GatewayReport, sign_report
from attestgate.schemas.base import MAX_MESSAGE, Model, pack
from attestgate.schemas.events import largest
from attestgate.schemas.limits import COMMAND, FRAME, INBOUND
from tests.support.hostile_messages import costliest, hello

CONNECTIONS = 4
BUFFER = 64 * 1024
"""Bytes of messages that are written at once, where more than one fits."""
GARBAGE = b"garbage"
AGAIN_S = 0.05
FRAMES = ("key_proof", "recheck_evidence", "key_delivered", "recheck_list")
Publication = tuple[str, bytes]


class Flood(Model):
    """What one flooder does. `kind` is one of `KINDS`."""

    kind: str
    url: str
    credentials: Path
    session: str = ""
    identity: Path | None = None


def published_subjects(role: str, name: str) -> list[str]:
    """Every subject that a credential may publish to, a token in place of each wildcard."""
    allowed = (subject.replace(NAME, name) for subject in ROLES[role].may_publish())
    return [".".join("x" if token in ("*", ">") else token for token in subject.split(".")) for subject in allowed]


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
    who = holder(flood.credentials)
    return itertools.cycle([(subject, GARBAGE) for subject in published_subjects(who.role, who.name)])


def large(flood: Flood) -> Iterator[Publication]:
    """The largest messages that are permitted."""
    who = holder(flood.credentials)
    return itertools.cycle([(s, largest_on(who.role, s)) for s in published_subjects(who.role, who.name)])


def hellos(flood: Flood) -> Iterator[Publication]:
    """Valid hellos, each with fresh random bytes."""
    who = holder(flood.credentials)
    subject = subjects.inbound(who.role, who.name, "hello")
    while True:
        yield subject, hello(who.role, who.name, token_bytes(32))


def frames(flood: Flood) -> Iterator[Publication]:
    """Well-formed frames for a live session, the largest of each step, which do not decrypt."""
    name = holder(flood.credentials).name
    junk = {step: bytes(INBOUND["host", step] - FRAME) for step in FRAMES}
    for counter in itertools.cycle(range(1, 64)):
        for step, ciphertext in junk.items():
            frame = Frame(session=flood.session, counter=counter, ack=0, salt=token_bytes(32), ciphertext=ciphertext)
            yield subjects.inbound("host", name, step), pack(frame)


def reports(flood: Flood) -> Iterator[Publication]:
    """A gateway's signed reports of certificates and sessions that it makes up, as many as one holds."""
    assert flood.identity is not None
    key, name = read_identity(flood.identity), holder(flood.credentials).name
    while True:
        applied = [
            AppliedStatement(key=f"cert.{token_hex(20)}", state="admitted", sequence=1, app_session=token_hex(16))
            for _ in range(MAX_APPLIED)
        ]
        report = GatewayReport(gateway=name, epoch=token_hex(16), applied=applied, at=int(time.time()))
        yield subjects.inbound("gateway", name, "report"), sign_report(key, report)


KINDS = {"small": small, "large": large, "hellos": hellos, "frames": frames, "reports": reports}


class Flooder:
    """The connections of one credential."""

    def __init__(self, flood: Flood) -> None:
        self._flood = flood
        self._reply = f"{holder(flood.credentials).inbox}.x".encode()
        self._messages = KINDS[flood.kind](flood)
        self.sent = 0
        """Messages that were written."""

    async def run(self) -> None:
        """Publish until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(self._again_and_again())

    async def _again_and_again(self) -> None:
        while True:
            with suppress(OSError, EOFError):
                await self._connection()
            await asyncio.sleep(AGAIN_S)

    async def _connection(self) -> None:
        where = urlsplit(self._flood.url)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        try:
            info = json.loads((await reader.readline()).split(b" ", 1)[1])
            writer.write(_connect(self._flood.credentials, info["nonce"]))
            reading = asyncio.create_task(_discard(reader, writer))
            try:
                while not reading.done():
                    count, data = self._buffer()
                    writer.write(data)
                    await writer.drain()
                    if not self.sent:
                        print("flooding", flush=True)
                    self.sent += count
                    await asyncio.sleep(0)
            finally:
                reading.cancel()
        finally:
            writer.transport.abort()

    def _buffer(self) -> tuple[int, bytes]:
        """How many messages, and their bytes."""
        parts: list[bytes] = []
        size = 0
        while size < BUFFER:
            subject, data = next(self._messages)
            parts.append(b"PUB %s %s %d\r\n%s\r\n" % (subject.encode(), self._reply, len(data), data))
            size += len(parts[-1])
        return len(parts), b"".join(parts)


def _connect(credentials: Path, nonce: str) -> bytes:
    """The CONNECT of a credential, and a PING."""
    text = credentials.read_text()
    token, seed = text.split(JWT_BEGINS, 1)[1].split("\n", 1)[0], text.split("SEED-----\n", 1)[1].split("\n", 1)[0]
    signature = base64.b64encode(nkeys.from_seed(bytearray(seed.encode())).sign(nonce.encode())).decode()
    options = {"verbose": False, "pedantic": False, "headers": True, "protocol": 1, "lang": "flooder", "version": "1"}
    return f"CONNECT {json.dumps({**options, 'jwt': token, 'sig': signature})}\r\nPING\r\n".encode()


async def _discard(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read what the server says until it closes; answer its PINGs."""
    while line := await reader.readline():
        if line.startswith(b"PING"):
            writer.write(b"PONG\r\n")


async def _flood(flood: Flood) -> None:
    """Flood until cancelled, then say how many messages were written."""
    flooder = Flooder(flood)
    try:
        await flooder.run()
    finally:
        print(flooder.sent, flush=True)


if __name__ == "__main__":
    until_told(_flood(Flood.model_validate_json(sys.argv[1])))
