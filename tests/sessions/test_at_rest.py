"""What stays on the bus of a session with nothing to do: small, and nothing that was sent already."""

from __future__ import annotations

from attestgate.manager.sessions.record import AppRecord, HostRecord, record_key
from attestgate.manager.sessions.states import State
from attestgate.manager.sessions.step6_colocation import MAX_APPS
from attestgate.schemas.enrolment import RecheckNow, Revoke
from tests.support.manager.deployment import Deployment
from tests.support.threats import rows, threat

HOST_BYTES = 2000
"""A trusted host's sealed record: with what stands beside it, less than 4 KiB of the bus (docs/performance.md)."""


async def size(site: Deployment, session: str) -> int:
    entry = await site.bus.bucket("sessions").get(record_key("host", session))
    assert entry is not None
    assert entry.value is not None
    return len(entry.value)


async def test_a_trusted_session_keeps_nothing_that_was_sent(site: Deployment) -> None:
    await site.admitted()
    (host,), (app,) = await site.records(HostRecord), await site.records(AppRecord)
    assert (host.state, app.state) == (State.TRUSTED, State.ADMITTED)
    assert (host.outbox, app.outbox) == ([], [])
    assert await size(site, host.session) < HOST_BYTES


async def test_a_recheck_adds_nothing(site: Deployment) -> None:
    await site.enrol_host()
    await site.host()
    await site.until("host", "h1", "trusted")
    await site.quiet()
    (before,) = await site.records(HostRecord)
    await site.recheck("host", "h1")
    await site.quiet()
    (after,) = await site.records(HostRecord)
    assert (after.revision, after.outbox) == (before.revision + 2, [])
    assert await size(site, after.session) < HOST_BYTES


async def test_a_question_under_way_keeps_what_it_sends(site: Deployment) -> None:
    """Whoever loads the record next cannot know that all of it went out."""
    await site.enrol_host()
    await site.host()
    await site.until("host", "h1", "trusted")
    await site.quiet()
    held = site.wire.hold("attest.v1.in.host.h1.recheck_evidence")
    await site.order(RecheckNow(kind="host", id="h1"))
    await held
    await site.quiet()
    (host,) = await site.records(HostRecord)
    assert host.state is State.RECHECKING
    assert {outgoing.how for outgoing in host.outbox} == {"send", "publish", "wake", "summary"}


async def test_a_session_that_is_over_keeps_nothing_either(site: Deployment) -> None:
    await site.admitted()
    await site.order(Revoke(kind="host", id="h1", reason="test"))
    await site.until("app", "a1", "untrusted")
    await site.quiet()
    (host,), (app,) = await site.records(HostRecord), await site.records(AppRecord)
    assert (host.state, app.state) == (State.REVOKED, State.UNTRUSTED)
    assert (host.outbox, app.outbox) == ([], [])


@threat(rows.HOST_ENDLESS)
async def test_a_host_with_many_applications_is_cut_off_whatever_the_reasons(site: Deployment) -> None:
    """Its record, with a notice for each application session that it ever had, is within the bucket's largest value."""
    await site.trusted()
    await site.quiet()
    (host,) = await site.records(HostRecord)
    apps = {f"{number:032x}": "a1" for number in range(MAX_APPS)}
    await store(site, host.model_copy(update={"apps": apps}))
    await site.order(Revoke(kind="host", id="h1", reason="\N{OX}" * 200))
    await site.until("host", "h1", "revoked")
    await site.quiet()
    (host,) = await site.records(HostRecord)
    assert (host.state, host.outbox) == (State.REVOKED, [])
    told = {subject for subject, _ in site.wire.seen if subject.endswith(".host-lost")}
    assert told == {f"attest.v1.work.app.{session}.host-lost" for session in apps}


async def store(site: Deployment, host: HostRecord) -> None:
    """Put a record in the place of the one that is there."""
    bucket, key = site.bus.bucket("sessions"), record_key("host", host.session)
    await bucket.put(key, site.world.cipher.seal("sessions", key, host.revision, host))
