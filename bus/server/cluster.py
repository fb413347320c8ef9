"""Three embedded servers as one JetStream cluster: any one of them may be killed, and nothing stored is lost.

A stream with three replicas acknowledges what two servers have. When a stream's leader ends, the other two servers
elect a leader within about 5 s; until then publishes to that stream go unanswered and are retried (bus.client).
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from attestgate.bus.auth.credentials import Trust
from attestgate.bus.server.embedded import EmbeddedServer, Routes

SIZE = 3
NAME = "attestgate"


class EmbeddedCluster:
    """Three nats-servers on loopback, each with a folder of its own within `folder`."""

    def __init__(self, folder: Path, trust: Trust, *, sync_interval: str = "2m") -> None:
        ports = _free_ports(SIZE)
        password = secrets.token_urlsafe(32)
        self.servers = [
            EmbeddedServer(
                folder / f"server-{number}",
                trust,
                sync_interval=sync_interval,
                name=f"{NAME}-{number}",
                routes=Routes(cluster=NAME, port=port, others=[p for p in ports if p != port], password=password),
            )
            for number, port in enumerate(ports, 1)
        ]
        self._running = AsyncExitStack()

    @property
    def url(self) -> str:
        """Where clients connect: the three addresses with commas between."""
        return ",".join(server.url for server in self.servers)

    async def start(self) -> None:
        """Return once clients can connect to each. Raises Refusal (`bus.server`)."""
        try:
            for server in self.servers:
                self._running.push_async_callback(server.stop)
            await asyncio.gather(*(server.start() for server in self.servers))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop all three."""
        await self._running.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def _free_ports(count: int) -> list[int]:
    """Ports that were free just now: a cluster has to name its members before any of them runs."""
    taken = [socket.socket() for _ in range(count)]
    try:
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in taken]
    finally:
        for one in taken:
            one.close()
