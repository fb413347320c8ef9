"""One NATS connection that reconnects automatically: what is written to it, and callbacks after a reconnect."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

import structlog
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import PubAck
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_exponential_jitter,
)

from attestgate.bus import layout
from attestgate.bus.api import BusError
from attestgate.bus.auth.permissions import API, GATEWAY, MANAGER, VIEWER, BusRole
from attestgate.bus.client.errors import ANSWER_S, Unanswered, translated

log = structlog.get_logger(__name__)

PATIENCE_S = 12.0
"""How long a publish is retried: a cluster's stream that loses its leader is unavailable for about 5 s."""


class Connection:
    """A connection, and the operations that every part of the bus uses."""

    def __init__(self, client: Client, role: BusRole) -> None:
        self.client = client
        self.api = role.api
        """Prefix of the JetStream API calls that this credential may make."""
        self.jetstream: JetStreamContext = client.jetstream(prefix=role.api, timeout=ANSWER_S)
        self.connections = 1
        """How often it has connected; a rise means that plain messages may have been missed."""
        self.in_batches = role.name == MANAGER
        """Whether it may read many messages by one request."""
        self._reads_directly = role.name in (MANAGER, GATEWAY)
        self._copies = frozenset(layout.COPIED if role.name == VIEWER else ())
        self._max_payload = role.max_payload
        self._on_reconnect: set[Callable[[], None]] = set()

    @property
    def reads_directly(self) -> bool:
        """Whether it reads a key from the stream itself, not by the API: if its role may, and no replica can answer
        that has not the newest. A server that is one of several says its cluster's name."""
        return self._reads_directly and "cluster" not in self.client._server_info

    def api_of(self, stream: str) -> str:
        """The prefix by which a stream is read: a viewer has copies of some in an account of its own."""
        return API if stream in self._copies else self.api

    async def store(
        self, subject: str, data: bytes, *, message_id: str | None = None, headers: Mapping[str, str] | None = None
    ) -> int:
        """Publish and return the stream's sequence. Retried under one id until answered: stored at most once."""
        self.check_size(subject, data)
        sent = {**(headers or {}), "Nats-Msg-Id": message_id or secrets.token_urlsafe(16)}
        try:
            return await self._store(subject, data, sent)
        except Unanswered:  # rare; setting up the retry costs more than a store itself
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

    def check_size(self, subject: str, data: bytes) -> None:
        """Raises BusError for a message that is too large: sending it would make the server close the connection."""
        if len(data) > self._max_payload:
            raise BusError(f"{subject}: {len(data)} bytes; this credential may send at most {self._max_payload}")

    async def flush(self) -> None:
        """See `bus.api.Bus.flush`."""
        with translated("flush"):
            # The client writes its PING ahead of what it still holds back: only a second answer comes after that.
            await self.client.flush()
            await self.client.flush()

    async def close(self) -> None:
        """Flush what is still queued, and end every subscription."""
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
