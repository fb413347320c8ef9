"""Gateways' reports: how many gateways it takes until an application is told that it is ready."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestgate.bus import subjects
from attestgate.manager.sessions.record import AppRecord
from attestgate.manager.sessions.states import State
from attestgate.schemas.admission import AppliedStatement, GatewayReport, sign_report
from attestgate.schemas.enrolment import Enrol, GatewayEnrolment
from attestgate.schemas.settings import ManagerSettings
from attestgate.schemas.signing import Signer
from tests.support.manager.deployment import Deployment, deployed
from tests.support.manager.world import GATEWAY, TRUST_DOMAIN, World
from tests.support.reasons import event_code
from tests.support.threats import rows, threat

OTHER = "gateway-2"
OTHER_KEY = Signer(TRUST_DOMAIN, Ed25519PrivateKey.from_private_bytes(b"\x07" * 32))


@pytest.fixture
async def certified(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Deployment]:
    """a1 with a certificate that one gateway of two has reported, where both must have."""
    settings_of = World.manager_settings

    def two(self: World, *arguments: Any) -> ManagerSettings:
        settings = settings_of(self, *arguments)
        return settings.model_copy(
            update={"gateways": settings.gateways.model_copy(update={"reports_before_ready": 2})}
        )

    monkeypatch.setattr(World, "manager_settings", two)
    async with deployed(world, tmp_path) as site:
        await site.order(Enrol(subject=GatewayEnrolment(id=OTHER, identity=OTHER_KEY.public)))
        await site.trusted()
        await site.app()
        await site.until("app", "a1", "certified")
        await site.quiet()
        yield site


async def report(site: Deployment, subject: str, signer: Signer, gateway: str) -> None:
    """A gateway's report of the one lease of a certificate that there is."""
    lease = site.gateway.leases[-1]
    applied = AppliedStatement(key=lease.key, state="admitted", sequence=lease.sequence, app_session=lease.app_session)
    said = GatewayReport(gateway=gateway, epoch="cd" * 16, applied=[applied], floors=1, at=int(site.clock()))
    await site.bus.publish(subjects.inbound("gateway", subject, "report"), sign_report(signer, said))
    await site.quiet()


@threat(rows.KEY_GATEWAY_REPORTS)
async def test_so_many_gateways_must_report_before_an_application_is_ready(certified: Deployment) -> None:
    """One of them alone is not enough, however often it says so."""
    site = certified
    assert site.gateway.passes("a1"), "its lease is out"
    await report(site, GATEWAY, site.world.gateway, GATEWAY)
    await site.kill_workers()
    site.run(site.wire.connect(), "remembers-no-report")
    await report(site, GATEWAY, site.world.gateway, GATEWAY)
    (record,) = await site.records(AppRecord)
    assert (record.state, record.gateways) == (State.CERTIFIED, [GATEWAY])
    assert site.wire.said(subjects.outbound("app", "h1.a1", "ready")) == []
    await report(site, OTHER, OTHER_KEY, OTHER)
    await site.until("app", "a1", "admitted")
    (record,) = await site.records(AppRecord)
    assert record.gateways == [GATEWAY, OTHER]


@threat(rows.KEY_GATEWAY_REPORTS)
@pytest.mark.parametrize(
    ("subject", "gateway", "code"),
    [(OTHER, OTHER, "signature.signer"), (OTHER, GATEWAY, "signature.signer"), (GATEWAY, OTHER, "signature.invalid")],
    ids=["in the other's name", "its own on the other's subject", "the other's on its own subject"],
)
async def test_no_gateway_reports_for_another(certified: Deployment, subject: str, gateway: str, code: str) -> None:
    site = certified
    await report(site, subject, site.world.gateway, gateway)
    assert event_code(await site.until("gateway", subject, "dropped")) == code
    (record,) = await site.records(AppRecord)
    assert (record.state, record.gateways) == (State.CERTIFIED, [GATEWAY])
