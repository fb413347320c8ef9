"""Key-value buckets on JetStream, read without a consumer.

A bucket is a stream with one message a key (NATS ADR-8). `get` asks the stream's leader, so a worker sees what another
has just written. A watch reads pages after the last revision it saw (`bus.pages`); a plain subscription only wakes
it. So nothing is missed or reordered when messages get lost, and a reader's credential needs no right to create a
consumer: that right would let it have messages delivered to any subject.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from base64 import b64decode
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from nats.aio.msg import Msg
from nats.js.errors import APIError

from attestgate.bus.api import EXPECTED, BusError, Conflict, Entry, StoredMessage
from attestgate.bus.client.connection import Connection
from attestgate.bus.client.errors import ANSWER_S, translated
from attestgate.bus.client.pages import read_page
from attestgate.bus.layout import DELETED_FOR_S, DELETIONS, OPERATION, TTL, BucketLayout

LOOK_S = 1.0
"""A watch looks this often without being woken: a follower in a cluster may answer before it has the newest."""
NOT_FOUND = 404


class NatsBucket:
    """A `bus.api.Bucket`."""

    def __init__(self, connection: Connection, layout: BucketLayout) -> None:
        self._connection = connection
        self._layout = layout

    async def get(self, key: str) -> Entry | None:
        """See `bus.api.Bucket.get`."""
        entry = await self._last(key)
        return entry if entry is not None and entry.value is not None else None

    async def create(self, key: str, value: bytes) -> int:
        """See `bus.api.Bucket.create`. A deleted key is free."""
        try:
            return await self._set(key, value, 0)
        except Conflict:
            last = await self._last(key)
            if last is None or last.value is not None:
                raise
            return await self._set(key, value, last.revision)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """See `bus.api.Bucket.update`."""
        return await self._set(key, value, revision)

    async def put(self, key: str, value: bytes) -> int:
        """See `bus.api.Bucket.put`."""
        return await self._write(key, value, {})

    async def delete(self, key: str) -> None:
        """See `bus.api.Bucket.delete`. Leaves a mark for watchers, for `DELETED_FOR_S`."""
        await self._write(key, b"", {OPERATION: "DEL", TTL: f"{DELETED_FOR_S}s"})

    async def keys(self, pattern: str = ">") -> list[str]:
        """See `bus.api.Bucket.keys`."""
        present: dict[str, bool] = {}
        last, more = 0, True
        while more:
            page, more = await self._page(last, pattern)
            present |= {entry.key: entry.value is not None for entry in page}
            last = page[-1].revision if page else last
        return sorted(key for key, there in present.items() if there)

    async def watch(self, pattern: str = ">") -> AsyncGenerator[Entry | None]:
        """See `bus.api.Bucket.watch`. After a reconnect every present value comes once more."""
        woken = asyncio.Event()

        async def wake(_message: Msg) -> None:
            woken.set()

        with translated(f"watch {self._layout.name}"):
            hint = await self._connection.client.subscribe(self._layout.subject(pattern), cb=wake)
        try:
            with self._connection.reconnects(woken.set):
                async with aclosing(self._follow(pattern, woken)) as changes:
                    async for entry in changes:
                        yield entry
        finally:
            if not self._connection.client.is_closed:
                await hint.unsubscribe()

    async def _follow(self, pattern: str, woken: asyncio.Event) -> AsyncGenerator[Entry | None]:
        """Read on from the last revision whenever woken; from the first again after a reconnect."""
        known: set[str] = set()
        told = False
        while True:
            connected, last, present, whole = self._connection.connections, 0, set[str](), False
            try:
                while connected == self._connection.connections:
                    page, more = await self._page(last, pattern)
                    for entry in page:
                        last = entry.revision
                        if entry.value is not None:
                            present.add(entry.key)
                        elif whole or entry.key in known or entry.key in present:
                            present.discard(entry.key)
                            known.discard(entry.key)
                        else:
                            continue  # was deleted before anybody was told of it
                        yield entry
                    if more:
                        continue
                    if not whole:
                        for key in sorted(known - present):  # its mark has expired, or the bus went back in time
                            yield Entry(key, None, last)
                        known.clear()
                        whole = True
                    if not told:
                        yield None
                        told = True
                    await _wait(woken)
            except BusError:
                self._connection.check_open()
                await _wait(woken)
            known |= present

    async def _page(self, revision: int, pattern: str) -> tuple[list[Entry], bool]:
        """The entries after a revision, marks of deletion too, and whether there are more."""
        page, more = await read_page(self._connection, self._layout.stream, self._layout.subject(pattern), revision)
        prefix = self._layout.subject("")
        return [_entry(s.subject.removeprefix(prefix), s.sequence, s.headers, s.data) for s in page], more

    async def _last(self, key: str) -> Entry | None:
        """The newest message of a key, a mark of deletion too."""
        stored = await self._newest(key)
        return None if stored is None else _entry(key, stored.sequence, stored.headers, stored.data)

    async def _newest(self, key: str) -> StoredMessage | None:
        """The same with its headers, as the stream's leader has it."""
        subject = self._layout.key_subject(key)
        call = f"{self._connection.api}.STREAM.MSG.GET.{self._layout.stream}"
        with translated(f"read {subject}"):
            answer = await self._connection.client.request(
                call, b'{"last_by_subj":"%s"}' % subject.encode(), timeout=ANSWER_S
            )
            found = json.loads(answer.data)
            if "error" in found:
                if found["error"]["code"] == NOT_FOUND:
                    return None
                raise APIError.from_error(found["error"])
        message = found["message"]
        return StoredMessage(subject, message["seq"], _headers(message), b64decode(message.get("data", "")))

    async def _set(self, key: str, value: bytes, revision: int) -> int:
        """Write if `revision` is the newest (0: none). The server compares before it looks for a repeated id, so a
        write whose answer was lost loses against itself when it is repeated: its id tells."""
        message_id = secrets.token_urlsafe(16)
        try:
            return await self._write(key, value, {EXPECTED: str(revision)}, message_id)
        except Conflict:
            newest = await self._newest(key)
            if newest is None or newest.headers.get("Nats-Msg-Id") != message_id:
                raise
            return newest.sequence

    async def _write(self, key: str, value: bytes, headers: Mapping[str, str], message_id: str | None = None) -> int:
        return await self._connection.store(
            self._layout.key_subject(key), value, message_id=message_id, headers=headers
        )


def _headers(message: dict[str, Any]) -> dict[str, str]:
    """Headers as the API gives them (ADR-4). The client parses them as e-mail, which costs as much as asking."""
    _version, *lines = b64decode(message.get("hdrs", "")).decode(errors="replace").split("\r\n")
    parts = (line.partition(":") for line in lines if line)
    return {name: value.strip() for name, _, value in parts}


def _entry(key: str, revision: int, headers: Mapping[str, str], data: bytes) -> Entry:
    gone = headers.get(OPERATION) in DELETIONS or "Nats-Marker-Reason" in headers
    return Entry(key, None if gone else data, revision)


async def _wait(woken: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(LOOK_S):
            await woken.wait()
    except TimeoutError:
        return
    woken.clear()
