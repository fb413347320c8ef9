"""A real server, its keys, and connections that close themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from attestgate.bus.auth.credentials import Trust, create, issue
from attestgate.bus.client.nats import NatsBus, connect
from attestgate.bus.client.setup import ensure
from attestgate.bus.server.embedded import EmbeddedServer

Join = Callable[[str, str], Awaitable[NatsBus]]
"""Connect as (role, name)."""


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one bus's keys."""
    folder = tmp_path_factory.mktemp("bus") / "keys"
    create(folder)
    return folder


@pytest.fixture
def trust(keys: Path) -> Trust:
    from attestgate.bus.auth.credentials import load

    return load(keys)


@pytest.fixture
async def server(tmp_path: Path, trust: Trust) -> AsyncIterator[EmbeddedServer]:
    async with EmbeddedServer(tmp_path / "server", trust) as running:
        yield running


@pytest.fixture
async def join(server: EmbeddedServer, keys: Path, tmp_path: Path) -> AsyncIterator[Join]:
    """Connections to the server, which has been set up."""
    async with AsyncExitStack() as stack:

        async def connected(role: str, name: str) -> NatsBus:
            path = tmp_path / f"{role}-{name}.creds"
            issue(keys, role, name, path)
            bus = await connect([server.url], path)
            stack.push_async_callback(bus.close)
            return bus

        await ensure(await connected("manager", "setup"))
        yield connected
