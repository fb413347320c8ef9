"""A manager worker that kills itself with SIGKILL just before its Nth operation on the bus (0: never).

Run as `python -m tests.crash.worker SETTINGS N`. The operations are named in the order in which they are asked for;
the name of the one before which it dies is the last line of its output.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from attestgate.bus.api import Delivery, Entry
from attestgate.bus.client.nats import NatsBus, join
from attestgate.manager.assembly import assemble
from attestgate.schemas.settings import ManagerSettings, load_settings


class Death:
    """Counts operations, and ends the process at the appointed one."""

    def __init__(self, at: int) -> None:
        self._at = at
        self._count = 0

    def near(self, what: str) -> None:
        """About to do `what`."""
        self._count += 1
        if self._count == self._at:
            sys.stdout.write(f"died before {self._count}: {what}\n")
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)


class MortalBucket:
    """A bucket whose writes are counted."""

    def __init__(self, bucket: Any, name: str, death: Death) -> None:
        self._bucket = bucket
        self._name = name
        self._death = death

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bucket, name)

    async def create(self, key: str, value: bytes) -> int:
        self._death.near(f"create {self._name} {key.split('.')[0]}")
        return int(await self._bucket.create(key, value))

    async def update(self, key: str, value: bytes, revision: int) -> int:
        self._death.near(f"update {self._name} {key.split('.')[0]}")
        return int(await self._bucket.update(key, value, revision))

    async def put(self, key: str, value: bytes) -> int:
        self._death.near(f"put {self._name}")
        return int(await self._bucket.put(key, value))

    async def get(self, key: str) -> Entry | None:
        found: Entry | None = await self._bucket.get(key)
        return found


class MortalDelivery:
    """A delivery whose acknowledgement is counted."""

    def __init__(self, delivery: Delivery, death: Death) -> None:
        self._delivery = delivery
        self._death = death

    def __getattr__(self, name: str) -> Any:
        return getattr(self._delivery, name)

    async def done(self) -> None:
        self._death.near(f"acknowledge {self._delivery.subject.rsplit('.', 1)[-1]}")
        await self._delivery.done()


class MortalBus:
    """A bus whose operations are counted."""

    def __init__(self, bus: NatsBus, death: Death) -> None:
        self._bus = bus
        self._death = death

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    def bucket(self, name: str) -> MortalBucket:
        return MortalBucket(self._bus.bucket(name), name, self._death)

    async def publish(self, subject: str, data: bytes, **more: Any) -> None:
        self._death.near(f"publish {subject.split('.')[2]} {subject.rsplit('.', 1)[-1]}")
        await self._bus.publish(subject, data, **more)

    async def send(self, subject: str, data: bytes) -> None:
        self._death.near(f"send {subject.rsplit('.', 1)[-1]}")
        await self._bus.send(subject, data)

    async def schedule(self, subject: str, data: bytes, **more: Any) -> None:
        self._death.near("schedule")
        await self._bus.schedule(subject, data, **more)

    async def consume(self, consumer: str, *, batch: int = 16) -> AsyncIterator[MortalDelivery]:
        async for delivery in self._bus.consume(consumer, batch=1):
            yield MortalDelivery(delivery, self._death)


async def main(settings: ManagerSettings, die_at: int) -> None:
    """Work until killed."""
    bus = await join(settings.bus)
    async with httpx.AsyncClient(timeout=10.0, trust_env=False) as http:
        mortal: Any = MortalBus(bus, Death(die_at))
        worker = assemble(settings, mortal, http)
        sys.stdout.write("working\n")
        sys.stdout.flush()
        await worker.run()


if __name__ == "__main__":
    asyncio.run(main(load_settings(ManagerSettings, Path(sys.argv[1])), int(sys.argv[2])))
