"""What stays on the bus of a session with nothing to do: small, and nothing that was sent already."""

from __future__ import annotations

from attestgate.manager.sessions.record import AppRecord, HostRecord, record_key
from attestgate.manager.sessions.states import State
from attestgate.schemas.enrolment import RecheckNow, Revoke
from tests.support.manager.deployment import Deployment

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
