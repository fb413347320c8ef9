"""The bus on NATS: one connection that comes back by itself, and what `bus.api.Bus` asks of it."""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import PubAck
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_exponential_jitter,
)

from bus import layout, subjects
from bus.api import BusError, Message, Stored
from bus.credentials import Holder, holder
from bus.errors import ANSWER_S, Unanswered, translated
from bus.kv import NatsBucket
from bus.pages import read_page
from bus.permissions import ROLES, Role
from bus.pull import NatsDelivery, pull

log = structlog.get_logger(__name__)

PATIENCE_S = 12.0
"""How long it is sent again: a stream of a cluster that loses its leader stands still for about 5 s."""
DIAL_S = 3.0


class NatsBus:
    """A `bus.api.Bus` on one NATS connection. Made by `connect`."""

    def __init__(self, client: Client, role: Role) -> None:
        self.client = client
        self.api = role.api
        """Prefix of the JetStream API calls that this credential may make."""
        self.jetstream: JetStreamContext = client.jetstream(prefix=role.api, timeout=ANSWER_S)
        self.connections = 1
        """How often it has connected; a rise means that plain messages may have been missed."""
        self._max_payload = role.max_payload
        self._on_reconnect: set[Callable[[], None]] = set()

    async def publish(
        self, subject: str, data: bytes, *, message_id: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """See `bus.api.Bus.publish`."""
        await self.store(subject, data, message_id=message_id, headers=headers)

    async def store(
        self, subject: str, data: bytes, *, message_id: str | None = None, headers: Mapping[str, str] | None = None
    ) -> int:
        """Publish and return the stream's sequence. Repeated under one id until answered: stored at most once."""
        self._check_size(subject, data)
        sent = {**(headers or {}), "Nats-Msg-Id": message_id or secrets.token_urlsafe(16)}
        try:
            return await self._store(subject, data, sent)
        except Unanswered:  # seldom; setting up the repetition costs more than a store itself
            return await AsyncRetrying(
                retry=retry_if_exception_type(Unanswered),
                stop=stop_after_delay(PATIENCE_S),
                wait=wait_exponential_jitter(multiplier=0.05, max=1.0, jitter=0.05),
                reraise=True,
            )(self._store, subject, data, sent)

    async def _store(self, subject: str, data: bytes, headers: Mapping[str, str]) -> int:
        """Publish once and return the stream's sequence. Raises Unanswered, BusError."""
        with translated(f"store {subject}"):
            ack: PubAck = await self.jetstream.publish(subject, data, timeout=ANSWER_S, headers=dict(headers))
        return ack.seq

    async def send(self, subject: str, data: bytes) -> None:
        """See `bus.api.Bus.send`."""
        self._check_size(subject, data)
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
        """See `bus.api.Bus.consume`. Closing the generator gives back what it has not handed out."""
        return pull(self, layout.CONSUMERS[consumer], batch)

    async def history(self, subject: str) -> AsyncGenerator[Message]:
        """See `bus.api.Bus.history`. Of the streams, only events can be read so."""
        last, more = 0, True
        while more:
            page, more = await self.page(layout.EVENTS.name, last, subject)
            for stored in page:
                last = stored.sequence
                yield Message(stored.subject, stored.data, stored.headers)

    async def page(self, stream: str, after: int, pattern: str = ">") -> tuple[list[Stored], bool]:
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

    async def flush(self) -> None:
        """See `bus.api.Bus.flush`."""
        with translated("flush"):
            # The client writes its PING ahead of what it still holds back: only a second answer comes after that.
            await self.client.flush()
            await self.client.flush()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Send what is still waiting, and end every subscription."""
        if self.client.is_closed:
            return
        with suppress(BusError):
            if self.client.is_connected:
                await self.flush()
        await self.client.close()

    @contextmanager
    def reconnects(self, call: Callable[[], None]) -> Iterator[None]:
        """Have `call` called after each reconnect (and at the close), as long as the context is open."""
        self._on_reconnect.add(call)
        try:
            yield
        finally:
            self._on_reconnect.discard(call)

    def check_open(self) -> None:
        """Raises BusError once the connection was closed: by `close`, or by a server that refused the credential."""
        if self.client.is_closed:
            raise BusError("the connection to the bus is closed")

    def _check_size(self, subject: str, data: bytes) -> None:
        """The server ends the connection over a message too large, so it is not sent."""
        if len(data) > self._max_payload:
            raise BusError(f"{subject}: {len(data)} bytes, and this credential may send {self._max_payload}")

    async def reconnected(self) -> None:
        """The client's callback."""
        self.connections += 1
        log.info("bus.reconnected")
        self._tell()

    async def closed(self) -> None:
        """The client's callback."""
        self._tell()

    def _tell(self) -> None:
        for call in list(self._on_reconnect):
            call()


class NatsSubscription:
    """A plain subscription."""

    def __init__(self, client: Client, subscription: object) -> None:
        self._client = client
        self._subscription = subscription

    async def close(self) -> None:
        """End it; one of a closed connection has ended already."""
        if not self._client.is_closed:
            await self._subscription.unsubscribe()  # type: ignore[attr-defined]


async def connect(
    servers: Sequence[str],
    credentials: Path,
    *,
    label: str | None = None,
    tls: ssl.SSLContext | None = None,
    patience_s: float = 15.0,
) -> NatsBus:
    """Connect to any of `servers` (URLs, each of which may be several with commas between).

    Raises BusError after `patience_s`, and Refusal for an unusable credential. `label` names the connection in the
    server's monitoring. Once connected it reconnects for ever.
    """
    who = holder(credentials)
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(Unanswered),
        stop=stop_after_delay(patience_s),
        wait=wait_exponential_jitter(multiplier=0.05, max=1.0, jitter=0.05),
        reraise=True,
    ):
        with attempt:
            return await _dial(addresses(servers), credentials, who, label or f"{who.role} {who.name}", tls)
    raise AssertionError("tenacity re-raises")


def addresses(servers: Sequence[str]) -> list[str]:
    """Each server's own URL, out of settings that name several with commas between."""
    return [address.strip() for several in servers for address in several.split(",")]


async def _dial(servers: list[str], credentials: Path, who: Holder, label: str, tls: ssl.SSLContext | None) -> NatsBus:
    """One attempt to connect."""
    client = Client()
    bus = NatsBus(client, ROLES[who.role])
    connected = given_up = False

    async def problem(error: Exception) -> None:
        if connected:
            log.warning("bus.error", error=str(error) or type(error).__name__)
        elif not given_up:
            raise error  # the client would go on trying by itself, and for ever

    try:
        async with asyncio.timeout(DIAL_S):
            await client.connect(
                servers,
                name=label,
                user_credentials=str(credentials),
                inbox_prefix=who.inbox,
                tls=tls,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.2,  # type: ignore[arg-type]  # annotated int; it is only slept
                connect_timeout=2,
                error_cb=problem,
                reconnected_cb=bus.reconnected,
                closed_cb=bus.closed,
            )
    except (nats.errors.Error, OSError, TimeoutError) as error:
        given_up = True  # what goes wrong while it closes adds nothing to the error below
        await client.close()
        text = f"no connection to {', '.join(servers)}: {error or type(error).__name__}"
        if "authorization violation" in str(error).lower():
            raise BusError(f"{text}: the server does not take the credential {credentials}") from None
        raise Unanswered(text) from None
    connected = True
    return bus
