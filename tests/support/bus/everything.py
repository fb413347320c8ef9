"""Something of everybody's in every place of a bus, and whether it is still as it was."""

from __future__ import annotations

from dataclasses import dataclass

from attestgate.bus import layout, subjects
from attestgate.bus.auth.permissions import EDGE_API
from attestgate.bus.client.nats import NatsBus
from tests.support.bus.fixtures import Join

SESSION = "ab" * 16
THIEF, OTHER = "thief", "other"
FAR = 4_000_000_000
TARGETS = (
    "$KV.sessions.record",
    "$KV.admissions.lease",
    "$KV.summaries.readable",
    subjects.work("host", SESSION, "x"),
    subjects.deadline(SESSION),
    subjects.due(subjects.deadline(SESSION)),
    subjects.event("host", "h", "trusted"),
    subjects.event("gateway", OTHER, "admitted"),
    subjects.inbound("host", OTHER, "hello"),
    subjects.inbound("app", f"{OTHER}.{OTHER}", "hello"),
    subjects.inbound("gateway", OTHER, "report"),
    subjects.operator(OTHER, "revoke"),
    "$JS.API.STREAM.PURGE.KV_sessions",
    "$JS.API.STREAM.DELETE.ATTEST_HOST",
    "$JS.API.STREAM.INFO.ATTEST_HOST",
    "$JS.API.CONSUMER.DELETE.ATTEST_HOST.host-hellos",
    f"{EDGE_API}.STREAM.INFO.ATTEST_HOST",
    "$JS.ACK.ATTEST_HOST.host-hellos.1.1.1.1.0",
)


@dataclass
class Everything:
    """All that is stored, by stream and subject, and the values in the buckets."""

    counts: dict[str, dict[str, int]]
    values: dict[str, bytes | None]


async def look(manager: NatsBus, own: str) -> Everything:
    """What is there now, without what is the thief's own."""
    counts = {}
    for stream in (*layout.STREAMS, *(bucket.stream for bucket in layout.BUCKETS.values())):
        info = await manager.jetstream.stream_info(stream, subjects_filter=">")
        counts[stream] = {s: n for s, n in (info.state.subjects or {}).items() if own not in s}
    values: dict[str, bytes | None] = {}
    for bucket, key in (("sessions", "record"), ("admissions", "lease"), ("summaries", "readable")):
        entry = await manager.bucket(bucket).get(key)
        values[bucket] = entry.value if entry else None
    return Everything(counts, values)


def name_of(role: str, word: str) -> str:
    """A name that a role's credential can have."""
    return ".".join([word] * subjects.name_tokens(role))


async def furnish(manager: NatsBus, join: Join) -> None:
    """Something of everybody's in every place; room enough that no attack is refused for want of it."""
    for stream in layout.INBOUND:
        info = await manager.jetstream.stream_info(stream.name)
        info.config.max_msgs_per_subject = 10_000
        await manager.jetstream.update_stream(info.config)
    for bucket, key in (("sessions", "record"), ("admissions", "lease"), ("summaries", "readable")):
        await manager.bucket(bucket).put(key, b"honest")
    await manager.publish(subjects.work("host", SESSION, "x"), b"work")
    await manager.schedule(subjects.deadline(SESSION), b"deadline", at=FAR)
    await manager.publish(subjects.event("host", "h", "trusted"), b"{}")
    for role, step in (("host", "hello"), ("app", "hello"), ("gateway", "report")):
        name = name_of(role, OTHER)
        bus = await join(role, name)
        await bus.publish(subjects.inbound(role, name, step), b"honest")
    operator = await join("operator", OTHER)
    await operator.publish(subjects.operator(OTHER, "revoke"), b"honest")
