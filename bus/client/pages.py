"""Reading a stream in pages, without a consumer: direct get in batches (NATS ADR-31)."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime

from nats.aio.msg import Msg

from attestgate.bus.api import BusError, StoredMessage
from attestgate.bus.client.connection import Connection
from attestgate.bus.client.errors import translated

PAGE = 256
PAGE_BYTES = 4 * 1024 * 1024
ANSWER_S = 5.0
SEQUENCE = "Nats-Sequence"
"""Header of an answer that is a stored message: its sequence."""
NO_MORE = ("204", "404")
"""Status that ends a page: end of batch, and nothing there."""


async def read_page(connection: Connection, stream: str, pattern: str, after: int) -> tuple[list[StoredMessage], bool]:
    """What a stream has on `pattern` after a sequence, in order, and whether there is more. Raises BusError."""
    request = {"seq": after + 1, "next_by_subj": pattern, "batch": PAGE, "max_bytes": PAGE_BYTES}
    client = connection.client
    inbox = client.new_inbox()
    answers: asyncio.Queue[Msg] = asyncio.Queue()
    with translated(f"read {stream}"):
        subscription = await client.subscribe(inbox, cb=answers.put)
        try:
            await client.publish(f"{connection.api}.DIRECT.GET.{stream}", json.dumps(request).encode(), reply=inbox)
            async with asyncio.timeout(ANSWER_S):
                return await _collect(stream, answers)
        finally:
            if not client.is_closed:
                await subscription.unsubscribe()


async def _collect(stream: str, answers: asyncio.Queue[Msg]) -> tuple[list[StoredMessage], bool]:
    page: list[StoredMessage] = []
    while True:
        message = await answers.get()
        headers = dict(message.headers or {})
        # A stored message has the headers of its sender, who may have put a status among them; the server adds the
        # sequence.
        if SEQUENCE in headers:
            sequence = int(headers.pop(SEQUENCE))
            stored_ns = nanoseconds(headers.pop("Nats-Time-Stamp"))
            page.append(StoredMessage(headers.pop("Nats-Subject"), sequence, headers, message.data, stored_ns))
        elif headers.get("Status") in NO_MORE:
            return page, headers.get("Nats-Num-Pending", "0") != "0"
        else:
            raise BusError(f"read {stream}: status {headers.get('Status')}")


def nanoseconds(text: str) -> int:
    """The server's time of storage (RFC 3339, UTC, up to nine decimals, none written that are zero) as Unix ns."""
    seconds, _, decimals = text.removesuffix("Z").partition(".")
    whole = datetime.fromisoformat(seconds).replace(tzinfo=UTC)
    return int(whole.timestamp()) * 1_000_000_000 + int(decimals.ljust(9, "0"))
