"""Large messages: how many at a time, and that small ones do not wait for them."""

from __future__ import annotations

import asyncio

import pytest

from attestgate.manager.handlers.large_messages import AGAIN_S, AT_ONCE, LARGE, LargeMessages
from attestgate.manager.sessions.recheck import TooEarly
from tests.support.threats import rows, threat


class Handler:
    """Handles messages that stay in hand until they are let go."""

    def __init__(self) -> None:
        self.large = LargeMessages()
        self.inside: list[str] = []
        self.let_go: dict[str, asyncio.Event] = {}

    async def handle(self, sender: str, size: int) -> None:
        async with self.large.room(sender, size):
            self.inside.append(sender)
            await self.let_go.setdefault(sender, asyncio.Event()).wait()
        self.inside.remove(sender)

    async def start(self, *senders: str, size: int = LARGE) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self.handle(sender, size)) for sender in senders]
        await settle()
        return tasks


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@threat(rows.MESSAGES_LARGE)
async def test_so_many_at_a_time_and_the_others_in_order() -> None:
    handler, senders = Handler(), [f"h{n}" for n in range(AT_ONCE + 2)]
    tasks = await handler.start(*senders)
    assert handler.inside == senders[:AT_ONCE]
    handler.let_go["h0"].set()
    await settle()
    assert handler.inside == [*senders[1:AT_ONCE], senders[AT_ONCE]]
    tasks[AT_ONCE].cancel()
    await settle()
    assert handler.inside[-1] == senders[-1]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@threat(rows.MESSAGES_LARGE)
async def test_small_ones_do_not_wait() -> None:
    handler = Handler()
    tasks = await handler.start(*(f"h{n}" for n in range(AT_ONCE + 1)))
    tasks += await handler.start("small", "h0", size=LARGE - 1)
    assert handler.inside[AT_ONCE:] == ["small", "h0"]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@threat(rows.MESSAGES_LARGE)
async def test_a_senders_second_one_comes_again_later() -> None:
    handler = Handler()
    (first,) = await handler.start("h1")
    with pytest.raises(TooEarly) as early:
        await handler.handle("h1", LARGE)
    assert early.value.delay_s == AGAIN_S
    handler.let_go["h1"].set()
    await first
    await handler.handle("h1", LARGE)


async def test_one_that_fails_leaves_its_room() -> None:
    large = LargeMessages()
    for _ in range(AT_ONCE + 1):
        with pytest.raises(ValueError, match="no"):
            async with large.room("h1", LARGE):
                raise ValueError("no")
