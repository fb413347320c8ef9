"""A deployment whose only worker dies when the test says so, and is followed by another: for stories lived through."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from attestgate.bus import layout
from attestgate.schemas.settings import Timing
from tests.support.manager.deployment import Deployment, deployed
from tests.support.manager.mortal import Counter, MortalBus
from tests.support.manager.quiet_loop import QuietLoop
from tests.support.manager.world import World

T = TypeVar("T")


class Doomed:
    """One deployment and its worker's end."""

    def __init__(self, loop: QuietLoop, site: Deployment) -> None:
        self._loop = loop
        self.site = site
        self.counter = Counter(None)
        self.deaths = 0

    def live(self, story: Coroutine[Any, Any, T], deaths: tuple[int, ...] = ()) -> T:
        """The story to its end. The worker dies before its operation of the first number, the next one likewise."""
        coming, told = list(deaths), self._loop.create_task(story)
        self._next(coming)
        self._loop.run_forever()
        while self.site.worker_died():
            self.deaths += 1
            self._loop.finish(self._start())
            self._next(coming)
            # What the dead one had in hand is offered again.
            self.site.clock.at += layout.WORKERS.ack_wait_s + 1
            self.site.wire.tick()
            self._loop.run_forever()
        self.counter.die_in(None)
        if not told.done():
            raise AssertionError(f"nobody goes on: {told.get_stack()[-1]}")
        return told.result()

    async def _start(self) -> None:
        self.counter = Counter(None)
        self.site.run(MortalBus(self.site.wire.connect(), self.counter))

    def _next(self, deaths: list[int]) -> None:
        if deaths:
            self.counter.die_in(deaths.pop(0))


@contextmanager
def doomed(world: World, folder: Path, timing: Timing) -> Iterator[Doomed]:
    """A deployment with a worker, a gateway and a policy."""
    loop, stack = QuietLoop(), AsyncExitStack()
    try:
        site = loop.finish(stack.enter_async_context(deployed(world, folder, timing=timing, workers=0)))
        one = Doomed(loop, site)
        loop.finish(one._start())
        one.live(site.begin())
        yield one
    finally:
        loop.finish(stack.aclose())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
