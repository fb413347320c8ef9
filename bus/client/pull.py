"""Pulling from a shared durable consumer: one request open at a time, renewed as soon as it is used up or lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from attestgate.bus.api import BusError
from attestgate.bus.client.connection import Connection
from attestgate.bus.client.errors import translated
from attestgate.bus.layout import Consumer

EXPIRES_S = 30
"""How long the server keeps a request open; it says so when it ends."""
HEARTBEAT_S = 2
"""Heartbeat interval of an idle request: when a server of a cluster is killed, its requests are lost."""
ALIVE = "100"
"""Status of a heartbeat."""
ACKNOWLEDGE = "$JS.ACK."
"""Beginning of the reply subject of a message that a consumer delivers."""
SECOND = 1_000_000_000
PAUSE_S = 0.2
"""Pause before the next request to a server that could not answer."""
DRAIN_S = 1
"""How long a stopping worker waits for what the server has already sent it."""
USED_UP = {"404", "408"}
"""Status of a request that ended normally: no messages, or expired."""


class NatsDelivery:
    """A `bus.api.Delivery`."""

    def __init__(self, message: Msg) -> None:
        self._message = message
        self.subject: str = message.subject
        self.data: bytes = message.data
        self.headers: Mapping[str, str] = dict(message.headers or {})
        self.attempt: int = message.metadata.num_delivered

    async def done(self) -> None:
        """Acknowledge. Not confirmed: if the acknowledgement is lost, the message is redelivered."""
        with translated("acknowledge"):
            await self._message.ack()

    async def again(self, delay_s: float = 0.0) -> None:
        """Negatively acknowledge (-NAK)."""
        with translated("negatively acknowledge"):
            await self._message.nak(delay=delay_s or None)

    async def working(self) -> None:
        """Restart the redelivery clock (+WPI)."""
        with translated("extend the redelivery clock"):
            await self._message.in_progress()


async def pull(connection: Connection, consumer: Consumer, batch: int) -> AsyncGenerator[NatsDelivery]:
    """Deliveries, until closed. Raises BusError once the connection is closed."""
    arrived: asyncio.Queue[Msg | None] = asyncio.Queue()
    inbox = connection.client.new_inbox()
    with translated(f"pull from {consumer.name}"):
        subscription = await connection.client.subscribe(inbox, cb=arrived.put)
    try:
        with connection.reconnects(lambda: arrived.put_nowait(None)):
            while True:
                connection.check_open()
                await _ask(connection, consumer, batch, inbox)
                for _ in range(batch):
                    message = await _answer(arrived)
                    if message is None:
                        break
                    yield NatsDelivery(message)
    finally:
        await _end(connection, subscription)
        await _give_back(arrived)


async def _ask(connection: Connection, consumer: Consumer, batch: int, inbox: str) -> None:
    request = {"batch": batch, "expires": EXPIRES_S * SECOND, "idle_heartbeat": HEARTBEAT_S * SECOND}
    subject = f"{connection.api}.CONSUMER.MSG.NEXT.{consumer.stream}.{consumer.name}"
    with translated(f"pull from {consumer.name}"):
        await connection.client.publish(subject, json.dumps(request).encode(), reply=inbox)


async def _answer(arrived: asyncio.Queue[Msg | None]) -> Msg | None:
    """The next message, or None when a new request is needed: it expired, or the server has lost it."""
    while True:
        try:
            async with asyncio.timeout(2 * HEARTBEAT_S + 1):
                message = await arrived.get()
        except TimeoutError:
            return None
        status = _status(message) if message else None
        if status != ALIVE:
            break
    if not status:
        return message
    if status not in USED_UP:
        await asyncio.sleep(PAUSE_S)
    return None


def _status(message: Msg) -> str | None:
    """What the server says of a request; None for a message of the stream, whose sender may have put a status into its
    headers: only a message of the stream is to be acknowledged."""
    return None if message.reply.startswith(ACKNOWLEDGE) else (message.headers or {}).get("Status")


async def _end(connection: Connection, subscription: Subscription) -> None:
    """Stop requesting, and wait for what is in flight: it can be returned only once it has arrived."""
    if connection.client.is_closed:
        return
    if not connection.client.is_connected:
        await subscription.unsubscribe()
        return
    try:
        async with asyncio.timeout(DRAIN_S):
            await subscription.drain()  # type: ignore[no-untyped-call]  # nats-py types it by halves
    except (TimeoutError, nats.errors.Error):
        return  # the server redelivers it after ack_wait


async def _give_back(arrived: asyncio.Queue[Msg | None]) -> None:
    """Return what arrived and was not yielded, so that another worker gets it at once."""
    while not arrived.empty():
        message = arrived.get_nowait()
        if message is None or _status(message):
            continue
        try:
            await NatsDelivery(message).again()
        except BusError:
            return  # the server redelivers it after ack_wait
