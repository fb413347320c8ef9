"""A stolen credential sends or asks as fast as it can from a machine of its own, behind the kernel's rules.

Without them (bench.hostile_floods before there were any) two thirds of an honest host's messages were not taken. With
them a viewer's calls still kept a manager from reading a single key, as long as that was a call itself.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from attestgate.bus import layout, subjects
from attestgate.bus.api import Entry
from attestgate.bus.auth import credentials
from attestgate.bus.auth.permissions import GATEWAY, MANAGER, VIEWER
from attestgate.bus.client.nats import NatsBus, connect
from attestgate.bus.client.setup import ensure
from attestgate.bus.server.embedded import EmbeddedServer, die_with_parent
from tests.support.bus.network import HINT, load, possible, within
from tests.support.threats import rows, threat

pytestmark = [pytest.mark.stack, pytest.mark.skipif(not possible(), reason=HINT)]

STEP = "recheck_evidence"
MANY, PATIENCE_S = 40, 60.0
THIEF = "127.0.0.2"
MANAGERS = "127.0.0.3/32"
"""Of nobody here: the honest are limited as well."""


@asynccontextmanager
async def flooding(url: str, kind: str, stolen: Path) -> AsyncIterator[None]:
    """A flood by the flooder of the benchmarks, once it has begun."""
    flood = json.dumps({"kind": kind, "url": url, "credentials": str(stolen), "source": THIEF})
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.flooder", flood), stdout=asyncio.subprocess.PIPE, preexec_fn=die_with_parent()
    )
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"flooding\n"
        yield
        assert process.returncode is None
    finally:
        process.terminate()
        await process.wait()


async def heard(bus: NatsBus, messages: asyncio.Queue[bytes]) -> None:
    """Take what comes as a manager does, and note what the honest host has said."""
    async for delivery in bus.consume(layout.CONSUMERS["host-rechecks"].name):
        if delivery.subject == subjects.inbound("host", "honest", STEP):
            messages.put_nowait(delivery.data)
        await delivery.done()


@threat(rows.FLOOD, rows.VIEWER_FLOODS)
@pytest.mark.parametrize(("role", "kind"), [("host", "small"), ("operator", "calls"), (VIEWER, "calls")])
def test_a_machine_that_floods_keeps_nothing_from_managers_and_gateways(role: str, kind: str, tmp_path: Path) -> None:
    """A message to a manager, what a manager stores and reads, and what a gateway reads: each is done in its time."""

    async def work() -> None:
        keys = tmp_path / "keys"
        credentials.create(keys)
        async with EmbeddedServer(tmp_path / "server", credentials.load(keys)) as server, AsyncExitStack() as stack:
            port = urlsplit(server.url).port
            assert port is not None
            load([port], [ip_network(MANAGERS)])

            def issue(role: str, name: str) -> Path:
                credentials.issue(keys, role, name, path := tmp_path / f"{role}.{name}.creds")
                return path

            async def join(role: str) -> NatsBus:
                bus = await connect([server.url], issue(role, "honest"))
                stack.push_async_callback(bus.close)
                return bus

            manager, host, gateway = await join(MANAGER), await join("host"), await join(GATEWAY)
            await ensure(manager)
            messages: asyncio.Queue[bytes] = asyncio.Queue()
            stack.callback(asyncio.create_task(heard(manager, messages)).cancel)
            async with flooding(server.url, kind, issue(role, "thief")):
                for number in range(MANY):
                    said = b"%d" % number
                    await host.publish(subjects.inbound("host", "honest", STEP), said)
                    async with asyncio.timeout(PATIENCE_S):
                        assert await messages.get() == said
                    revision = await manager.bucket("admissions").put("host.honest", said)
                    for reader in (manager, gateway):
                        assert await reader.bucket("admissions").get("host.honest") == Entry(
                            "host.honest", said, revision
                        )

    within(work)
