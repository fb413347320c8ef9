"""Who may say and hear what: every role, every subject of the bus, publish and subscribe, tried on the real server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import pytest
from nats.aio.client import Client

from attestgate.bus import layout, subjects
from attestgate.bus.api import BusError, Message
from attestgate.bus.auth.credentials import issue
from attestgate.bus.auth.permissions import (
    API,
    EDGE_API,
    GATEWAY,
    MANAGER,
    NAME,
    ROLES,
    VIEWER,
    BusRole,
    exports,
    imports,
)
from attestgate.bus.client.nats import connect
from attestgate.bus.client.setup import ensure
from attestgate.bus.layout import HEADERS
from attestgate.bus.server.embedded import EmbeddedServer
from attestgate.schemas.enrolment import Action
from tests.support.bus.everything import name_of
from tests.support.bus.fixtures import Join
from tests.support.threats import rows, threat

pytestmark = pytest.mark.stack

ME, OTHER = "me", "other"
"""Names; of an application twice, with a dot between."""
SESSION = "ab" * 16


def every_subject() -> list[str]:
    """All that any role may publish or hear, for `me` and for another, and what nobody should reach."""
    patterns = {
        *(subject for role in ROLES.values() for subject in (*role.may_publish(), *role.may_subscribe())),
        *(f"{role.inbox}.>" for role in ROLES.values()),
        *(f"{subjects.IN}.{role}.{NAME}.{step}" for role, steps in subjects.STEPS.items() for step in steps),
        *(f"{prefix}.{verb}.{stream}" for prefix in (API, EDGE_API) for stream in stored() for verb in STREAM_VERBS),
        *(f"{API}.CONSUMER.CREATE.{stream}.mine" for stream in stored()),
        *(f"{API}.CONSUMER.DURABLE.CREATE.{stream}.mine" for stream in stored()),
        *(f"$KV.{bucket}.key" for bucket in layout.BUCKETS),
        *(stream_subject for stream in layout.STREAMS.values() for stream_subject in stream.subjects),
        f"{API}.INFO",
        f"{API}.STREAM.NAMES",
        *(f"{API}.CONSUMER.DELETE.{consumer.stream}.{consumer.name}" for consumer in layout.CONSUMERS.values()),
        f"{subjects.IN}.host.{NAME}.hello.deeper",
        f"{subjects.IN}.host.{NAME}.unknown",
        f"{subjects.DUE}.{SESSION}",
        "$SYS.REQ.SERVER.PING",
        "$SYS.REQ.CLAIMS.UPDATE",
        "_INBOX.other",
        "anything",
    }
    names = [name_of(role, name) for role in ("host", "app") for name in (ME, OTHER)]
    return sorted({p.replace(NAME, name) for p in patterns for name in names})


STREAM_VERBS = ("STREAM.CREATE", "STREAM.UPDATE", "STREAM.INFO", "STREAM.DELETE", "STREAM.PURGE", "STREAM.MSG.DELETE")


def stored() -> list[str]:
    return [*layout.STREAMS, *(bucket.stream for bucket in layout.BUCKETS.values())]


def concrete(subject: str) -> str:
    """One subject that a pattern stands for."""
    return ".".join("x" if token in ("*", ">") else token for token in subject.split("."))


def allowed(role: BusRole, subject: str) -> bool:
    """Whether the table lets a role's credential publish there."""
    patterns = (pattern.replace(NAME, name_of(role.name, ME)) for pattern in role.may_publish())
    return any(subjects.matches(pattern, subject) for pattern in patterns)


@dataclass
class Raw:
    """A plain client, and what the server refused it."""

    client: Client
    refused: list[str] = field(default_factory=list)

    async def problem(self, error: Exception) -> None:
        text = str(error)
        if "permissions violation" in text:
            self.refused.append(text.split('"')[1])

    async def settle(self) -> None:
        """Return once the server has answered all that was sent (see `NatsBus.flush` for why twice)."""
        await self.client.flush()
        await self.client.flush()


