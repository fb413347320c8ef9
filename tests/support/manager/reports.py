"""What the gateway of a deployment says, and what it encloses, at a test's word."""

from __future__ import annotations

from typing import Any

from attestgate.bus import subjects
from attestgate.schemas.admission import GatewayReport, RefusedLease, Statement, post, sign_report
from attestgate.schemas.base import pack
from attestgate.schemas.signing import Signed
from tests.support.manager.deployment import Deployment
from tests.support.manager.world import GATEWAY


async def report(site: Deployment, **said: Any) -> None:
    """Have the gateway report, and return once the managers have taken it."""
    fields: dict[str, Any] = {"applied": [], "at": int(site.clock()), "floors": 0}
    made = GatewayReport(gateway=GATEWAY, epoch="ab" * 16, **fields | said)
    await site.bus.publish(subjects.inbound("gateway", GATEWAY, "report"), sign_report(site.world.gateway, made))
    await site.quiet()


def enclosed(site: Deployment, key: str, floor: Statement | Signed, floor_key: str = "") -> RefusedLease:
    """A lease that the gateway has refused, with what it was refused for: a manager's statement, or a command."""
    if isinstance(floor, Signed):
        return RefusedLease(key=key, code="admission.revoked", floor_key=floor_key, floor=pack(floor))
    value = post(site.world.manager, floor)
    return RefusedLease(key=key, code="admission.rank", floor_key=floor_key or floor.key, floor=value)
