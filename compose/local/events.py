"""The events of a stack as they come: for telling a person, and for waiting until something has happened."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from attestgate.bus import subjects
from attestgate.bus.api import Bus, Message
from attestgate.schemas.base import Refusal, parse_json
from attestgate.schemas.events import Event


class EventWatch:
    """Keeps every event seen, in order, until it is to forget them."""

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
        event = parse_json(Event, message.data, source=message.subject)
        if event.id in self.heard_at:
            return  # a worker that was not sure sends an event again, under the same id
        self.heard_at[event.id] = time.time()
        self.seen.append(event)
        if self._tell is not None:
            self._tell(event)
        self._more.set()

    async def wait(self, what: str, fits: Callable[[Event], bool], *, since: int = 0, within_s: float = 60.0) -> Event:
        """The first event from index `since` on that fits. Raises Refusal `stack.event` if none comes in time."""
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
                found=f"others: {', '.join(f'{e.kind} {e.subject} {e.what}' for e in self.seen[-5:])}",
                action="see the logs of the processes",
            ) from None

    def forget(self) -> None:
        """Let go of all that was seen; marks begin at 0 again. An event that is sent again after that is told again."""
        self.seen.clear()
        self.heard_at.clear()

    @property
    def mark(self) -> int:
        """Where the next event will stand: pass it as `since` to wait for what is still to come."""
        return len(self.seen)


def is_event(kind: str, subject: str, what: str) -> Callable[[Event], bool]:
    """A test for one kind of event of one subject."""
    return lambda event: (event.kind, event.subject, event.what) == (kind, subject, what)