async def nothing() -> None:
    pass


async def raw(
    server: EmbeddedServer, keys: Path, path: Path, role: str, closed: Callable[[], Awaitable[None]] = nothing
) -> Raw:
    me = name_of(role, ME)
    issue(keys, role, me, path)
    result = Raw(Client())
    await result.client.connect(
        server.url,
        user_credentials=str(path),
        error_cb=result.problem,
        closed_cb=closed,
        allow_reconnect=False,
        inbox_prefix=f"_INBOX.{role}.{me}",
    )
    return result


@threat(rows.CREDENTIAL_OTHERS)
@pytest.mark.parametrize("role", ROLES.values(), ids=list(ROLES))
async def test_publish_is_allowed_by_the_table_and_refused_by_the_server_otherwise(
    role: BusRole, server: EmbeddedServer, keys: Path, tmp_path: Path
) -> None:
    tried = sorted({concrete(subject) for subject in every_subject()})
    connection = await raw(server, keys, tmp_path / "creds", role.name)
    for subject in tried:
        await connection.client.publish(subject, b"")
    await connection.settle()
    await connection.client.close()
    expected = [subject for subject in tried if not allowed(role, subject)]
    assert sorted(connection.refused) == sorted(subject.lower() for subject in expected)


@threat(rows.CREDENTIAL_OTHERS)
@pytest.mark.parametrize("role", ROLES.values(), ids=list(ROLES))
async def test_subscribe_is_allowed_by_the_table_and_refused_by_the_server_otherwise(
    role: BusRole, server: EmbeddedServer, keys: Path, tmp_path: Path
) -> None:
    tried = sorted({">", "*", "attest.>", "$KV.>", "_INBOX.>", f"_INBOX.{role.name}.*", *every_subject()})
    own = [subject.replace(NAME, name_of(role.name, ME)) for subject in role.may_subscribe()]
    connection = await raw(server, keys, tmp_path / "creds", role.name)
    for subject in tried:
        subscription = await connection.client.subscribe(subject)
        await connection.settle()
        await subscription.unsubscribe()
    await connection.settle()
    await connection.client.close()
    expected = [subject for subject in tried if not any(within(subject, pattern) for pattern in own)]
    assert sorted(connection.refused) == sorted(subject.lower() for subject in expected)


def within(subject: str, pattern: str) -> bool:
    """Whether all that a (possibly wild) subject stands for lies within a pattern."""
    if not subjects.matches(pattern, subject):
        return False
    return not (subject.endswith(">") and not pattern.endswith(">"))


NEVER = {
    "host": [
        "attest.v1.in.host.other.hello",
        "attest.v1.in.app.me.me.hello",
        "attest.v1.op.me.revoke",
        "$KV.sessions.x",
    ],
    "app": ["attest.v1.in.app.me.other.hello", "attest.v1.in.app.other.me.hello", "attest.v1.out.app.me.me.ready"],
    "gateway": ["$KV.admissions.x", "attest.v1.in.gateway.other.report", "attest.v1.in.host.me.hello"],
    "operator": ["attest.v1.op.other.revoke", "$KV.enrolment.x", "attest.v1.events.host.me.x"],
    "viewer": ["attest.v1.op.me.revoke", "$KV.summaries.x", "attest.v1.in.host.me.hello"],
    MANAGER: ["attest.v1.in.host.me.hello", "attest.v1.op.me.revoke", "attest.v1.due.x"],
}


@pytest.mark.parametrize("role", ROLES.values(), ids=list(ROLES))
def test_the_table_itself_gives_nobody_what_is_not_theirs(role: BusRole) -> None:
    for subject in NEVER[role.name]:
        assert not allowed(role, subject)
    for call in role.calls if role.name != MANAGER else ():
        assert call.split(".")[:2] not in (["CONSUMER", "CREATE"], ["STREAM", "CREATE"], ["STREAM", "UPDATE"])
    for call in role.calls:
        retires = role.name == MANAGER and call.removeprefix("STREAM.DELETE.") in layout.RETIRED
        assert retires or not any(word in call for word in ("DELETE", "PURGE", "SNAPSHOT", "RESTORE")), call


