"""What a gateway's signed reports say, and in which order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest

from attestgate.bus.api import Bus
from attestgate.manager.gateway.reports import Reporter
from attestgate.schemas.admission import (
    MAX_REFUSED,
    MAX_REVOKED,
    AppliedStatement,
    GatewayReport,
    RefusedLease,
    open_report,
)
from attestgate.schemas.signing import TrustedKeys
from tests.support.gateway.deployment import TRUST_DOMAIN, new_signer
from tests.support.gateway.gate import FakeBus

EPOCH = "ab" * 16


class Reports:
    """A reporter that publishes, and what it has published."""

    def __init__(self) -> None:
        self._identity = new_signer()
        self._bus = FakeBus()
        self.reporter = Reporter("g1", bus=cast(Bus, self._bus), identity=self._identity, emit=_nothing)

    async def published(self, count: int) -> list[GatewayReport]:
        """The reports, once there are so many."""
        async with asyncio.timeout(10):
            while len(self._bus.published) < count:
                self._bus.heard.clear()
                await self._bus.heard.wait()
        trusted = TrustedKeys(TRUST_DOMAIN, {"gateway": {self._identity.public}})
        return [open_report(data, "g1", trusted) for _, data in self._bus.published]


async def _nothing(kind: str, id: str, what: str, data: dict[str, object]) -> None:
    raise AssertionError(f"no event: {kind} {id} {what} {data}")


@pytest.fixture
async def reports() -> AsyncIterator[Reports]:
    made = Reports()
    publishing = asyncio.create_task(made.reporter.publish_reports())
    yield made
    assert not publishing.done()
    publishing.cancel()
    await asyncio.wait([publishing])


def below(key: str, code: str = "admission.rank") -> RefusedLease:
    return RefusedLease(key=key, code=code, floor_key="cert.01", floor=b"signed")


async def test_the_first_report_is_the_floors_as_they_were_found(reports: Reports) -> None:
    """Also where there is more to say by then: that waits for the first round."""
    reports.reporter.report_refused(below("cert.02"))
    reports.reporter.begin(EPOCH, 100, 7)
    (first,) = await reports.published(1)
    assert first == GatewayReport(gateway="g1", epoch=EPOCH, applied=[], at=100, floors=7)
    await asyncio.sleep(0.3)
    applied = AppliedStatement(key="cert.01", state="admitted", sequence=1)
    reports.reporter.report([applied], EPOCH, 101, floors=9, revoked=[bytes(32)])
    _, second = await reports.published(2)
    assert second == GatewayReport(
        gateway="g1",
        epoch=EPOCH,
        applied=[applied],
        at=101,
        floors=9,
        revoked=[bytes(32)],
        refused=[below("cert.02")],
    )


async def test_what_one_report_cannot_hold_is_in_the_next(reports: Reports) -> None:
    digests = [bytes([number]) * 32 for number in range(MAX_REVOKED + 1)]
    reports.reporter.begin(EPOCH, 100, 0)
    reports.reporter.report([], EPOCH, 100, floors=0, revoked=digests)
    for number in range(MAX_REFUSED + 1):
        reports.reporter.report_refused(below(f"cert.0{number}", "admission.enrolled"))
        reports.reporter.report_refused(below(f"cert.0{number}"))
    _, one, other = await reports.published(3)
    assert one.revoked + other.revoked == digests
    assert one.refused + other.refused == [below(f"cert.0{number}") for number in range(MAX_REFUSED + 1)]
