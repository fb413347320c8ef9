"""Make the server's streams, consumers and buckets, and the viewers' copies, agree with `bus.layout`."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, BadRequestError, NotFoundError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from attestgate.bus import layout
from attestgate.bus.auth.permissions import API, EDGE_API, VIEWER_API
from attestgate.bus.client.errors import ANSWER_S, Unanswered, translated
from attestgate.bus.client.nats import NatsBus

LEADER_S = 30
"""How long a new cluster may take to elect its leader."""
NAME_IN_USE = 10058
"""JetStream error code: a stream of that name exists with another configuration."""


async def ensure(bus: NatsBus, replicas: int = 1) -> None:
    """Create or update everything in `bus.layout`; needs the manager's credential. Raises BusError.

    `replicas` is 1, or 3 on a cluster. Idempotent: every worker runs it at its start. It waits up to `LEADER_S` for a
    cluster that has no leader yet.
    """
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(Unanswered),
        stop=stop_after_delay(LEADER_S),
        wait=wait_exponential_jitter(multiplier=0.1, max=1.0, jitter=0.1),
        reraise=True,
    ):
        with attempt:
            await _ensure(bus, replicas)


async def _ensure(bus: NatsBus, replicas: int) -> None:
    with translated("set up the bus (keys of an earlier version: attestgate keys upgrade)"):
        for retired in layout.RETIRED:
            await _retire(bus.jetstream, retired)
        for stream in layout.STREAMS.values():
            await _stream(bus.jetstream, _stream_config(stream, replicas))
        for bucket in layout.BUCKETS.values():
            await _stream(bus.jetstream, _bucket_config(bucket, replicas))
        for consumer in layout.CONSUMERS.values():
            await bus.jetstream.add_consumer(consumer.stream, _consumer_config(consumer))
        for copied in layout.COPIED:
            await _copy(bus, copied, replicas)


async def _retire(jetstream: JetStreamContext, name: str) -> None:
    """Delete a stream of an earlier version: what waited in it is sent again by those who still wait for an answer."""
    with suppress(NotFoundError):
        await jetstream.delete_stream(name)


async def _stream(jetstream: JetStreamContext, config: StreamConfig) -> None:
    try:
        await jetstream.add_stream(config)
    except BadRequestError as error:
        if error.err_code != NAME_IN_USE:
            raise
        await jetstream.update_stream(config)


def _stream_config(stream: layout.Stream, replicas: int) -> StreamConfig:
    return StreamConfig(
        name=stream.name,
        subjects=list(stream.subjects),
        retention=RetentionPolicy(stream.retention),
        discard=DiscardPolicy(stream.discard),
        discard_new_per_subject=stream.discard == "new" and stream.max_msgs_per_subject > 0,
        max_age=stream.max_age_s,
        max_bytes=stream.max_bytes,
        max_msgs_per_subject=stream.max_msgs_per_subject,
        max_msg_size=stream.max_msg_size,
        duplicate_window=stream.duplicate_window_s,
        storage=StorageType.FILE,
        num_replicas=replicas,
        allow_direct=stream.readable,
        allow_rollup_hdrs=stream.own_features,
        allow_msg_ttl=stream.own_features,
        allow_msg_schedules=stream.own_features,
    )


def _bucket_config(bucket: layout.BucketLayout, replicas: int) -> StreamConfig:
    """A bucket as clients create one (NATS ADR-8): history 1, direct get, and delete markers that expire."""
    return StreamConfig(
        name=bucket.stream,
        subjects=[bucket.subject(">")],
        retention=RetentionPolicy.LIMITS,
        discard=DiscardPolicy(bucket.discard),
        max_bytes=bucket.max_bytes,
        max_msgs_per_subject=1,
        max_msg_size=bucket.max_value,
        duplicate_window=bucket.duplicate_window_s,
        storage=StorageType.FILE,
        num_replicas=replicas,
        deny_delete=True,
        allow_direct=True,
        allow_rollup_hdrs=True,
        allow_msg_ttl=True,
    )


def _consumer_config(consumer: layout.Consumer) -> ConsumerConfig:
    return ConsumerConfig(
        name=consumer.name,
        durable_name=consumer.name,
        filter_subjects=list(consumer.filter_subjects),
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=consumer.ack_wait_s,
        max_ack_pending=-1,
    )


def _original(stream: str, replicas: int) -> StreamConfig:
    """The configuration of a stream or a bucket's stream."""
    if stream in layout.STREAMS:
        return _stream_config(layout.STREAMS[stream], replicas)
    return _bucket_config(next(b for b in layout.BUCKETS.values() if b.stream == stream), replicas)


async def _copy(bus: NatsBus, stream: str, replicas: int) -> None:
    """A copy of a stream in the viewers' account. The client library lacks durable mirroring: the calls as JSON."""
    await _call(bus, f"{API}.CONSUMER.CREATE.{stream}.{layout.COPIER}", _copier_config(stream))
    try:
        await _call(bus, f"{VIEWER_API}.STREAM.CREATE.{stream}", _copy_config(stream, replicas))
    except APIError as error:
        if error.err_code != NAME_IN_USE:
            raise
        await _call(bus, f"{VIEWER_API}.STREAM.UPDATE.{stream}", _copy_config(stream, replicas))


def _copier_config(stream: str) -> dict[str, Any]:
    """A consumer for a mirror to follow: push, acknowledged by flow control (nats-server 2.14)."""
    config = {
        "durable_name": layout.COPIER,
        "name": layout.COPIER,
        "deliver_subject": layout.copy_subject(stream),
        "deliver_policy": "all",
        "ack_policy": "flow_control",
        "replay_policy": "instant",
        "flow_control": True,
        "idle_heartbeat": 1_000_000_000,
        "max_ack_pending": 1000,
    }
    return {"stream_name": stream, "config": config}


def _copy_config(stream: str, replicas: int) -> dict[str, Any]:
    """The original's limits, since a mirror copies what is stored, not what is removed; nobody writes to it. It is no
    larger than a consumer of a viewer's may take in the server's memory."""
    config = _original(stream, replicas)
    original = config.as_dict()
    limits = ("max_age", "max_msgs_per_subject", "max_msg_size", "storage", "num_replicas")
    source = {"name": layout.COPIER, "deliver_subject": layout.copy_subject(stream)}
    return {
        **{limit: original[limit] for limit in limits if limit in original},
        "max_bytes": min(config.max_bytes or layout.COPY, layout.COPY),
        "name": stream,
        "mirror": {"name": stream, "external": {"api": EDGE_API, "deliver": ""}, "consumer": source},
        "retention": "limits",
        "discard": "old",
        "allow_direct": False,  # one message at a time (bus.auth.permissions): clients use STREAM.MSG.GET instead
        "allow_msg_ttl": True,
    }


async def _call(bus: NatsBus, subject: str, body: dict[str, Any]) -> None:
    """One call of the JetStream API. Raises the client's APIError."""
    answer = json.loads((await bus.client.request(subject, json.dumps(body).encode(), timeout=ANSWER_S)).data)
    if "error" in answer:
        APIError.from_error(answer["error"])
