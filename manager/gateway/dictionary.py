"""Client for nginx's dictionary of admissions: a few requests over a unix socket.

The other end is compose/nginx/admin.js. Every change names the epoch that it is meant for, which is one lifetime of
nginx's shared memory, and nginx refuses it in any other.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self, TypeVar

import httpx
from pydantic import Field, ValidationError

from attestgate.manager.gateway.entries import DictionaryEntry
from attestgate.schemas.admission import NginxEpoch
from attestgate.schemas.base import Count, Label, Model, Text
from attestgate.schemas.nginx import REJECTIONS

MAX_BODY = 1_000_000
"""Bytes in one request: nginx keeps up to 1 MiB in memory, and would write a longer one to disk."""
_TIMEOUT_S = 5.0


class NginxError(Exception):
    """nginx could not be updated now: it is unreachable, or did not answer as admin.js does. A retry may help."""


class OtherEpoch(NginxError):
    """nginx has lost its memory since it was last asked: everything must be loaded again."""


class ZoneFull(NginxError):
    """The shared memory is full. Removals still work; an entry that did not fit is not admitted."""


class Health(Model):
    """nginx's answer to a health check. `free`: bytes left in whole pages of the zone."""

    epoch: NginxEpoch
    entries: Count
    free: Count


class RequestRefusal(Model):
    """Requests that were refused for one reason, with one certificate if any."""

    verdict: Text
    identity: Annotated[str, Field(max_length=4096)]
    serial: Text
    times: Annotated[int, Field(ge=1, lt=2**63)]


class RequestRefusals(Model):
    """The requests refused since this was last asked."""

    refusals: Annotated[list[RequestRefusal], Field(max_length=65_536)]


class Rejection(Model):
    """Connections that were closed before TLS, at one port, for one limit."""

    port: Annotated[int, Field(ge=1, le=65535)]
    limit: Text
    times: Annotated[int, Field(ge=1, lt=2**63)]


class Rejections(Model):
    """The connections rejected since this was last asked."""

    rejections: Annotated[list[Rejection], Field(max_length=16)]


class DictionaryContents(Model):
    """Everything in the dictionary: JSON text by key, and the epoch that it belongs to."""

    epoch: NginxEpoch
    entries: Annotated[dict[Label, Annotated[str, Field(max_length=MAX_BODY)]], Field(max_length=1_000_000)]


M = TypeVar("M", Health, DictionaryContents, RequestRefusals, Rejections)


class Dictionary:
    """The dictionary behind one admin socket. Every method raises NginxError."""

    def __init__(self, socket: Path) -> None:
        self._rejections = socket.with_name(REJECTIONS)
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket)), base_url="http://nginx", timeout=_TIMEOUT_S
        )

    async def health(self) -> Health:
        """The epoch and the fill level of the zone."""
        return self._read(Health, await self._ask("GET", "/health"))

    async def contents(self) -> DictionaryContents:
        """Every entry."""
        return self._read(DictionaryContents, await self._ask("GET", "/entries"))

    async def refusals(self) -> list[RequestRefusal]:
        """The requests refused since this was last asked, with counts."""
        return self._read(RequestRefusals, await self._ask("GET", "/refusals")).refusals

    async def rejections(self) -> list[Rejection]:
        """The connections rejected since this was last asked: door.js tells them to whoever connects."""
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                reader, writer = await asyncio.open_unix_connection(self._rejections)
                try:
                    answer = await reader.read()
                finally:
                    writer.transport.abort()
        except (OSError, TimeoutError) as error:
            raise NginxError(f"{self._rejections}: {error or type(error).__name__}") from error
        return self._read(Rejections, answer).rejections

    async def put(self, epoch: str, entries: Mapping[str, DictionaryEntry]) -> None:
        """Write entries; nginx drops each by itself at its `until`, and none counts before its `since`."""
        rows = [
            {
                "key": key,
                "since": entry.since,
                "until": entry.until,
                "sequence": entry.sequence,
                "value": entry.model_dump_json(),
            }
            for key, entry in entries.items()
        ]
        for body in _bodies(epoch, "entries", rows):
            await self._ask("PUT", "/entries", body)

    async def remove(self, epoch: str, keys: Sequence[str]) -> None:
        """Remove keys; a missing key is no error."""
        for body in _bodies(epoch, "keys", keys):
            await self._ask("DELETE", "/entries", body)

    async def _ask(self, method: str, path: str, body: str | None = None) -> bytes:
        try:
            response = await self._client.request(method, path, content=body)
        except httpx.HTTPError as error:
            raise NginxError(f"{method} {path}: {type(error).__name__}: {error}") from error
        match response.status_code:
            case 200:
                return response.content
            case 409:
                raise OtherEpoch("nginx was restarted")
            case 507:
                raise ZoneFull("nginx's shared memory is full: increase `zone` in the nginx settings")
            case status:
                raise NginxError(f"{method} {path}: status {status}: {response.text[:200]}")

    @staticmethod
    def _read(kind: type[M], answer: bytes) -> M:
        try:
            return kind.model_validate_json(answer)
        except ValidationError as error:
            problem = error.errors(include_input=False)[0]["msg"]
            raise NginxError(f"unexpected answer from nginx: {problem}") from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()


def _bodies(epoch: str, name: str, items: Iterable[object]) -> Iterator[str]:
    """Request bodies of at most `MAX_BODY` bytes that together carry all items (one item is far shorter)."""
    batch, size = list[str](), 0
    for text in map(json.dumps, items):
        if size + len(text) > MAX_BODY - 100:
            yield _body(epoch, name, batch)
            batch, size = [], 0
        batch.append(text)
        size += len(text) + 1
    if batch:
        yield _body(epoch, name, batch)


def _body(epoch: str, name: str, items: list[str]) -> str:
    # Neither needs escaping: the epoch is hexadecimal (schemas.admission.NginxEpoch), the name a literal of this file.
    return f'{{"epoch":"{epoch}","{name}":[{",".join(items)}]}}'
