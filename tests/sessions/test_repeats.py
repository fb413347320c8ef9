"""What bus and agents repeat by themselves is no attack, and is not told as one; what somebody replays is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from attestgate.bus import layout, subjects
from attestgate.bus.memory.server import MemoryDelivery
from attestgate.manager.audit.intake import Intake
from attestgate.manager.records.current import CurrentSessions
from attestgate.manager.records.outbox import Outbox
from attestgate.manager.records.session_messages import SessionMessages
from attestgate.manager.sessions.record import HostRecord
from attestgate.schemas.enrolment import RecheckNow
from tests.support.manager.deployment import Deployment, deployed
from tests.support.manager.witness import PATIENCE_S
from tests.support.manager.world import LONG, World

ACKNOWLEDGED = [
    ("host", "evidence"),
    ("host", "key_delivered"),
    ("app", "colocation_proof"),
    ("app", "recheck_evidence"),
]


def repeated(site: Deployment) -> int:
    return sum(worker.counts["repeated"] for worker in site.workers)


@pytest.mark.parametrize(("role", "step"), ACKNOWLEDGED)
async def test_what_was_handled_and_not_acknowledged_comes_again_and_is_not_told(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str, step: str
) -> None:
    """As after a worker that died between its last write and the acknowledgement."""
    acknowledge = MemoryDelivery.done
    lost: list[str] = []

    async def forget_once(self: MemoryDelivery) -> None:
        if not lost and self.subject == subjects.inbound(role, "h1" if role == "host" else "h1.a1", step):
            lost.append(self.subject)
        else:
            await acknowledge(self)

    monkeypatch.setattr(MemoryDelivery, "done", forget_once)
    async with deployed(world, tmp_path, timing=LONG) as site:
        await site.trusted()
        await site.app()
        await site.until("app", "a1", "admitted")
        await site.recheck("host", "h1")
        await site.recheck("app", "a1")
        # Until all but this one are acknowledged, or they would come again too.
        async with asyncio.timeout(PATIENCE_S):
            while sum(len(consumer._out) for consumer in site.wire.consumers.values()) > 1:
                await site.wire.changed()
        site.clock.at += layout.WORKERS.ack_wait_s + 1
        site.wire.tick()
        await site.settled()
        assert lost
        assert repeated(site) == 1
        assert site.dropped_codes() == []
        assert site.gateway.passes("a1")


async def test_an_agent_that_was_not_answered_says_it_again_and_is_not_told_of(site: Deployment) -> None:
    """The answer is lost; the same bytes come once more, as a message of their own."""
    await site.admitted()
    site.wire.hold(subjects.outbound("host", "h1", "accepted"))
    await site.recheck("host", "h1")
    (said,) = site.wire.said(subjects.inbound("host", "h1", "recheck_evidence"))
    site.wire.inject(subjects.inbound("host", "h1", "recheck_evidence"), said)
    await site.quiet()
    assert repeated(site) == 1
    assert site.dropped_codes() == []


async def test_what_its_sender_knows_was_heard_is_told_as_a_replay(site: Deployment) -> None:
    await site.admitted()
    await site.recheck("host", "h1")
    (said,) = site.wire.said(subjects.inbound("host", "h1", "recheck_evidence"))
    await site.recheck("host", "h1")  # its answer says that the first one's was heard
    site.wire.inject(subjects.inbound("host", "h1", "recheck_evidence"), said)
    await site.dropped(1)
    assert site.dropped_codes() == ["channel.repeat"]
    assert repeated(site) == 0


async def test_an_outbox_that_goes_out_late_undoes_nothing(site: Deployment) -> None:
    """One worker has stored a step and is slow to tell of it; another has told of it meanwhile, and taken the next."""
    await site.enrol_host()
    await site.host()
    trusted = await site.until("host", "h1", "trusted")
    await site.quiet()
    held = site.wire.hold("attest.v1.in.host.h1.recheck_evidence")
    await site.order(RecheckNow(kind="host", id="h1"))
    answer = await held
    await site.quiet()
    asked = await site.record(HostRecord, str(trusted.session))
    site.wire.inject(*answer)
    await site.until("host", "h1", "rechecked")
    await site.quiet()
    stood, waits = site.wire.snapshot("summaries"), dict(site.wire._schedules)
    bus, cipher = site.wire.connect(), site.world.cipher
    messages = SessionMessages(bus, cipher)
    intake = Intake(bus, site.world.managers, site.clock)
    await Outbox(bus, messages, CurrentSessions(bus, cipher, messages), intake).publish(asked)
    assert site.wire.snapshot("summaries") == stood
    assert site.wire._schedules == waits
