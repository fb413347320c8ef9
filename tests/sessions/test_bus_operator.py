"""The bus in hostile hands: messages repeated, late, swapped, changed, invented. It may cost time, never more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import msgpack
import pytest

from attestgate.bus import subjects
from attestgate.bus.api import BusError
from attestgate.manager.attestation.verifier import Verifier
from attestgate.manager.sessions.inter_session import AppliedAtGateway, Deliver, Delivered, HostLost, Issue, Order
from attestgate.manager.sessions.record import AppRecord, HostRecord
from attestgate.manager.sessions.states import State
from attestgate.schemas.base import MAX_MESSAGE, Refusal, pack
from attestgate.schemas.enrolment import RecheckNow
from attestgate.schemas.event_data import BY_NAME
from tests.support.manager.deployment import Deployment, deployed
from tests.support.manager.world import World
from tests.support.threats import rows, threat

IN = f"{subjects.IN}.>"
OUT = f"{subjects.OUT}.>"
UP = [
    ("host", "evidence"),
    ("host", "key_proof"),
    ("host", "key_delivered"),
    ("host", "recheck_evidence"),
    ("app", "evidence"),
    ("app", "colocation_proof"),
    ("app", "recheck_evidence"),
]
DOWN = [
    ("host", "challenge"),
    ("host", "grant"),
    ("host", "accepted"),
    ("host", "deliver_key"),
    ("host", "recheck"),
    ("app", "challenge"),
    ("app", "grant"),
    ("app", "certificate"),
    ("app", "ready"),
    ("app", "recheck"),
]
IDS = {"host": "h1", "app": "a1"}
NAMES = {"host": "h1", "app": "h1.a1"}
"""On the bus."""


def flips(data: bytes) -> Iterator[bytes]:
    """The message with each of its fields changed in turn, bytes at their beginning, middle and end."""
    message = msgpack.unpackb(data)
    for name, value in message.items():
        for other in _others(value):
            yield bytes(msgpack.packb(message | {name: other}, use_bin_type=True))


def _others(value: Any) -> list[Any]:
    if isinstance(value, bytes):
        places = sorted({0, len(value) // 2, len(value) - 1}) if value else []
        return [value[:i] + bytes([value[i] ^ 1]) + value[i + 1 :] for i in places] + [value[:-1], value + b"\0"]
    if isinstance(value, int):
        return [value + 1, max(value - 1, 0)] if value else [value + 1]
    assert isinstance(value, str)
    return [("1" if value[0] != "1" else "2") + value[1:]]


async def whole_path(site: Deployment) -> None:
    """Admit h1 and a1 and recheck both once."""
    await site.admitted()
    await site.recheck_both()
    await site.quiet()


async def stands(site: Deployment) -> None:
    """One trusted host, one admitted application, one certificate, whatever else came."""
    (host,) = await site.records(HostRecord)
    (app,) = await site.records(AppRecord)
    # A question may be under way: it is answered.
    assert await site.answered(HostRecord, host.session) is State.TRUSTED
    assert await site.answered(AppRecord, app.session) is State.ADMITTED
    assert len({lease.serial for lease in site.gateway.leases}) == 1
    assert site.gateway.passes("a1")


@threat(rows.MESSAGE_REORDERED)
@pytest.mark.parametrize("pattern", [IN, OUT, f"{subjects.WORK}.>", f"{subjects.EVENTS}.>"])
async def test_every_message_twice(site: Deployment, pattern: str) -> None:
    site.wire.meddle = lambda s, d: [(s, d)] * (2 if subjects.matches(pattern, s) else 1)
    await whole_path(site)
    await stands(site)
    assert site.what("app", "a1").count("certified") == 1
    assert site.what("host", "h1").count("granted") == 1


@threat(rows.MESSAGE_REORDERED)
async def test_every_message_once_more_at_the_end(site: Deployment) -> None:
    await whole_path(site)
    for subject, data in list(site.wire.seen):
        if subjects.matches(IN, subject) or subjects.matches(f"{subjects.WORK}.>", subject):
            site.wire.inject(subject, data)
            await site.quiet()
    await stands(site)


@threat(rows.MESSAGE_REORDERED)
@pytest.mark.parametrize("nth", range(24))
async def test_neighbours_swapped(site: Deployment, nth: int) -> None:
    """The nth message between agents and manager is delivered after the one that follows it."""
    seen, kept = 0, list[tuple[str, bytes]]()

    def swap(subject: str, data: bytes) -> Iterable[tuple[str, bytes]]:
        nonlocal seen
        if not (subjects.matches(IN, subject) or subjects.matches(OUT, subject)):
            return [(subject, data)]
        seen += 1
        if seen == nth + 1:
            kept.append((subject, data))
            return []
        late = [kept.pop()] if kept else []
        return [(subject, data), *late]

    site.wire.meddle = swap
    async with site.passing():
        path = asyncio.create_task(whole_path(site))
        while not path.done():
            await asyncio.wait([path], timeout=0.05)
            if kept and not path.done():
                site.wire.inject(*kept.pop())  # nothing came after it: it is only late
        await path
    await stands(site)


@threat(rows.MESSAGE_FORGED)
@pytest.mark.parametrize(("role", "step"), UP)
async def test_every_field_of_a_message_to_the_manager_changed(site: Deployment, role: str, step: str) -> None:
    held = site.wire.hold(subjects.inbound(role, NAMES[role], step))
    async with site.passing():
        path = asyncio.create_task(whole_path(site))
        subject, data = await held
        changed = list(flips(data))
        before = len(site.dropped_codes())
        for count, wrong in enumerate(changed, 1):
            site.wire.inject(subject, wrong)
            await site.dropped(before + count)
        site.wire.inject(subject, data)
        await path
    await stands(site)
    dropped = [e for e in site.events if e.what == "dropped" and e.kind == role]
    assert len(dropped) == len(changed)
    assert all(event.data["step"] == step for event in dropped)
    assert sum(count for code, count in site.workers[0].counts.items() if code.startswith("dropped")) == len(changed)


@threat(rows.MESSAGE_FORGED)
@pytest.mark.parametrize(("role", "step"), DOWN)
async def test_every_field_of_a_message_to_an_agent_changed(site: Deployment, role: str, step: str) -> None:
    subject = subjects.outbound(role, NAMES[role], step)
    site.wire.meddle = lambda s, d: [(s, wrong) for wrong in flips(d)] + [(s, d)] if s == subject else [(s, d)]
    async with site.passing():
        await whole_path(site)
    await stands(site)


@threat(rows.EVIDENCE_LATE)
@pytest.mark.parametrize(("role", "step"), [("host", "evidence"), ("app", "evidence")])
async def test_first_evidence_past_its_window_is_worth_nothing(site: Deployment, role: str, step: str) -> None:
    held = site.wire.hold(subjects.inbound(role, NAMES[role], step))
    path = asyncio.create_task(site.admitted())
    subject, data = await held
    site.clock.at += site.timing.evidence_window_s + site.timing.skew_s + 1
    site.wire.inject(subject, data)
    await site.until(role, IDS[role], "expired")
    await site.quiet()
    path.cancel()
    await asyncio.wait([path])
    assert "granted" not in site.what(role, IDS[role])
    assert not site.gateway.passes("a1")


@threat(rows.EVIDENCE_LATE)
@pytest.mark.parametrize(("role", "step"), [("host", "recheck_evidence"), ("app", "recheck_evidence")])
async def test_a_rechecks_evidence_past_its_window_renews_nothing(site: Deployment, role: str, step: str) -> None:
    await site.admitted()
    kind: type[HostRecord] | type[AppRecord] = HostRecord if role == "host" else AppRecord
    (before,) = await site.records(kind)  # type: ignore[type-var]
    held = site.wire.hold(subjects.inbound(role, NAMES[role], step))
    await site.order(RecheckNow(kind=role, id=IDS[role]))  # type: ignore[arg-type]
    subject, data = await held
    site.clock.at += site.timing.evidence_window_s + site.timing.skew_s + 1
    site.wire.inject(subject, data)
    await site.until(role, IDS[role], "late-answer")
    after = await site.record(kind, before.session)  # type: ignore[type-var]
    assert after.lease_end == before.lease_end
    assert after.issued_at == before.issued_at


@threat(rows.MESSAGE_FORGED)
@pytest.mark.parametrize(("role", "step"), [(role, step) for role in IDS for step in subjects.STEPS[role]])
async def test_garbage_on_every_subject_changes_nothing(site: Deployment, role: str, step: str) -> None:
    await site.admitted()
    subject = subjects.inbound(role, NAMES[role], step)
    garbage = [b"", b"\xc1", b"\x80", b"\x93\x01\x02\x03", bytes(1000), b"\xdf\xff\xff\xff\xff", b"\x91" * 5000]
    for count, data in enumerate(garbage, 1):
        site.wire.inject(subject, data)
        await site.dropped(count)
    await site.quiet()
    await stands(site)


@threat(rows.MESSAGE_FORGED)
async def test_what_is_larger_than_a_message_may_be_is_dropped(site: Deployment) -> None:
    await site.admitted()
    site.wire.inject(subjects.inbound("host", "h1", "evidence"), bytes(MAX_MESSAGE + 1))
    await site.dropped(1)
    assert site.dropped_codes() == ["message.size"]
    await stands(site)


@threat(rows.NAMES_MADE_UP)
@pytest.mark.parametrize(
    "subject",
    [
        "attest.v1.in.host.H1.evidence",
        "attest.v1.in.host.h1!.evidence",
        "attest.v1.op.Some One.enrol",
        f"attest.v1.in.host.{'x' * 300}.evidence",
        "attest.v1.work.host.x",
        "attest.v1.work.x!.y.z",
        "attest.v1.work.host.aa.bb.cc.dd",
        "attest.v1.due.X!",
        "attest.v1.due.nosuchsession",
    ],
)
async def test_no_subject_ends_a_worker(site: Deployment, subject: str) -> None:
    site.wire.inject(subject, b"x")
    await site.dropped(1)
    assert {(event.kind, event.what) for event in site.events} <= BY_NAME.keys()
    await whole_path(site)
    await stands(site)


@threat(rows.NAMES_MADE_UP)
@pytest.mark.parametrize(
    "subject",
    [
        "attest.v1.in.nobody.h1.evidence",
        "attest.v1.in.manager.h1.evidence",
        "attest.v1.in.host.h1.dance",
        "attest.v1.in.app.a1.hello",
        "attest.v1.op.operator.ENROL",
    ],
)
async def test_what_no_stream_takes_is_dropped_by_a_worker_too(site: Deployment, subject: str) -> None:
    """The streams enumerate their subjects; a bus that delivers others all the same ends no worker."""
    with pytest.raises(BusError, match="no stream"):
        site.wire.inject(subject, b"x")
    (worker,) = site.workers
    delivery = SimpleNamespace(subject=subject, data=b"x", attempt=1, done=AsyncMock())
    await worker._one(delivery, worker._from_outside)
    await site.dropped(1)
    delivery.done.assert_awaited_once()
    assert {(event.kind, event.what) for event in site.events} <= BY_NAME.keys()
    await whole_path(site)
    await stands(site)


FORGED: list[tuple[str, str, Callable[[str, str], Any]]] = [
    ("app", "applied", lambda host, app: AppliedAtGateway(gateway="gateway-1", serial="ab" * 16)),
    ("app", "issue", lambda host, app: Issue()),
    ("app", "delivered", lambda host, app: Delivered(host_session=host)),
    ("app", "host-lost", lambda host, app: HostLost(state="UNTRUSTED", reasons=[])),
    ("app", "revoke", lambda host, app: Order(reasons=[])),
    ("app", "superseded", lambda host, app: Order(reasons=[])),
    ("app", "replaced", lambda host, app: Order(reasons=[])),
    ("app", "recheck", lambda host, app: Order(reasons=[])),
    ("host", "revoke", lambda host, app: Order(reasons=[])),
    ("host", "superseded", lambda host, app: Order(reasons=[])),
    ("host", "replaced", lambda host, app: Order(reasons=[])),
    ("host", "recheck", lambda host, app: Order(reasons=[])),
    (
        "host",
        "deliver",
        lambda host, app: Deliver(
            app="a1", app_session=app, enclave_key=bytes(1216), suite="mlkem768-x25519", t2=bytes(64), volume=0
        ),
    ),
]


@threat(rows.WORK_FORGED, rows.CREDENTIAL_MANAGER)
@pytest.mark.parametrize(("role", "what", "forged"), FORGED, ids=[f"{r}-{w}" for r, w, _ in FORGED])
async def test_work_that_no_manager_gave_is_not_done(
    site: Deployment, role: str, what: str, forged: Callable[[str, str], Any]
) -> None:
    await site.admitted()
    (host,), (app,) = await site.records(HostRecord), await site.records(AppRecord)
    session = host.session if role == "host" else app.session
    since = len(site.events)
    site.wire.inject(subjects.work(role, session, what), pack(forged(host.session, app.session)))
    await site.dropped(1)
    assert [e.what for e in site.events[since:]] == ["dropped"]
    await stands(site)


@threat(rows.WORK_FORGED)
async def test_work_of_one_session_is_no_work_of_another(site: Deployment) -> None:
    """A sealed order moved to another subject does not open there."""
    await site.admitted()
    (host,) = await site.records(HostRecord)
    (deliver,) = site.wire.said(f"{subjects.WORK}.host.*.deliver")
    site.wire.inject(subjects.work("host", host.session, "revoke"), deliver)
    await site.dropped(1)
    assert site.dropped_codes() == ["record.open"]
    await stands(site)


@threat(rows.ADMISSION_FORGED, rows.GATEWAY_WRITES)
async def test_a_report_that_no_gateway_signed_admits_nobody(site: Deployment) -> None:
    held = site.wire.hold(subjects.inbound("gateway", "gateway-1", "report"))
    path = asyncio.create_task(site.admitted())
    subject, data = await held
    for count, wrong in enumerate(flips(data), 1):
        site.wire.inject(subject, wrong)
        await site.dropped(count)
    assert (await site.records(AppRecord))[0].state is State.CERTIFIED
    site.wire.inject(subject, data)
    await path
    await stands(site)


async def test_two_workers_share_every_message(world: World, tmp_path: Path) -> None:
    async with deployed(world, tmp_path, workers=2) as site:
        async with site.passing():
            await whole_path(site)
        await stands(site)
        assert all(worker.counts["handled"] for worker in site.workers)


@threat(rows.HOST_RESTARTED)
async def test_with_two_workers_a_restarted_host_supersedes_and_stays(world: World, tmp_path: Path) -> None:
    """The worker that hears `superseded` did not store the old session: what it repeats must not turn time back."""
    for attempt in range(4):
        async with deployed(world, tmp_path / str(attempt), workers=3) as site:
            await site.enrol_host()
            first = await site.host()
            await site.until("host", "h1", "trusted")
            await first.stop()
            await site.advance(2)
            (old,) = await site.records(HostRecord)
            since = len(site.events)
            await site.host()
            await site.until("host", "h1", "trusted", since=since)
            await site.quiet()
            states = {record.session: record.state for record in await site.records(HostRecord)}
            assert states.pop(old.session) is State.SUPERSEDED
            assert list(states.values()) == [State.TRUSTED]


@threat(rows.MESSAGE_REORDERED)
async def test_an_old_hello_repeated_does_not_replace_a_newer_session(site: Deployment) -> None:
    old, evidence, since = await site.second_session("hello", held="evidence")
    site.wire.inject(subjects.inbound("host", "h1", "hello"), old)
    await site.quiet()
    site.wire.inject(*evidence)
    await site.until("host", "h1", "trusted", since=since)
    await site.quiet()
    assert [r.state for r in await site.records(HostRecord)].count(State.TRUSTED) == 1
    assert (await site.records(HostRecord))[-1].state is State.TRUSTED


async def test_a_transient_lack_of_collateral_does_not_hold_up_the_channel(
    site: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that cannot be judged now is heard; the next question is answered and judged."""
    await site.admitted()
    unavailable = Refusal.because("collateral.unavailable", "x", expected="x", found="x", action="x")
    with monkeypatch.context() as patched:
        patched.setattr(Verifier, "host_recheck", AsyncMock(side_effect=unavailable))
        await site.order(RecheckNow(kind="host", id="h1"))
        unjudged = await site.until("host", "h1", "evidence-rejected")
    assert unjudged.data["step"] == "recheck"
    since = len(site.events)
    await site.advance(site.timing.evidence_window_s)
    await site.until("host", "h1", "rechecked", since=since)
    await stands(site)


