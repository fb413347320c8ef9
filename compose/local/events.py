"""The events of a stack as they arrive: to print them, and to wait until something has happened."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from attestgate.bus import subjects
from attestgate.bus.api import Bus, Message
from attestgate.bus.forward import event_of
from attestgate.schemas.base import Refusal
from attestgate.schemas.events import Event


class EventWatch:
    """Keeps every event seen, in order, until `forget`."""

    def __init__(self, tell: Callable[[Event], None] | None = None) -> None:
        self.seen: list[Event] = []
        self.heard_at: dict[str, float] = {}
        """When each event arrived here, by its id, in Unix seconds."""
        self._tell = tell
        self._more = asyncio.Event()

    async def follow(self, bus: Bus) -> None:
        """Start listening."""
        await bus.listen(f"{subjects.EVENTS}.>", self._take)
        await bus.flush()

    async def _take(self, message: Message) -> None:
        event = event_of(message.subject, message.data)
        if event is None or event.id in self.heard_at:
            return  # a worker that got no answer publishes an event again, under the same id
        self.heard_at[event.id] = time.time()
        self.seen.append(event)
        if self._tell is not None:
            self._tell(event)
        self._more.set()

    async def wait(self, what: str, fits: Callable[[Event], bool], *, since: int = 0, within_s: float = 60.0) -> Event:
        """The first matching event from index `since` on. Raises Refusal `stack.event` if none arrives in time."""
        try:
            async with asyncio.timeout(within_s):
                while True:
                    for event in self.seen[since:]:
                        if fits(event):
                            return event
                    since = len(self.seen)
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            raise Refusal.because(
                "stack.event",
                what,
                expected=f"the event within {within_s:g} s",
                found=f"other events: {', '.join(f'{e.kind} {e.subject} {e.what}' for e in self.seen[-5:])}",
                action="check the logs of the processes",
            ) from None

    def forget(self) -> None:
        """Discard all events seen; marks restart at 0. An event that is sent again after that is reported again."""
        self.seen.clear()
        self.heard_at.clear()

    @property
    def mark(self) -> int:
        """The index of the next event: pass it as `since` to wait for later events only."""
        return len(self.seen)


def is_event(kind: str, subject: str, what: str) -> Callable[[Event], bool]:
    """A test for one kind of event of one subject."""
    return lambda event: (event.kind, event.subject, event.what) == (kind, subject, what)