@threat(rows.ROOM_FILLED)
@pytest.mark.parametrize("role", [role for role in ROLES.values() if role.name not in (MANAGER, VIEWER)], ids=str)
def test_no_credential_outside_can_name_a_fresh_subject_at_will(role: BusRole) -> None:
    """Streams limit the messages on a subject: a wildcard would be room without end. A viewer's are copies.

    A gateway names a key that it reads; no stream takes that.
    """
    wild = [subject for subject in role.may_publish() if "*" in subject or ">" in subject]
    reads = f"{role.api}.DIRECT.GET.{layout.ADMISSIONS.stream}.>"
    assert wild == ([reads] if role.name == GATEWAY else [])
    assert all(subject.startswith("attest.") for stream in layout.STREAMS.values() for subject in stream.subjects)


@pytest.mark.parametrize("stream", layout.INBOUND, ids=lambda stream: str(stream.name))
def test_what_a_stream_holds_has_one_consumer_and_the_stream_a_limit_for_each_sender(stream: layout.Stream) -> None:
    taken = [s for consumer in layout.OUTSIDE if consumer.stream == stream.name for s in consumer.filter_subjects]
    assert sorted(taken) == sorted(stream.subjects)
    assert stream.discard == "new" and 0 < stream.max_msgs_per_subject <= 4
    assert stream.max_msg_size > 0 and stream.max_bytes > 0


def test_the_commands_that_are_enumerated_are_those_there_are() -> None:
    models = get_args(get_args(Action)[0])
    assert {model.model_fields["do"].default for model in models} == {*subjects.COMMANDS, *subjects.POLICY_COMMANDS}


async def test_a_stream_of_an_earlier_version_gives_way(server: EmbeddedServer, keys: Path, tmp_path: Path) -> None:
    """Its subjects would overlap with those of the streams that took its place."""
    issue(keys, MANAGER, "m", tmp_path / "m.creds")
    async with await connect([server.url], tmp_path / "m.creds") as manager:
        manager_may = (f"{API}.STREAM.CREATE.{name}" for name in layout.RETIRED)
        assert not any(allowed(ROLES[MANAGER], call) for call in manager_may), "nobody makes one again"
        await ensure(manager)
        await ensure(manager)


@threat(rows.VIEWER_READS)
def test_no_account_but_the_managers_sees_sessions_work_or_due() -> None:
    hidden = ("sessions", "collateral", "operators", subjects.WORK, subjects.SCHEDULE)
    for subject in exports(MANAGER):
        assert not any(word in subject for word in hidden), subject
    for role in ROLES.values():
        for item in imports(role):
            assert exports(item.role)[item.subject] == item.kind


def test_no_account_can_have_the_manager_make_or_change_a_consumer_or_a_stream() -> None:
    """Whoever makes a consumer chooses where it delivers, and no permission covers that."""
    verbs = {subject.removeprefix(f"{API}.").rsplit(".", 1)[0] for subject in exports(MANAGER) if API in subject}
    making = [verb for verb in verbs if any(word in verb for word in ("CREATE", "UPDATE", "DELETE", "PURGE"))]
    assert not making
    assert {verb for verb in verbs if "RESET" in verb} == {f"CONSUMER.RESET.{stream}" for stream in layout.COPIED}


def test_managers_alone_write_the_decision_log_and_no_agent_reads_it() -> None:
    written, read = (subjects.LOG, layout.TREE.subject("")), (f"GET.{layout.LOG.name}", f"GET.{layout.TREE.stream}")
    for role in ROLES.values():
        assert any(s.startswith(written) for s in role.may_publish()) is (role.name == MANAGER), role.name
        reads = [call for call in role.calls if call.endswith(read)]
        assert bool(reads) is (role.name in (MANAGER, VIEWER, "operator")), role.name