@threat(rows.MESSAGE_REORDERED)
async def test_a_lost_answer_is_said_again(site: Deployment) -> None:
    """The bus loses a channel message; with the next one the agent sees that it was not heard, and repeats it."""
    await site.enrol_host()
    await site.host(retry_s=0.01)
    await site.until("host", "h1", "trusted")
    lost = site.wire.hold(subjects.inbound("host", "h1", "recheck_evidence"))
    await site.order(RecheckNow(kind="host", id="h1"))
    await lost
    await asyncio.sleep(0.02)
    await site.advance(site.timing.evidence_window_s)
    async with site.passing():
        await site.until("host", "h1", "rechecked")
    await site.quiet()
    (record,) = await site.records(HostRecord)
    assert record.state is State.TRUSTED


async def test_an_agent_on_a_busy_bus_keeps_its_session_and_its_order(site: Deployment) -> None:
    """More keys to deliver at once than its subject holds: the answers wait, and none gets lost."""
    await site.enrol_host()
    await site.host(retry_s=0.01)
    await site.until("host", "h1", "trusted")
    names = [f"a{number}" for number in range(12)]
    for name in names:
        await site.enrol_app(name)
    await asyncio.gather(*(site.app(name) for name in names))
    async with site.passing():
        for name in names:
            await site.until("app", name, "admitted")
    assert site.what("host", "h1").count("challenged") == 1
