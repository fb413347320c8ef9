"""What strangers send is refused by the cheapest check that can: by its size, by its sender, before it is read."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestgate.bus import subjects
from attestgate.bus.memory.bucket import MemoryBucket
from attestgate.manager.handlers.gateway_reports import MAX_STRANGE
from attestgate.manager.handlers.hello import HelloHandler
from attestgate.manager.records.session_messages import SessionMessages
from attestgate.schemas.admission import (
    BUCKET,
    MAX_APPLIED,
    AppliedStatement,
    GatewayReport,
    Lease,
    Withdrawal,
    post,
    sign_report,
)
from attestgate.schemas.base import pack
from attestgate.schemas.binding import PROTOCOL
from attestgate.schemas.events import reasons_of
from attestgate.schemas.limits import COMMAND, INBOUND
from attestgate.schemas.messages import HostHello
from attestgate.schemas.signing import Signer
from tests.support.hostile_messages import costliest
from tests.support.manager.deployment import Deployment
from tests.support.manager.world import GATEWAY, OPERATOR, TRUST_DOMAIN
from tests.support.threats import rows, threat

NAMES = {"host": "h1", "app": "h1.a1", "gateway": GATEWAY}


async def dropped(site: Deployment, subject: str, data: bytes) -> tuple[str, str]:
    """Code and field of the reason for which a message was dropped."""
    since = len(site.events)
    site.wire.inject(subject, data)
    event = await site.seen(lambda event: event.what == "dropped", since=since)
    (reason,) = reasons_of(event)
    return reason.code, reason.field


@threat(rows.MESSAGE_COSTLY)
@pytest.mark.parametrize(("role", "step"), sorted(INBOUND))
async def test_a_message_longer_than_its_step_allows_is_not_read(site: Deployment, role: str, step: str) -> None:
    subject, longest = subjects.inbound(role, NAMES[role], step), INBOUND[role, step]
    assert await dropped(site, subject, bytes(longest + 1)) == ("message.size", f"{role} {step}")
    code, _ = await dropped(site, subject, bytes(longest))
    assert code != "message.size"


@pytest.mark.parametrize(("command", "code"), [("enrol", "message.size"), ("put-policy", "message.encoding")])
async def test_only_a_command_with_policies_may_be_large(site: Deployment, command: str, code: str) -> None:
    found, _ = await dropped(site, subjects.operator(OPERATOR, command), bytes(COMMAND + 1))
    assert found == code


@threat(rows.COMMAND_UNSIGNED)
async def test_a_command_of_nobody_is_not_read(site: Deployment) -> None:
    assert await dropped(site, subjects.operator("nobody", "enrol"), b"\xc1") == ("command.subject", "operator")


@threat(rows.MESSAGE_COSTLY)
@pytest.mark.parametrize("role", ["host", "app"])
async def test_the_costliest_hellos_change_nothing(site: Deployment, role: str) -> None:
    for _, data in costliest(role, "hello"):
        code, _ = await dropped(site, subjects.inbound(role, NAMES[role], "hello"), data)
        assert code in ("message.encoding", "message.fields")
    assert site.wire.snapshot("sessions").entries == {}
    await site.admitted()


@threat(rows.NAMES_MADE_UP)
async def test_names_that_the_bus_makes_up_fill_no_table(site: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """No credential names its sender freely; whoever runs the server can."""
    monkeypatch.setattr("attestgate.manager.handlers.hello.SENDERS", 4)
    kept: list[int] = []
    admit = HelloHandler._admit

    def admitted(handler: HelloHandler, *arguments: Any) -> str:
        session = admit(handler, *arguments)
        kept.append(len(handler._last))
        return session

    monkeypatch.setattr(HelloHandler, "_admit", admitted)
    for number in range(8):
        hello = HostHello(
            version=PROTOCOL, host=f"x{number}", random=bytes(32), boot_id="x", agent_version="x", can_give=[]
        )
        code, _ = await dropped(site, subjects.inbound("host", hello.host, "hello"), pack(hello))
        assert code == "enrolment.unknown"
    assert kept == [1, 2, 3, 4, 4, 4, 4, 4]


def applied(number: int) -> AppliedStatement:
    return AppliedStatement(
        key=f"cert.{number + 256:040x}".replace("cert.0", "cert.1", 1),
        state="admitted",
        sequence=1,
        app_session=f"{number:032x}",
    )


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often a certificate was looked up, and how many messages went to sessions."""
    counts = {"looked up": 0, "sent": 0}
    get, send = MemoryBucket.get, SessionMessages.send

    async def counted_get(bucket: MemoryBucket, key: str) -> Any:
        counts["looked up"] += key.startswith("cert.")
        return await get(bucket, key)

    async def counted_send(
        messages: SessionMessages, role: Any, session: str, what: str, model: Any, **by: Any
    ) -> None:
        counts["sent"] += what == "applied"
        await send(messages, role, session, what, model)

    monkeypatch.setattr(MemoryBucket, "get", counted_get)
    monkeypatch.setattr(SessionMessages, "send", counted_send)
    return counts


