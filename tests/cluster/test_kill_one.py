"""One server of three is killed and brought back while 200 agents enrol: each is let in, or is told why not."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from attestgate.bus import layout
from attestgate.bus.auth import credentials
from attestgate.bus.server.cluster import EmbeddedCluster
from attestgate.bus.server.embedded import EmbeddedServer
from attestgate.schemas.base import Reason
from tests.support.manager.fleet import Fleet
from tests.support.manager.world import World
from tests.support.threats import rows, threat

HOSTS, APPS = 20, 180
PATIENCE_S = 90.0


async def bring_back(server: EmbeddedServer) -> None:
    """Start a server that was killed, with what it had stored."""
    await server.wait()
    await server.stop()
    await server.start()


async def leader_of(fleet: Fleet, cluster: EmbeddedCluster, stream: str) -> EmbeddedServer:
    """The server that leads a stream."""
    manager = await fleet.join("manager", "asks")
    info = await manager.jetstream.stream_info(stream)
    assert info.cluster is not None and info.cluster.leader is not None
    assert len(info.cluster.replicas or []) == 2
    return next(server for server in cluster.servers if server.name == info.cluster.leader)


async def enrol(fleet: Fleet) -> None:
    """Enrol everybody: two hundred commands of one operator, one after another, as they have to be."""
    for number in range(HOSTS):
        await fleet.enrol_host(f"host-{number}")
    for number in range(APPS):
        await fleet.enrol_app(f"app-{number}", f"host-{number % HOSTS}")


@threat(rows.PROCESS_GONE)
@pytest.mark.stack
async def test_all_are_admitted_or_told_why_not(tmp_path: Path) -> None:
    world = await asyncio.to_thread(World, tmp_path / "world")
    async with (
        EmbeddedCluster(tmp_path / "bus", credentials.load(world.keys / "bus")) as cluster,
        Fleet(world, cluster.url, tmp_path / "fleet", replicas=3) as fleet,
    ):
        for number in range(2):
            await fleet.worker(f"manager-{number}")
        await fleet.gateway()
        await enrol(fleet)
        killed = await leader_of(fleet, cluster, layout.SESSIONS.stream)
        for number in range(HOSTS):
            await fleet.host(f"host-{number}")
        for number in range(APPS):
            await fleet.app(f"app-{number}", f"host-{number % HOSTS}")
        await fleet.until("host", "host-0", "trusted", PATIENCE_S)
        os.kill(killed.pid, signal.SIGKILL)
        await fleet.until("app", "app-0", "admitted", PATIENCE_S)
        await bring_back(killed)
        async with asyncio.timeout(PATIENCE_S):
            for number in range(HOSTS):
                await fleet.until("host", f"host-{number}", "trusted", PATIENCE_S)
            for number in range(APPS):
                await fleet.until("app", f"app-{number}", "admitted", PATIENCE_S)
        assert fleet.failed() == []
        for event in fleet.events:
            if event.what in ("refused", "untrusted", "expired"):
                reasons = event.data["reasons"]
                assert isinstance(reasons, list) and reasons
                assert all(Reason.model_validate(reason).code != "worker.fault" for reason in reasons)
            assert event.what != "quarantined", event
