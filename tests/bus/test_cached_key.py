"""A value at hand is never older than a second, whatever its watch does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from attestgate.bus.api import BusError, Entry
from attestgate.bus.client import cached_key
from attestgate.bus.client.cached_key import KEPT_S, CachedKey
from attestgate.bus.memory.bucket import MemoryBucket
from attestgate.bus.memory.server import MemoryServer


class Counted:
    """A bucket that counts its reads; they can be held up or fail, and its watch can be cut off."""

    def __init__(self, bucket: MemoryBucket) -> None:
        self._bucket = bucket
        self.reads = 0
        self.fails = False
        self.held: asyncio.Event | None = None
        self.watches = 0
        self.watching = asyncio.Event()
        self.cut = False

    async def get(self, key: str) -> Entry | None:
        self.reads += 1
        entry = await self._bucket.get(key)
        if self.held is not None:
            await self.held.wait()
        if self.fails:
            raise BusError("down")
        return entry

    async def watch(self, pattern: str) -> AsyncGenerator[Entry | None]:
        self.watches += 1
        if self.cut:
            raise BusError("cut off")
        async for entry in self._bucket.watch(pattern):
            if entry is None:
                self.watching.set()
            yield entry


class Setting:
    """A bucket `policies`, one value of it at hand, and a clock."""

    def __init__(self) -> None:
        self.bucket = MemoryServer().connect().bucket("policies")
        self.counted: Any = Counted(self.bucket)
        self.at = 0.0
        self.recent = CachedKey(self.counted, "manifest", lambda: self.at)  # type: ignore[arg-type]

    async def value(self) -> bytes | None:
        entry = await self.recent.get()
        return entry.value if entry is not None else None

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        following = asyncio.create_task(self.recent.follow())
        try:
            yield
        finally:
            following.cancel()
            await asyncio.wait([following])


async def heard(setting: Setting) -> None:
    """Return once a watch has told what was written so far."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def setting() -> Setting:
    return Setting()


async def test_it_is_read_once_while_it_stands(setting: Setting) -> None:
    await setting.bucket.put("manifest", b"1")
    for _ in range(3):
        assert await setting.value() == b"1"
    assert setting.counted.reads == 1


async def test_that_there_is_none_stands_too(setting: Setting) -> None:
    assert [await setting.value(), await setting.value()] == [None, None]
    assert setting.counted.reads == 1


async def test_without_a_word_from_the_watch_it_is_read_again_a_second_later(setting: Setting) -> None:
    await setting.bucket.put("manifest", b"1")
    assert await setting.value() == b"1"
    await setting.bucket.put("manifest", b"2")
    setting.at = KEPT_S - 0.001
    assert await setting.value() == b"1"
    setting.at = KEPT_S
    assert await setting.value() == b"2"


async def test_a_change_that_is_told_counts_at_once(setting: Setting) -> None:
    await setting.bucket.put("manifest", b"1")
    async with setting.followed():
        await setting.counted.watching.wait()
        assert await setting.value() == b"1"
        await setting.bucket.put("manifest", b"2")
        await heard(setting)
        assert await setting.value() == b"2"
        await setting.bucket.delete("manifest")
        await heard(setting)
        assert await setting.value() is None


async def test_what_was_read_before_a_change_is_not_kept_after_it(setting: Setting) -> None:
    await setting.bucket.put("manifest", b"1")
    async with setting.followed():
        await setting.counted.watching.wait()
        setting.counted.held = asyncio.Event()
        reading = asyncio.create_task(setting.value())
        await heard(setting)
        await setting.bucket.put("manifest", b"2")
        await heard(setting)
        setting.counted.held.set()
        assert await reading == b"1"
        assert await setting.value() == b"2"


async def test_a_bus_that_does_not_answer_is_noticed(setting: Setting) -> None:
    await setting.bucket.put("manifest", b"1")
    assert await setting.value() == b"1"
    setting.counted.fails = True
    setting.at = KEPT_S
    for _ in range(2):
        with pytest.raises(BusError):
            await setting.value()


async def test_a_watch_that_is_cut_off_is_taken_up_again(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_key, "RETRY_S", 0.0)
    setting.counted.cut = True
    async with setting.followed():
        while setting.counted.watches < 3:
            await asyncio.sleep(0)
        setting.counted.cut = False
        await setting.counted.watching.wait()
        assert await setting.value() is None
        await setting.bucket.put("manifest", b"1")
        await heard(setting)
        assert await setting.value() == b"1"