@threat(rows.KEY_GATEWAY_WORK)
async def test_sessions_that_a_gateway_makes_up_cost_a_few_look_ups(site: Deployment, work: dict[str, int]) -> None:
    report = GatewayReport(
        gateway=GATEWAY, epoch="ab" * 16, applied=[*map(applied, range(MAX_APPLIED))], at=1, floors=0
    )
    subject = subjects.inbound("gateway", GATEWAY, "report")
    code, _ = await dropped(site, subject, sign_report(site.world.gateway, report))
    assert code == "gateway.applied"
    assert work == {"looked up": MAX_STRANGE + 1, "sent": 0}


@pytest.mark.parametrize("own", [True, False])
async def test_certificates_withdrawn_meanwhile_are_not_made_up(
    site: Deployment, work: dict[str, int], own: bool
) -> None:
    """As many as are on their way when many sessions end at once; or when another identity has signed the leases."""
    signer = site.world.manager if own else Signer(TRUST_DOMAIN, Ed25519PrivateKey.generate())
    gone = [applied(number) for number in range(MAX_APPLIED)]
    for item in gone:
        withdrawal = Withdrawal(key=item.key, issued_at=1, until=2, sequence=2, reason="x", ends=None)
        await site.bus.bucket(BUCKET).put(item.key, post(signer, withdrawal))
    report = GatewayReport(gateway=GATEWAY, epoch="ab" * 16, applied=gone, at=1, floors=0)
    await site.bus.publish(subjects.inbound("gateway", GATEWAY, "report"), sign_report(site.world.gateway, report))
    await site.quiet()
    assert work == {"looked up": MAX_APPLIED, "sent": 0}
    assert "dropped" not in [event.what for event in site.events]


async def test_a_few_certificates_that_are_gone_hold_up_no_other(site: Deployment, work: dict[str, int]) -> None:
    _, app = await site.admitted()
    work.update({"looked up": 0, "sent": 0})
    newer = await renewed(site)
    named = AppliedStatement(key=newer.key, state="admitted", sequence=newer.sequence, app_session="00" * 16)
    gone = [applied(number) for number in range(MAX_STRANGE)]
    await report(site, [*gone, named, named])
    assert "dropped" not in [event.what for event in site.events]
    # To the session that it was leased to, whatever session the gateway names.
    assert work["sent"] == 1
    assert app is not None


@threat(rows.KEY_GATEWAY_WORK)
async def test_a_lease_that_a_gateway_reports_without_end_is_passed_on_once(
    site: Deployment, work: dict[str, int]
) -> None:
    """Else 64 messages to sessions for each report of a stolen gateway key: timers and withdrawals wait behind."""
    await site.admitted()
    work.update({"looked up": 0, "sent": 0})
    newer = await renewed(site)
    named = AppliedStatement(key=newer.key, state="admitted", sequence=newer.sequence, app_session=newer.app_session)
    for _ in range(3):
        await report(site, [named])
    assert work["sent"] == 1
    work.update({"looked up": 0, "sent": 0})
    for sequence in range(3):
        await report(site, [named.model_copy(update={"sequence": newer.sequence - sequence})])
    assert work == {"looked up": 0, "sent": 0}


@threat(rows.KEY_GATEWAY_WORK)
async def test_leases_that_a_gateway_makes_up_cost_a_few_look_ups(site: Deployment, work: dict[str, int]) -> None:
    await site.admitted()
    newer = await renewed(site)
    # Of another set of gateways, so that the one in this deployment does not report them.
    keys = [
        newer.model_copy(update={"serial": f"1{number:039x}", "gateways": "others"}) for number in range(MAX_APPLIED)
    ]
    for lease in keys:
        await site.bus.bucket(BUCKET).put(lease.key, post(site.world.manager, lease))
    await site.quiet()
    work.update({"looked up": 0, "sent": 0})
    made_up = [
        AppliedStatement(key=lease.key, state="admitted", sequence=lease.sequence + 1, app_session=lease.app_session)
        for lease in keys
    ]
    since = len(site.events)
    await report(site, made_up)
    (event,) = [event for event in site.events[since:] if event.what == "dropped"]
    assert [reason.code for reason in reasons_of(event)] == ["gateway.applied"]
    assert work["looked up"] == MAX_STRANGE + 1


async def renewed(site: Deployment) -> Lease:
    """A newer lease of the application's, on the bus and reported by the gateway."""
    (lease,) = {lease.key: lease for lease in site.gateway.leases}.values()
    newer = lease.model_copy(update={"sequence": lease.sequence + 100})
    await site.bus.bucket(BUCKET).put(newer.key, post(site.world.manager, newer))
    while newer not in site.gateway.leases:
        await site.wire.changed()
    await site.quiet()
    return newer


async def report(site: Deployment, items: list[AppliedStatement]) -> None:
    said = GatewayReport(gateway=GATEWAY, epoch="ab" * 16, applied=items, at=1, floors=0)
    await site.bus.publish(subjects.inbound("gateway", GATEWAY, "report"), sign_report(site.world.gateway, said))
    await site.quiet()
