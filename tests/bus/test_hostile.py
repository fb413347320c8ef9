"""What a stolen credential can do with headers and reply subjects: nothing outside its own subjects.

Subject permissions cover neither. Every one that the server gives a meaning to is tried, with every role that can
publish, on the real server; then everything that is not the thief's own must be as it was.
"""

from __future__ import annotations

import asyncio
import json
from base64 import urlsafe_b64decode
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import nats.errors
import pytest

from attestgate.bus import layout, subjects
from attestgate.bus.api import Conflict, Message
from attestgate.bus.auth.permissions import MANAGER, NAME, ROLES
from attestgate.bus.client.nats import NatsBus
from tests.support.bus.everything import OTHER, SESSION, TARGETS, THIEF, furnish, look, name_of
from tests.support.bus.fixtures import Join
from tests.support.threats import rows, threat

pytestmark = pytest.mark.stack


def header_attacks() -> Iterator[dict[str, str]]:
    """Every header that reaches beyond the message that carries it (NATS ADR-4, 8, 43, 50, 51; server 2.15)."""
    yield {"Nats-Rollup": "all"}
    yield {"Nats-Rollup": "sub"}
    yield {"KV-Operation": "PURGE", "Nats-Rollup": "sub"}
    yield {"Nats-TTL": "1s"}
    yield {"Nats-TTL": "never"}
    yield {"Nats-Scheduler": subjects.deadline(SESSION), "Nats-Schedule-Next": "purge"}
    yield {"Nats-Batch-Id": "b", "Nats-Batch-Sequence": "1", "Nats-Batch-Commit": "1"}
    yield {"Nats-Incr": "+1"}
    yield {"Nats-Marker-Reason": "Purge"}
    yield {"Nats-Expected-Stream": "KV_sessions"}
    yield {"Nats-Msg-Id": "the-managers-next-id"}
    for target in TARGETS:
        yield {"Nats-Schedule": "@at 2020-01-01T00:00:00Z", "Nats-Schedule-Target": target}
        yield {"Nats-Schedule": "@every 1s", "Nats-Schedule-Target": target, "Nats-Schedule-Source": target}
        yield {"Nats-Trace-Dest": target}
        yield {"Nats-Trace-Dest": target, "Nats-Trace-Only": "true"}
        yield {"Nats-Trace-Dest": target, "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
        yield {"Nats-Subject": target, "Nats-Stream": "KV_sessions", "Nats-Sequence": "1"}


async def settle(manager: NatsBus, thief: NatsBus, role: str) -> None:
    """Return once the streams have stored and answered all that came before: each does both in order."""
    await thief.flush()
    for bucket in layout.BUCKETS:
        await manager.bucket(bucket).put(f"settle.{THIEF}.x", b"")
    await manager.publish(subjects.work("test", THIEF, "x"), b"")
    await manager.publish(subjects.event("host", THIEF, "trusted"), b"")
    for subject in places(role):
        if subject.startswith((subjects.IN, subjects.OPERATOR, subjects.EVENTS)):
            await thief.publish(subject, b"")
    for bucket in layout.BUCKETS:
        await manager.bucket(bucket).put(f"settle.{THIEF}.x", b"")
    await manager.publish(subjects.event("host", THIEF, "trusted"), b"")


def places(role: str) -> list[str]:
    """Where a role's credential may publish, with the thief's name."""
    return [s.replace(NAME, name_of(role, THIEF)) for s in ROLES[role].may_publish()]


THIEVES = [role for role in ROLES if role != MANAGER]


@threat(rows.HEADERS_REACH)
@pytest.mark.parametrize("role", THIEVES)
async def test_no_header_reaches_beyond_its_own_message(role: str, join: Join) -> None:
    manager, thief = await join(MANAGER, "m"), await join(role, name_of(role, THIEF))
    await furnish(manager, join)
    before = await look(manager, f".{THIEF}.")
    for subject in places(role):
        for headers in header_attacks():
            await thief.client.publish(subject, b"{}", headers=dict(headers))
            await thief.client.publish(subject, b"{}", reply=thief.client.new_inbox(), headers=dict(headers))
    await settle(manager, thief, role)
    assert await look(manager, f".{THIEF}.") == before


@threat(rows.REPLY_ASTRAY)
@pytest.mark.parametrize("role", THIEVES)
async def test_no_reply_subject_reaches_beyond_the_roles_own_account(role: str, join: Join) -> None:
    """The server answers to any reply subject that it is given; it must not do so in the manager's account."""
    manager, thief = await join(MANAGER, "m"), await join(role, name_of(role, THIEF))
    await furnish(manager, join)
    before = await look(manager, f".{THIEF}.")
    for subject in places(role):
        for target in TARGETS:
            for body in (b"{}", b"", page_request("admissions"), b'{"last_by_subj":"$KV.admissions.lease"}'):
                await thief.client.publish(subject, body, reply=target)
    await settle(manager, thief, role)
    assert await look(manager, f".{THIEF}.") == before


async def test_within_one_account_the_same_trick_would_work(join: Join) -> None:
    """Why every role has an account of its own; and that these tests would notice."""
    manager = await join(MANAGER, "m")
    await furnish(manager, join)
    before = await look(manager, f".{THIEF}.")
    await manager.client.publish(subjects.event("host", "h", "rechecked"), b"{}", reply="$KV.sessions.record")
    await manager.flush()
    after = await look(manager, f".{THIEF}.")
    assert before.values["sessions"] == b"honest"
    assert b"ATTEST_EVENTS" in (after.values["sessions"] or b"")


FORGED = [
    *({"Status": status} for status in ("100", "204", "404", "408", "409", "500", "503")),
    {"Status": "204", "Nats-Num-Pending": "1", "Nats-Last-Sequence": "1"},
    {"Nats-Sequence": "99999999"},
    {"Nats-Sequence": "none"},
    {"Nats-Subject": "attest.v1.events.host.victim.untrusted"},
    {"Nats-Time-Stamp": "never"},
    {"Nats-Num-Pending": "0"},
]
"""What the server says of an answer to a reader, in the words of a sender."""


@threat(rows.HEADERS_ANSWER)
@pytest.mark.parametrize("headers", FORGED, ids=str)
async def test_no_header_ends_or_misleads_who_reads_events(headers: dict[str, str], join: Join) -> None:
    gateway, operator = await join("gateway", THIEF), await join("operator", "o")
    subject = subjects.event("gateway", THIEF, "admitted")
    for body, sent in ((b"before", {}), (b"forged", headers), (b"after", {})):
        await gateway.publish(subject, body, headers=sent)
    assert [(m.subject, m.data) async for m in operator.history(f"{subjects.EVENTS}.>")] == [
        (subject, body) for body in (b"before", b"forged", b"after")
    ]
    page, more = await operator.page(layout.EVENTS.name, 0)
    assert ([stored.sequence for stored in page], more) == ([1, 2, 3], False)


@threat(rows.HEADERS_ANSWER)
@pytest.mark.parametrize("headers", FORGED, ids=str)
async def test_no_header_keeps_a_message_from_its_worker(headers: dict[str, str], join: Join) -> None:
    manager, host = await join(MANAGER, "m"), await join("host", THIEF)
    for body, sent in ((b"forged", headers), (b"after", {})):
        await host.publish(subjects.inbound("host", THIEF, "hello"), body, headers=sent)
    taken = []
    async with aclosing(manager.consume("host-hellos")) as deliveries:
        async for delivery in deliveries:
            await delivery.done()
            taken.append((delivery.data, delivery.attempt))
            if len(taken) == 2:
                break
    assert taken == [(b"forged", 1), (b"after", 1)]


def page_request(bucket: str) -> bytes:
    return json.dumps({"seq": 1, "next_by_subj": f"$KV.{bucket}.>", "batch": 10}).encode()


@threat(rows.REPLY_ASTRAY)
@pytest.mark.parametrize("role", ["host", "app"])
async def test_what_reaches_another_agent_of_the_role_is_never_the_thiefs_words(role: str, join: Join) -> None:
    """One account holds a role's agents, so an acknowledgement can be sent astray to a sibling; nothing else can.

    It is neither signed nor sealed: the sibling drops it like any garbage.
    """
    thief, sibling = await join(role, name_of(role, THIEF)), await join(role, name_of(role, OTHER))
    own, others = name_of(role, THIEF), name_of(role, OTHER)
    heard: asyncio.Queue[Message] = asyncio.Queue()
    await sibling.listen(subjects.outbound_all(role, others), heard.put)
    await sibling.listen(f"_INBOX.{role}.{others}.>", heard.put)
    await sibling.flush()
    subject = subjects.inbound(role, own, "hello")
    for target in (subjects.outbound(role, others, "challenge"), f"_INBOX.{role}.{others}.x"):
        await thief.client.publish(subject, b"the thief's words", reply=target)
        await thief.client.publish(subject, b"the thief's words", headers={"Nats-Trace-Dest": target})
    await thief.flush()
    await sibling.publish(subjects.inbound(role, others, "hello"), b"x")
    await sibling.flush()
    while not heard.empty():
        message = heard.get_nowait()
        assert b"the thief's words" not in message.data
        json.loads(message.data)


@threat(rows.HEADERS_REACH)
async def test_an_id_used_elsewhere_suppresses_nothing_of_the_managers(join: Join) -> None:
    """Even a known id: deduplication is by stream, and the manager's streams are its own."""
    manager, thief = await join(MANAGER, "m"), await join("host", THIEF)
    await thief.publish(subjects.inbound("host", THIEF, "hello"), b"x", message_id="the-managers-next-id")
    await manager.publish(subjects.work("host", SESSION, "x"), b"work", message_id="the-managers-next-id")
    await manager.publish(subjects.event("host", "h", "rechecked"), b"{}", message_id="the-managers-next-id")
    seen = await look(manager, f".{THIEF}.")
    assert seen.counts[layout.WORK.name] == {subjects.work("host", SESSION, "x"): 1}
    assert seen.counts[layout.EVENTS.name] == {subjects.event("host", "h", "rechecked"): 1}


async def test_every_id_that_the_bus_makes_is_new_and_long(join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    host = await join("host", "h1")
    sent: list[str] = []
    publish = host.jetstream.publish

    async def spy(*arguments: Any, **more: Any) -> Any:
        sent.append(more["headers"]["Nats-Msg-Id"])
        return await publish(*arguments, **more)

    monkeypatch.setattr(host.jetstream, "publish", spy)
    for _ in range(3):
        await host.publish(subjects.inbound("host", "h1", "hello"), b"same")
    assert len(set(sent)) == 3 and all(len(urlsafe_b64decode(f"{id}==")) == 16 for id in sent)


async def test_an_unanswered_message_is_sent_again_with_its_id_and_stored_once(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer of everything is lost; a compare-and-set, too, has succeeded, and says so."""
    manager = await join(MANAGER, "m")
    publish, tried = manager.jetstream.publish, Counter[str]()

    async def lossy(*arguments: Any, **more: Any) -> Any:
        tried[more["headers"]["Nats-Msg-Id"]] += 1
        answer = await publish(*arguments, **more)
        if tried[more["headers"]["Nats-Msg-Id"]] == 1:
            raise nats.errors.TimeoutError
        return answer

    monkeypatch.setattr(manager.jetstream, "publish", lossy)
    await manager.publish(subjects.work("host", SESSION, "x"), b"work")
    revision = await manager.bucket("sessions").create("k", b"1")
    await manager.bucket("sessions").update("k", b"2", revision)
    with pytest.raises(Conflict):
        await manager.bucket("sessions").update("k", b"3", revision)
    assert sorted(tried.values()) == [1, 2, 2, 2]
    entry = await manager.bucket("sessions").get("k")
    assert entry is not None and (entry.value, entry.revision) == (b"2", revision + 1)
    seen = await look(manager, "nobody")
    assert seen.counts[layout.WORK.name] == {subjects.work("host", SESSION, "x"): 1}
