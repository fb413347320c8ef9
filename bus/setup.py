"""Make the server's streams, consumers and buckets agree with `bus.layout`."""

from __future__ import annotations

from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import BadRequestError

from bus import layout
from bus.errors import translated
from bus.nats import NatsBus

NAME_IN_USE = 10058
"""JetStream error code: a stream of that name exists with another configuration."""


async def ensure(bus: NatsBus, replicas: int = 1) -> None:
    """Create or update everything in `bus.layout`; needs the manager's credential. Raises BusError.

    `replicas` is 1, or 3 on a cluster. Safe to run by every worker at its start: what agrees is left alone.
    """
    with translated("set the bus up"):
        for stream in layout.STREAMS.values():
            await _stream(bus.jetstream, _stream_config(stream, replicas))
        for bucket in layout.BUCKETS.values():
            await _stream(bus.jetstream, _bucket_config(bucket, replicas))
        for consumer in layout.CONSUMERS.values():
            await bus.jetstream.add_consumer(consumer.stream, _consumer_config(consumer))


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
    """A bucket as clients make one (NATS ADR-8): history 1, read directly, and marks of deletion that expire."""
    return StreamConfig(
        name=bucket.stream,
        subjects=[bucket.subject(">")],
        retention=RetentionPolicy.LIMITS,
        discard=DiscardPolicy.NEW,
        max_bytes=bucket.max_bytes,
        max_msgs_per_subject=1,
        max_msg_size=bucket.max_value,
        duplicate_window=60,
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
        max_ack_pending=consumer.max_ack_pending,
        max_deliver=consumer.max_deliver,
    )
