"""Hosts with a TPM in a deployment: enrolled, started, asked again."""

from __future__ import annotations

import asyncio

from attestgate.host_agent.tpm_service import address
from attestgate.schemas.enrolment import Enrol, HostEnrolment, RecheckNow
from attestgate.schemas.tpm import TpmEnrolment
from tests.support.manager.deployment import Deployment
from tests.support.manager.world import HOST_ENCLAVE
from tests.support.reasons import event_code


async def enrol(site: Deployment, tpm: TpmEnrolment) -> None:
    mrenclaves = [HOST_ENCLAVE.mrenclave.hex()]
    subject = HostEnrolment(id="h1", mrenclaves=mrenclaves, platform=site.world.ppid("machine-a"), tpm=tpm)
    await site.order(Enrol(subject=subject))


async def start(site: Deployment, service: asyncio.Server | None) -> None:
    """The host's agent, told where its TPM's service is."""
    await site.host(tpm=None if service is None else address(service))


async def recheck(site: Deployment, what: str) -> list[str]:
    """Ask again; the reason codes of what came of it."""
    since = len(site.events)
    await site.order(RecheckNow(kind="host", id="h1"))
    event = await site.until("host", "h1", what, since=since)
    return [] if what == "rechecked" else [event_code(event)]