async def test_viewers_and_operators_read_the_decision_log(join: Join) -> None:
    manager = await join(MANAGER, "m")
    await manager.publish(subjects.decision("host", "h1", SESSION), b"signed")
    await manager.bucket(layout.TREE.name).put("head", b"head")
    for role in (VIEWER, "operator"):
        reader = await join(role, "r")
        page, more = await reader.page(layout.LOG.name, 0)
        head = await reader.bucket(layout.TREE.name).get("head")
        assert ([stored.data for stored in page], more) == ([b"signed"], False)
        assert head is not None and head.value == b"head"


@threat(rows.VIEWER_CHANGES)
def test_a_viewer_makes_consumers_of_copies_only() -> None:
    for role in ROLES.values():
        makes = [subject for subject in role.copies if "CREATE" in subject or "DELETE" in subject]
        assert bool(makes) is (role.name == VIEWER)
        for subject in makes:
            assert subject.startswith(f"{API}.CONSUMER.") and subject.split(".")[4] in layout.COPIED, subject


@threat(rows.CREDENTIAL_OTHERS)
async def test_the_same_name_in_another_role_shares_nothing(join: Join) -> None:
    """An application called like a host, a manager or an operator hears and reaches nothing of theirs."""
    manager, host, app = await join(MANAGER, "same"), await join("host", "same"), await join("app", "same.same")
    heard: asyncio.Queue[Message] = asyncio.Queue()
    await host.listen(subjects.outbound_all("host", "same"), heard.put)
    await host.flush()
    for refused in (
        "_INBOX.manager.same.>",
        "_INBOX.host.same.>",
        "_INBOX.app.same.>",
        subjects.outbound_all("host", "same"),
    ):
        await app.listen(refused, heard.put)
    await app.flush()
    await manager.send(subjects.outbound("host", "same", "challenge"), b"for the host")
    async with asyncio.timeout(5):
        assert (await heard.get()).data == b"for the host"
    await app.flush()
    assert heard.empty()


async def test_each_role_can_do_its_work(join: Join) -> None:
    manager, gateway = await join(MANAGER, "m"), await join("gateway", "g1")
    operator, viewer = await join("operator", "alice"), await join("viewer", "v")
    heard: asyncio.Queue[Message] = asyncio.Queue()
    for watcher in (operator, viewer):
        await watcher.listen(f"{subjects.EVENTS}.>", heard.put)
        await watcher.flush()
    await manager.publish(subjects.event("host", "h1", "trusted"), b"{}")
    async with asyncio.timeout(5):
        assert [(await heard.get()).data for _ in range(2)] == [b"{}", b"{}"]
    await gateway.publish(subjects.inbound("gateway", "g1", "report"), b"applied")
    await operator.publish(subjects.operator("alice", "revoke"), b"command")
    await manager.bucket("summaries").put("s", b"1")
    await manager.bucket("admissions").put("a", b"2")
    await manager.bucket("enrolment").put("e", b"3")
    await manager.bucket("policies").put("p", b"4")
    for reader, bucket, value in (
        (operator, "summaries", b"1"),
        (operator, "enrolment", b"3"),
        (operator, "policies", b"4"),
        (gateway, "admissions", b"2"),
    ):
        key = bucket[0]
        entry = await reader.bucket(bucket).get(key)
        assert entry is not None and entry.value == value
        assert await reader.bucket(bucket).keys() == [key]
    for bucket, value in (("summaries", b"1"), ("admissions", b"2")):  # a copy follows a moment later
        async with asyncio.timeout(15):
            async for entry in viewer.bucket(bucket).watch():
                if entry is not None:
                    break
        assert entry is not None and (entry.key, entry.value) == (bucket[0], value)
    for stream in (layout.GATEWAYS, layout.OPERATOR):
        assert (await viewer.jetstream.stream_info(stream.name)).state.messages == 1


