"""Hosts with a TPM in a deployment: enrolled, started, asked again."""

from __future__ import annotations

import asyncio
from pathlib import Path

from attestgate.bus.agent.link import Link
from attestgate.host_agent.main import HostAgent
from attestgate.host_agent.tpm_service import address
from attestgate.schemas.enrolment import Enrol, HostEnrolment, RecheckNow
from attestgate.schemas.settings import BusSettings, HostSettings
from attestgate.schemas.tpm import TpmEnrolment
from tests.support.manager.harness import Deployment
from tests.support.manager.witness import code_of
from tests.support.manager.world import HOST_ENCLAVE


async def enrol(site: Deployment, tpm: TpmEnrolment) -> None:
    mrenclaves = [HOST_ENCLAVE.mrenclave.hex()]
    subject = HostEnrolment(id="h1", mrenclaves=mrenclaves, platform=site.world.ppid("machine-a"), tpm=tpm)
    await site.order(Enrol(subject=subject))


async def start(site: Deployment, service: asyncio.Server | None) -> None:
    """The host's agent, told where its TPM's service is."""
    settings = HostSettings(
        profile="development",
        bus=BusSettings(url="memory", credentials=Path("none")),
        id="h1",
        measured=Path("none"),
        retry_s=1,
        measurement_list=site.measurement_list,
        volumes=[site.volume],
        tpm=None if service is None else address(service),
    )
    bus = site.wire.connect()
    link = Link(bus, "host", "h1")
    await link.listen()
    agent = HostAgent(site.world.enclave("machine-a", HOST_ENCLAVE), link, settings, site.world.measured)
    site._agent(agent.run(), bus)


async def recheck(site: Deployment, what: str) -> list[str]:
    """Ask again; the reason codes of what came of it."""
    since = len(site.events)
    await site.order(RecheckNow(kind="host", id="h1"))
    event = await site.until("host", "h1", what, since=since)
    return [] if what == "rechecked" else [code_of(event)]
