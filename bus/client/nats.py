"""The bus on NATS: one connection that reconnects automatically, and `bus.api.Bus` on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_exponential_jitter,
)

from attestgate.bus import layout, subjects
from attestgate.bus.api import BusError, Message, StoredMessage, in_order
from attestgate.bus.auth.credentials import Holder, holder
from attestgate.bus.auth.permissions import ROLES
from attestgate.bus.client.connection import Connection
from attestgate.bus.client.errors import Unanswered, translated
from attestgate.bus.client.kv import NatsBucket
from attestgate.bus.client.pages import read_page
from attestgate.bus.client.pull import NatsDelivery, pull
from attestgate.schemas.settings import BusSettings

log = structlog.get_logger(__name__)

DIAL_S, CONNECT_S = 3.0, 15.0
"""How long one attempt to connect may take, and all of them."""


class NatsBus(Connection):
    """A `bus.api.Bus` on one NATS connection. Made by `connect`."""

    async def publish(
        self, subject: str, data: bytes, *, message_id: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """See `bus.api.Bus.publish`."""
        await self.store(subject, data, message_id=message_id, headers=headers)

    async def send(self, subject: str, data: bytes) -> None:
        """See `bus.api.Bus.send`."""
        self.check_size(subject, data)
        with translated(f"send {subject}"):
            await self.client.publish(subject, data)

    async def listen(self, subject: str, handler: Callable[[Message], Awaitable[None]]) -> NatsSubscription:
        """See `bus.api.Bus.listen`. A handler that raises is logged and goes on with the next message."""

        async def call(message: Msg) -> None:
            try:
                await handler(Message(message.subject, message.data, dict(message.headers or {})))
            except Exception:
                log.exception("bus.handler", subject=message.subject)

        with translated(f"listen to {subject}"):
            return NatsSubscription(self.client, await self.client.subscribe(subject, cb=call))

    def consume(self, consumer: str, *, batch: int = 16) -> AsyncGenerator[NatsDelivery]:
        """See `bus.api.Bus.consume`. Closing the generator returns (-NAK) what it has not yielded."""
        pulled = layout.CONSUMERS[consumer]
        return pull(self, pulled, min(batch, layout.most_pulled(pulled)))

    async def history(self, subject: str) -> AsyncGenerator[Message]:
        """See `bus.api.Bus.history`."""
        async for stored in in_order([self._stored(stream, subject) for stream in layout.TOLD]):
            yield Message(stored.subject, stored.data, stored.headers)

    async def _stored(self, stream: str, subject: str) -> AsyncGenerator[StoredMessage]:
        last, more = 0, True
        while more:
            page, more = await self.page(stream, last, subject)
            for stored in page:
                last = stored.sequence
                yield stored

    async def page(self, stream: str, after: int, pattern: str = ">") -> tuple[list[StoredMessage], bool]:
        """See `bus.api.Bus.page`."""
        return await read_page(self, stream, pattern, after)

    async def schedule(self, subject: str, data: bytes, *, at: int, message_id: str | None = None) -> None:
        """See `bus.api.Bus.schedule` (NATS ADR-51). Fires within a second after `at`; a past time fires at once."""
        when = datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
        headers = {"Nats-Schedule": f"@at {when}", "Nats-Schedule-Target": subjects.due(subject)}
        await self.store(subject, data, message_id=message_id, headers=headers)

    def bucket(self, name: str) -> NatsBucket:
        """See `bus.api.Bus.bucket`."""
        return NatsBucket(self, layout.BUCKETS[name])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class NatsSubscription:
    """A plain subscription."""

    def __init__(self, client: Client, subscription: object) -> None:
        self._client = client
        self._subscription = subscription

    async def close(self) -> None:
        """End it; one of a closed connection has ended already."""
        if not self._client.is_closed:
            await self._subscription.unsubscribe()  # type: ignore[attr-defined]


async def join(bus: BusSettings, *, label: str | None = None, patience_s: float = CONNECT_S) -> NatsBus:
    """Connect as a process's settings say. Raises as `connect` does."""
    return await connect([bus.url], bus.credentials, label=label, patience_s=patience_s)


async def connect(
    servers: Sequence[str],
    credentials: Path,
    *,
    label: str | None = None,
    patience_s: float = CONNECT_S,
) -> NatsBus:
    """Connect to any of `servers` (URLs, each of which may be several with commas between).

    Raises BusError after `patience_s`, and Refusal for an unusable credential. `label` names the connection in the
    server's monitoring. Once connected it reconnects without limit.
    """
    who = holder(credentials)
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(Unanswered),
        stop=stop_after_delay(patience_s),
        wait=wait_exponential_jitter(multiplier=0.05, max=1.0, jitter=0.05),
        reraise=True,
    ):
        with attempt:
            return await _dial(addresses(servers), credentials, who, label or f"{who.role} {who.name}")
    raise AssertionError("tenacity re-raises")


def addresses(servers: Sequence[str]) -> list[str]:
    """Each server's own URL, out of settings that name several with commas between."""
    return [address.strip() for several in servers for address in several.split(",")]


async def _dial(servers: list[str], credentials: Path, who: Holder, label: str) -> NatsBus:
    """One attempt to connect."""
    client = Client()
    bus = NatsBus(client, ROLES[who.role])
    connected = given_up = False

    async def problem(error: Exception) -> None:
        if connected:
            log.warning("bus.error", error=str(error) or type(error).__name__)
        elif not given_up:
            raise error  # the client would retry on its own, without limit

    try:
        async with asyncio.timeout(DIAL_S):
            await client.connect(
                servers,
                name=label,
                user_credentials=str(credentials),
                inbox_prefix=who.inbox,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.2,  # type: ignore[arg-type]  # annotated int; it is only slept
                connect_timeout=2,
                error_cb=problem,
                reconnected_cb=bus.reconnected,
                closed_cb=bus.closed,
            )
        connected = True
    except (nats.errors.Error, OSError, TimeoutError) as error:
        text = f"no connection to {', '.join(servers)}: {str(error) or type(error).__name__}"
        if "authorization violation" in str(error).lower():
            raise BusError(f"{text}: the server rejects the credential {credentials}") from None
        raise Unanswered(text) from None
    finally:
        if not connected:
            given_up = True  # what goes wrong while it closes adds nothing to the error above
            await client.close()  # nobody else has it: its socket would stay open until it is collected
    return bus
