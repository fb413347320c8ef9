"""What the decision log says of a deployment under test."""

from __future__ import annotations

from secrets import token_hex

from attestgate.bus.api import Bus, Conflict
from attestgate.manager.audit.alarms import Alarms
from attestgate.manager.audit.check import check, decisions
from attestgate.manager.audit.copy import read_log
from attestgate.manager.audit.intake import Intake
from attestgate.manager.audit.last_head import LastHead
from attestgate.manager.audit.log import DecisionLog
from attestgate.schemas.audit import Decision
from tests.support.manager.world import World


async def decided(bus: Bus, world: World, at: int) -> list[Decision]:
    """Every decision, in the tree's order, once the log verifies; a worker that waits for none takes in the last."""
    memory = LastHead(world.folder / "auditor" / token_hex(8))
    telling = Alarms("auditor", _complain)
    intake = Intake(bus, world.managers, lambda: at)
    log = DecisionLog(bus, intake, memory, world.manager, world.managers, telling, lambda: at)
    while await _more(log):
        pass
    copy = await read_log(bus, world.managers)
    assert check(copy, world.managers, [], at) == []
    return [decision for _, decision, _ in sorted(decisions(copy, world.managers), key=lambda item: item[0])]


def said(found: list[Decision], session: str) -> list[str]:
    """What was decided in a session, in order."""
    return [decision.fact.did for decision in found if decision.session == session]


async def _more(log: DecisionLog) -> bool:
    try:
        return await log.grow()
    except Conflict:
        return True


async def _complain(*what: object, **data: object) -> None:
    raise AssertionError(f"{what}: {data}")
