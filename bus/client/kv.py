"""Key-value buckets on JetStream, read without a consumer.

A bucket is a stream with one message per key (NATS ADR-8). `get` asks where the newest is: a worker sees what another
has just written. A watch reads pages after the last revision it saw (`bus.client.pages`); a plain subscription only
wakes it. So nothing is missed or reordered when messages get lost, and a reader's credential needs no right to create a
consumer: that right would let it have messages delivered to any subject.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from nats.aio.msg import Msg

from attestgate.bus.api import EXPECTED, BusError, Conflict, Entry, StoredMessage
from attestgate.bus.client.connection import Connection
from attestgate.bus.client.errors import translated
from attestgate.bus.client.pages import newest, read_page
from attestgate.bus.layout import DELETED_FOR_S, DELETIONS, OPERATION, TTL, BucketLayout

LOOK_S = 1.0
"""A watch polls this often without being woken: a follower in a cluster may answer before it has the newest."""


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
        """See `bus.api.Bucket.delete`. Leaves a delete marker for watchers, for `DELETED_FOR_S`."""
        await self._write(key, b"", {OPERATION: "DEL", TTL: f"{DELETED_FOR_S}s"})

    async def keys(self, pattern: str = ">") -> list[str]:
        """See `bus.api.Bucket.keys`."""
        present: dict[str, bool] = {}
        last, more = 0, True
        while more:
            page, more = await self._page(last, pattern)
            present |= {entry.key: entry.value is not None for entry in page}
            last = page[-1].revision if page else last
        return sorted(key for key, there in present.items() if there and self._layout.is_key(key))

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
                            continue  # was deleted before it was yielded
                        yield entry
                    if more:
                        continue
                    if not whole:
                        for key in sorted(known - present):  # its delete marker has expired, or the bus was rolled back
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
        """The entries after a revision, delete markers included, and whether there are more."""
        page, more = await read_page(self._connection, self._layout.stream, self._layout.subject(pattern), revision)
        prefix = self._layout.subject("")
        return [_entry(s.subject.removeprefix(prefix), s.sequence, s.headers, s.data) for s in page], more

    async def _last(self, key: str) -> Entry | None:
        """The newest message of a key, which may be a delete marker."""
        stored = await self._newest(key)
        return None if stored is None else _entry(key, stored.sequence, stored.headers, stored.data)

    async def _newest(self, key: str) -> StoredMessage | None:
        """The same with its headers."""
        return await newest(self._connection, self._layout.stream, self._layout.key_subject(key))

    async def _set(self, key: str, value: bytes, revision: int) -> int:
        """Write if `revision` is the newest (0: none). The server compares before it deduplicates by id, so the retry
        of a write whose answer was lost conflicts with itself: its id shows that."""
        message_id = secrets.token_urlsafe(16)
        try:
            return await self._write(key, value, {EXPECTED: str(revision)}, message_id)
        except Conflict:
            last = await self._newest(key)
            if last is None or last.headers.get("Nats-Msg-Id") != message_id:
                raise
            return last.sequence

    async def _write(self, key: str, value: bytes, headers: Mapping[str, str], message_id: str | None = None) -> int:
        return await self._connection.store(
            self._layout.key_subject(key), value, message_id=message_id, headers=headers
        )


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
