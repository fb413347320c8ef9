"""Reading a stream in pages, without a consumer.

A manager's page is one request (direct get in batches, NATS ADR-31). Everybody else asks for one message at a time, for
several at once where they follow one another closely (bus.auth.permissions says why).
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from datetime import UTC, datetime
from typing import Any

from nats.aio.msg import Msg
from nats.js.errors import APIError

from attestgate.bus import layout
from attestgate.bus.api import BusError, StoredMessage
from attestgate.bus.client.connection import Connection
from attestgate.bus.client.errors import ANSWER_S, translated

PAGE = 256
PAGE_BYTES = 4 * 1024 * 1024
PAGE_S = 5.0
"""How long what was asked for at once may take to arrive."""
AT_ONCE, AT_ONCE_BYTES = 64, PAGE_BYTES
"""How many messages are asked for at once where one request brings one, and how many bytes these may be together."""
SEQUENCE = "Nats-Sequence"
"""Header of an answer that is a stored message: its sequence."""
NO_MORE = ("204", "404")
"""Status that ends a page: end of batch, and nothing there."""
NO_MESSAGE = 10037
"""JetStream error code: there is no such message."""


async def read_page(connection: Connection, stream: str, pattern: str, after: int) -> tuple[list[StoredMessage], bool]:
    """What a stream has on `pattern` after a sequence, in order, and whether there is more. Raises BusError."""
    read = _batch if connection.in_batches else _one_by_one
    return await read(connection, stream, pattern, after)


async def newest(connection: Connection, stream: str, subject: str) -> StoredMessage | None:
    """The newest message on a subject. Raises BusError.

    Managers and gateways ask the stream itself (direct get): calls of the API of all accounts wait in one queue of the
    server's, and what access depends on must not wait behind a viewer's. In a cluster any replica answers that, whether
    it has the newest or not; there they ask the leader by the API, like everybody else.
    """
    if not connection.reads_directly:
        return await get_message(connection, stream, json.dumps({"last_by_subj": subject}).encode())
    with translated(f"read {stream}"):
        answer = await connection.client.request(f"{connection.api}.DIRECT.GET.{stream}.{subject}", timeout=ANSWER_S)
    return _stored(stream, answer)


async def get_message(
    connection: Connection, stream: str, query: bytes, within_s: float = ANSWER_S
) -> StoredMessage | None:
    """The one message that a query (JSON, NATS's `JSApiMsgGetRequest`) finds, as the stream's leader has it."""
    call = f"{connection.api_of(stream)}.STREAM.MSG.GET.{stream}"
    with translated(f"read {stream}"):
        found = json.loads((await connection.client.request(call, query, timeout=within_s)).data)
        if "error" in found:
            if found["error"].get("err_code") == NO_MESSAGE:
                return None
            raise APIError.from_error(found["error"])
    message = found["message"]
    data, stored_ns = b64decode(message.get("data", "")), nanoseconds(message["time"])
    return StoredMessage(message["subject"], message["seq"], _headers(message), data, stored_ns)


async def _one_by_one(
    connection: Connection, stream: str, pattern: str, after: int
) -> tuple[list[StoredMessage], bool]:
    """A request for sequence n brings the first message from n on. So requests for n, n + 1, ... at once leave nothing
    out, and bring the same message more than once where sequences are missing: then the next one goes by itself."""
    page: list[StoredMessage] = []
    window, size = 1, 0
    while len(page) < PAGE and size < PAGE_BYTES:
        queries = [json.dumps({"seq": after + 1 + n, "next_by_subj": pattern}).encode() for n in range(window)]
        answers = await asyncio.gather(*(get_message(connection, stream, query, PAGE_S) for query in queries))
        found = {message.sequence: message for message in answers if message is not None}
        page += [found[sequence] for sequence in sorted(found)]
        if None in answers:
            return page, False
        after, size = max(found), size + sum(len(message.data) for message in found.values())
        window = min(2 * window, _at_once(stream)) if len(found) == window else 1
    return page, True


def _at_once(stream: str) -> int:
    """As many messages as are within `AT_ONCE_BYTES`, if each is as large as the stream allows. Answers are base64."""
    return max(1, min(AT_ONCE, AT_ONCE_BYTES // (layout.largest_in(stream) * 4 // 3)))


def _headers(message: dict[str, Any]) -> dict[str, str]:
    """Headers as the API gives them (ADR-4). The client parses them as e-mail, which costs as much as asking."""
    _version, *lines = b64decode(message.get("hdrs", "")).decode(errors="replace").split("\r\n")
    parts = (line.partition(":") for line in lines if line)
    return {name: value.strip() for name, _, value in parts}


async def _batch(connection: Connection, stream: str, pattern: str, after: int) -> tuple[list[StoredMessage], bool]:
    request = {"seq": after + 1, "next_by_subj": pattern, "batch": PAGE, "max_bytes": PAGE_BYTES}
    client = connection.client
    inbox = client.new_inbox()
    answers: asyncio.Queue[Msg] = asyncio.Queue()
    with translated(f"read {stream}"):
        subscription = await client.subscribe(inbox, cb=answers.put)
        try:
            await client.publish(f"{connection.api}.DIRECT.GET.{stream}", json.dumps(request).encode(), reply=inbox)
            async with asyncio.timeout(PAGE_S):
                return await _collect(stream, answers)
        finally:
            if not client.is_closed:
                await subscription.unsubscribe()


async def _collect(stream: str, answers: asyncio.Queue[Msg]) -> tuple[list[StoredMessage], bool]:
    page: list[StoredMessage] = []
    while True:
        answer = await answers.get()
        stored = _stored(stream, answer)
        if stored is None:
            return page, (answer.headers or {}).get("Nats-Num-Pending", "0") != "0"
        page.append(stored)


def _stored(stream: str, answer: Msg) -> StoredMessage | None:
    """A direct get's answer; None if that says that there is nothing, or nothing more. Raises BusError."""
    headers = dict(answer.headers or {})
    # A stored message has the headers of its sender, who may have put a status among them; the server adds the
    # sequence.
    if SEQUENCE in headers:
        sequence = int(headers.pop(SEQUENCE))
        stored_ns = nanoseconds(headers.pop("Nats-Time-Stamp"))
        return StoredMessage(headers.pop("Nats-Subject"), sequence, headers, answer.data, stored_ns)
    if headers.get("Status") in NO_MORE:
        return None
    raise BusError(f"read {stream}: status {headers.get('Status')}")


def nanoseconds(text: str) -> int:
    """The server's time of storage (RFC 3339, UTC, up to nine decimals, none written that are zero) as Unix ns."""
    seconds, _, decimals = text.removesuffix("Z").partition(".")
    whole = datetime.fromisoformat(seconds).replace(tzinfo=UTC)
    return int(whole.timestamp()) * 1_000_000_000 + int(decimals.ljust(9, "0"))
