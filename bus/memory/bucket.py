"""A bucket in memory: compare-and-set, watches, and rollback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass

from attestgate.bus import layout, subjects
from attestgate.bus.api import BusError, Conflict, Entry
from attestgate.bus.memory.stream import MessageIds


@dataclass(frozen=True)
class BucketState:
    """All of a bucket at one moment, for a test that rolls it back."""

    entries: dict[str, Entry]
    revision: int


class MemoryBucket:
    """A `bus.api.Bucket`."""

    def __init__(self, bucket: layout.BucketLayout, now: Callable[[], float]) -> None:
        self._layout = bucket
        self._now = now
        self._ids = MessageIds(bucket.duplicate_window_s, now)
        self._entries: dict[str, Entry] = {}
        self._leaves: dict[str, float] = {}
        """When a value with a TTL expires, by key."""
        self._revision = 0
        self._watchers: list[tuple[str, asyncio.Queue[Entry]]] = []

    async def get(self, key: str) -> Entry | None:
        """See `bus.api.Bucket.get`."""
        self._layout.key_subject(key)  # refuses an invalid key
        entry = self._entries.get(key)
        return entry if entry is not None and entry.value is not None else None

    async def create(self, key: str, value: bytes) -> int:
        """See `bus.api.Bucket.create`."""
        if await self.get(key) is not None:
            raise Conflict(f"create {key}: lost compare-and-set")
        return self._write(key, value)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """See `bus.api.Bucket.update`."""
        last = self._entries.get(key)
        if (last.revision if last else 0) != revision:
            raise Conflict(f"update {key}: lost compare-and-set")
        return self._write(key, value)

    async def put(self, key: str, value: bytes) -> int:
        """See `bus.api.Bucket.put`."""
        return self._write(key, value)

    async def delete(self, key: str) -> None:
        """See `bus.api.Bucket.delete`."""
        self._write(key, None)

    async def keys(self, pattern: str = ">") -> list[str]:
        """See `bus.api.Bucket.keys`."""
        present = (key for key, entry in self._entries.items() if entry.value is not None)
        return sorted(key for key in present if subjects.matches(pattern, key) and self._layout.is_key(key))

    async def watch(self, pattern: str = ">") -> AsyncGenerator[Entry | None]:
        """See `bus.api.Bucket.watch`."""
        watcher = (pattern, asyncio.Queue[Entry]())
        self._watchers.append(watcher)
        try:
            for entry in sorted(self._entries.values(), key=lambda entry: entry.revision):
                if entry.value is not None and subjects.matches(pattern, entry.key):
                    yield entry
            yield None
            while True:
                yield await watcher[1].get()
        finally:
            self._watchers.remove(watcher)

    def publish(self, key: str, data: bytes, headers: Mapping[str, str], message_id: str | None) -> bool:
        """What is published to a key's subject is its value (ADR-8); False if its id was seen within the window."""
        if not self._ids.fresh(message_id):
            return False
        self._write(key, None if headers.get(layout.OPERATION) in layout.DELETIONS else data)
        self._ids.note(message_id)
        if layout.TTL in headers:
            self._leaves[key] = self._now() + int(headers[layout.TTL].removesuffix("s"))
        return True

    def tick(self) -> None:
        """See `MemoryServer.tick`. As on the server, watchers are not notified."""
        for key in [key for key, at in self._leaves.items() if at <= self._now()]:
            del self._leaves[key], self._entries[key]

    def snapshot(self) -> BucketState:
        """See `MemoryServer.snapshot`."""
        return BucketState(dict(self._entries), self._revision)

    def restore(self, state: BucketState) -> None:
        """See `MemoryServer.restore`. Watchers see what a reconnect would show them."""
        lost = [key for key, entry in self._entries.items() if entry.value is not None and key not in state.entries]
        self._entries, self._revision = dict(state.entries), state.revision
        self._leaves.clear()
        for key in lost:
            self._tell(Entry(key, None, self._revision))
        for entry in self._entries.values():
            self._tell(entry)

    def _write(self, key: str, value: bytes | None) -> int:
        self._layout.key_subject(key)  # refuses an invalid key
        if len(value or b"") > self._layout.max_value:
            raise BusError(f"write {key}: message size exceeds maximum allowed")
        self._revision += 1
        self._leaves.pop(key, None)
        self._entries[key] = Entry(key, value, self._revision)
        self._tell(self._entries[key])
        return self._revision

    def _tell(self, entry: Entry) -> None:
        for pattern, queue in self._watchers:
            if subjects.matches(pattern, entry.key):
                queue.put_nowait(entry)