@threat(rows.GATEWAY_EVENTS)
async def test_what_a_gateway_tells_is_heard_live_once_and_by_watchers_only(join: Join) -> None:
    """By way of its own account: the manager's stream exports do not pass on what came in by a service."""
    gateway, other = await join("gateway", "g1"), await join("gateway", "g2")
    heard: dict[str, asyncio.Queue[Message]] = {}
    for role in ("operator", VIEWER, MANAGER, "host", "app"):
        heard[role], watcher = asyncio.Queue(), await join(role, name_of(role, "w"))
        for subject in (
            f"{subjects.EVENTS}.>",
            f"{subjects.EVENTS}.gateway.g1.*",
            subjects.REPORTS,
            "attest.v1.in.gateway.>",
        ):
            await watcher.listen(subject, heard[role].put)
        await watcher.flush()
    heard["gateway"] = asyncio.Queue()
    await other.listen(f"{subjects.EVENTS}.>", heard["gateway"].put)
    await other.flush()
    await gateway.publish(subjects.inbound("gateway", "g1", "report"), b"a report")
    async with asyncio.timeout(5):
        assert (await heard["operator"].get()).data == b"a report", "nobody else hears it"
    await gateway.publish(subjects.event("gateway", "g1", "admitted"), b"{}")
    await gateway.send(subjects.event("gateway", "g2", "admitted"), b"another's name is refused")
    async with asyncio.timeout(5):
        # Two subscriptions of theirs fit: one copy for each.
        for role in ("operator", VIEWER):
            assert [(await heard[role].get()).data for _ in range(2)] == [b"{}", b"{}"]
    await gateway.flush()
    await other.flush()
    assert all(queue.empty() for queue in heard.values())


@threat(rows.GATEWAY_WRITES)
async def test_a_bucket_that_is_not_ones_own_to_write_is_an_error(join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attestgate.bus.client.connection.PATIENCE_S", 0.1)
    monkeypatch.setattr("attestgate.bus.client.connection.ANSWER_S", 0.2)
    gateway = await join("gateway", "g1")
    with pytest.raises(BusError, match="no answer"):
        await gateway.bucket("admissions").put("a", b"forged")


@threat(rows.ROOM_FILLED)
@pytest.mark.parametrize("what", ["payload", "subscriptions"])
async def test_an_agents_payload_and_subscriptions_are_bounded(
    what: str, server: EmbeddedServer, keys: Path, tmp_path: Path
) -> None:
    """At the bound it goes on; one over, and the connection ends."""
    closed = asyncio.Event()

    async def ended() -> None:
        closed.set()

    connection, role = await raw(server, keys, tmp_path / "creds", "app", ended), ROLES["app"]
    client = connection.client
    if what == "payload":
        await client.publish("attest.v1.in.app.me.me.hello", bytes(role.max_payload))
        await connection.settle()
        assert not closed.is_set()
        await client.publish("attest.v1.in.app.me.me.hello", bytes(role.max_payload + HEADERS + 1))
    else:
        for number in range(role.max_subscriptions):
            await client.subscribe(f"_INBOX.app.me.me.{number}")
        await connection.settle()
        assert not closed.is_set()
        await client.subscribe("_INBOX.app.me.me.more")
    async with asyncio.timeout(10):
        await closed.wait()


async def test_a_message_too_large_is_not_sent(join: Join) -> None:
    app = await join("app", "h1.a1")
    with pytest.raises(BusError, match="may send"):
        await app.publish("attest.v1.in.app.h1.a1.hello", bytes(ROLES["app"].max_payload + 1))
    with pytest.raises(BusError, match="may send"):
        await app.send("attest.v1.in.app.h1.a1.hello", bytes(ROLES["app"].max_payload + 1))
    await app.publish("attest.v1.in.app.h1.a1.hello", bytes(ROLES["app"].max_payload), headers={"h": "x" * 1000})
