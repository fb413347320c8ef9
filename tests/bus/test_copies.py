"""What viewers see: copies in an account of their own, that follow the originals and reach nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from base64 import b64decode
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from nats.aio.msg import Msg

from attestgate.bus import layout, subjects
from attestgate.bus.auth.permissions import API, EDGE_API, MANAGER, VIEWER
from attestgate.bus.client.nats import NatsBus
from attestgate.bus.client.setup import ensure
from attestgate.bus.server.embedded import EmbeddedServer
from tests.support.bus.everything import TARGETS, furnish, look
from tests.support.bus.fixtures import Join
from tests.support.threats import rows, threat

pytestmark = pytest.mark.stack

PATIENCE_S = 15


@pytest.fixture
async def viewer(join: Join) -> NatsBus:
    return await join(VIEWER, "v")


async def newest(viewer: NatsBus, stream: str, subject: str) -> bytes | None:
    """The newest message on a subject of a copy."""
    query = json.dumps({"last_by_subj": subject}).encode()
    answer = json.loads((await viewer.client.request(f"{API}.STREAM.MSG.GET.{stream}", query, timeout=5)).data)
    return b64decode(answer["message"].get("data", "")) if "message" in answer else None


async def until(found: Callable[[], Awaitable[object]], wanted: object) -> None:
    """Look until it is as wanted: a copy follows within moments and tells nobody."""
    async with asyncio.timeout(PATIENCE_S):
        while await found() != wanted:
            await asyncio.sleep(0.02)


async def make_consumer(viewer: NatsBus, stream: str, name: str, config: dict[str, Any]) -> dict[str, Any]:
    body = {"stream_name": stream, "config": {"name": name, **config}}
    answer = await viewer.client.request(f"{API}.CONSUMER.CREATE.{stream}.{name}", json.dumps(body).encode(), timeout=5)
    made: dict[str, Any] = json.loads(answer.data)
    return made


async def test_a_copy_holds_what_its_original_does(join: Join, viewer: NatsBus) -> None:
    manager = await join(MANAGER, "m")
    event = subjects.event("host", "h1", "trusted")
    await manager.publish(event, b"{}", headers={"ce-id": "1"})
    for bucket in (layout.SUMMARIES, layout.ADMISSIONS):
        await manager.bucket(bucket.name).put("k", b"1")
        await manager.bucket(bucket.name).put("k", b"2")
        await until(partial(newest, viewer, bucket.stream, bucket.subject("k")), b"2")
        await manager.bucket(bucket.name).delete("k")
        await until(partial(newest, viewer, bucket.stream, bucket.subject("k")), b"")
    await until(lambda: newest(viewer, layout.EVENTS.name, event), b"{}")


async def test_copies_keep_up_over_a_kill_of_the_server(join: Join, viewer: NatsBus, server: EmbeddedServer) -> None:
    manager = await join(MANAGER, "m")
    subject = layout.SUMMARIES.subject("k")
    await manager.bucket("summaries").put("k", b"before")
    await until(lambda: newest(viewer, layout.SUMMARIES.stream, subject), b"before")
    os.kill(server.pid, signal.SIGKILL)
    await server.wait()
    await server.stop()
    await server.start()
    await manager.bucket("summaries").put("k", b"after")
    await until(lambda: newest(viewer, layout.SUMMARIES.stream, subject), b"after")


@threat(rows.VIEWER_DELIVERS)
async def test_what_a_consumer_delivers_is_no_call_to_the_server(join: Join, viewer: NatsBus) -> None:
    """An empty message, delivered where an empty request deletes a stream: the copy stays."""
    manager, bucket = await join(MANAGER, "m"), layout.SUMMARIES
    await manager.bucket("summaries").delete("k")
    await until(partial(newest, viewer, bucket.stream, bucket.subject("k")), b"")
    config = {
        "deliver_subject": f"{API}.STREAM.DELETE.{bucket.stream}",
        "deliver_policy": "all",
        "filter_subject": bucket.subject("k"),
        "ack_policy": "none",
    }
    await make_consumer(viewer, bucket.stream, "spoiler", config)
    await manager.bucket("summaries").put("other", b"2")
    await until(partial(newest, viewer, bucket.stream, bucket.subject("other")), b"2")
    assert await newest(viewer, bucket.stream, bucket.subject("k")) == b""


EVERYWHERE = (
    *TARGETS,
    *(f"{prefix}.CONSUMER.RESET.{stream}.{layout.COPIER}" for prefix in (API, EDGE_API) for stream in layout.COPIED),
    *(f"{API}.CONSUMER.CREATE.{stream}.{layout.COPIER}" for stream in layout.COPIED),
    *(f"{API}.STREAM.UPDATE.{stream}" for stream in layout.COPIED),
    *(layout.copy_subject(stream) for stream in layout.COPIED),
    "$JS.viewer.API.STREAM.DELETE.KV_summaries",
    "$SYS.REQ.ACCOUNT.PING.CONNZ",
)


@threat(rows.VIEWER_DELIVERS)
async def test_wherever_a_viewers_consumers_deliver_it_stays_in_the_viewers_account(
    join: Join, viewer: NatsBus
) -> None:
    """A consumer's deliver subject is under no permission. Pushed and pulled, at every subject that matters, with
    bodies that would be commands: what the managers have stored stays as it was."""
    manager, gateway = await join(MANAGER, "m"), await join("gateway", "thief")
    await furnish(manager, join)
    command = {"stream_name": "ATTEST_EVENTS", "config": {"name": "evil", "deliver_subject": "$KV.sessions.record"}}
    for body in (json.dumps(command).encode(), b"{}", b""):  # an accomplice: its own events hold what it likes
        await gateway.publish(subjects.event("gateway", "thief", "admitted"), body)
    heard: asyncio.Queue[Msg] = asyncio.Queue()
    for bucket in layout.BUCKETS.values():
        await manager.client.subscribe(bucket.subject(">"), cb=heard.put)
    await manager.flush()
    before = await look(manager, ".thief.")
    for number, target in enumerate(EVERYWHERE):
        for stream in layout.COPIED:
            config = {"deliver_subject": target, "deliver_policy": "all", "ack_policy": "none"}
            await make_consumer(viewer, stream, f"push{number}", config)
        pull = f"{API}.CONSUMER.MSG.NEXT.{layout.EVENTS.name}.pull"
        await make_consumer(viewer, layout.EVENTS.name, "pull", {"ack_policy": "explicit", "deliver_policy": "all"})
        await viewer.client.publish(pull, b'{"batch": 8, "no_wait": true}', reply=target)
        await viewer.client.request(f"{API}.CONSUMER.DELETE.{layout.EVENTS.name}.pull", b"", timeout=5)
    await viewer.flush()
    await ensure(manager)
    await manager.publish(subjects.event("host", "h", "superseded"), b"{}")
    await until(lambda: newest(viewer, layout.EVENTS.name, subjects.event("host", "h", "superseded")), b"{}")
    after = await look(manager, ".thief.")
    del after.counts[layout.EVENTS.name][subjects.event("host", "h", "superseded")]
    assert after == before
    for consumer in layout.CONSUMERS.values():
        info = await manager.jetstream.consumer_info(consumer.stream, consumer.name)
        assert info.num_ack_pending == 0
    await manager.flush()
    assert heard.empty()


async def test_a_viewers_consumer_delivers_where_it_says_within_the_account(join: Join, viewer: NatsBus) -> None:
    """So that the test above would notice: here, too, no permission covers the deliver subject."""
    manager, other = await join(MANAGER, "m"), await join(VIEWER, "other")
    await manager.publish(subjects.event("host", "h1", "trusted"), b"{}")
    heard: asyncio.Queue[Msg] = asyncio.Queue()
    await other.client.subscribe("_INBOX.viewer.other.x", cb=heard.put)
    await other.flush()
    config = {"deliver_subject": "_INBOX.viewer.other.x", "deliver_policy": "all", "ack_policy": "none"}
    await make_consumer(viewer, layout.EVENTS.name, "astray", config)
    async with asyncio.timeout(PATIENCE_S):
        assert (await heard.get()).data == b"{}"


@threat(rows.VIEWER_CHANGES)
async def test_copies_are_read_only(viewer: NatsBus) -> None:
    refused: list[str] = []

    async def problem(error: Exception) -> None:
        refused.append(str(error))

    viewer.client._error_cb = problem
    for subject in (
        *(
            f"{API}.STREAM.{verb}.{stream}"
            for verb in ("DELETE", "PURGE", "UPDATE", "CREATE")
            for stream in layout.COPIED
        ),
        *(f"{API}.STREAM.MSG.DELETE.{stream}" for stream in layout.COPIED),
        "$KV.summaries.k",
        subjects.event("host", "h1", "trusted"),
        f"{API}.STREAM.CREATE.mine",
        f"{API}.CONSUMER.CREATE.ATTEST_HOST.mine",
        f"{API}.CONSUMER.DURABLE.CREATE.ATTEST_EVENTS.mine",
        f"{EDGE_API}.CONSUMER.RESET.ATTEST_EVENTS.{layout.COPIER}",
    ):
        refused.clear()
        await viewer.client.publish(subject, b"{}")
        await viewer.flush()
        assert len(refused) == 1 and "permissions violation" in refused[0], subject


@threat(rows.VIEWER_FLOODS)
async def test_a_viewers_consumers_are_bounded(join: Join, viewer: NatsBus) -> None:
    errors = []
    for number in range(300):
        made = await make_consumer(viewer, layout.EVENTS.name, f"c{number}", {"ack_policy": "none"})
        if "error" in made:
            errors.append(made["error"]["description"])
            break
    assert errors and "maximum consumers" in errors[0]
