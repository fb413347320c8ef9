"""nginx's dictionary as the gateway worker sees it: a few requests over a unix socket.

The other end is compose/nginx/admission.js. Every change names the epoch it is meant for, one life of nginx's shared
memory, and is refused in another.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self, TypeVar

import httpx
from pydantic import Field, ValidationError

from attestgate.manager.gateway.ledger import Entry
from attestgate.schemas.admission import NginxEpoch
from attestgate.schemas.base import Model

MAX_BODY = 1_000_000
"""Bytes in one request: nginx keeps 1 MiB in memory, and a longer one on disk."""
_TIMEOUT_S = 5.0


class NginxError(Exception):
    """nginx could not be made to agree now: not reached, or not the answer of admission.js. Trying again may help."""


class OtherEpoch(NginxError):
    """nginx has lost its memory since it was last asked: everything has to be loaded again."""


class ZoneFull(NginxError):
    """The shared memory is full. Removals still work; what did not fit is not admitted."""


class Health(Model):
    """nginx's answer when asked how it is. `free`: bytes left in whole pages of the zone."""

    epoch: NginxEpoch
    entries: Annotated[int, Field(ge=0)]
    free: Annotated[int, Field(ge=0)]


class RequestRefusal(Model):
    """Requests refused for one reason, of one certificate where there was one."""

    verdict: str
    identity: str
    serial: str
    times: Annotated[int, Field(ge=1)]


class Refusals(Model):
    """What was refused since the last question."""

    refusals: list[RequestRefusal]


class Contents(Model):
    """Everything in the dictionary: JSON text by key, and the epoch it belongs to."""

    epoch: NginxEpoch
    entries: dict[str, str]


M = TypeVar("M", Health, Contents, Refusals)


class Dictionary:
    """The dictionary behind one admin socket. Every method raises NginxError."""

    def __init__(self, socket: Path) -> None:
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket)), base_url="http://nginx", timeout=_TIMEOUT_S
        )

    async def health(self) -> Health:
        """The epoch, and how full the zone is."""
        return self._read(Health, await self._ask("GET", "/health"))

    async def contents(self) -> Contents:
        """All of it."""
        return self._read(Contents, await self._ask("GET", "/entries"))

    async def refusals(self) -> list[RequestRefusal]:
        """The requests that were refused since this was last asked, counted."""
        return self._read(Refusals, await self._ask("GET", "/refusals")).refusals

    async def put(self, epoch: str, entries: Mapping[str, Entry]) -> None:
        """Write entries; each disappears by itself at its `until`."""
        rows = [
            {"key": key, "until": entry.until, "sequence": entry.sequence, "value": entry.model_dump_json()}
            for key, entry in entries.items()
        ]
        for body in _bodies(epoch, "entries", rows):
            await self._ask("PUT", "/entries", body)

    async def remove(self, epoch: str, keys: Sequence[str]) -> None:
        """Remove keys; a missing one is no error."""
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
                raise ZoneFull("the shared memory of nginx is full: give NginxConfig.zone more")
            case status:
                raise NginxError(f"{method} {path}: status {status}: {response.text[:200]}")

    @staticmethod
    def _read(kind: type[M], answer: bytes) -> M:
        try:
            return kind.model_validate_json(answer)
        except ValidationError as error:
            raise NginxError(f"not an answer of admission.js: {error.errors(include_input=False)[0]['msg']}") from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()


def _bodies(epoch: str, name: str, items: Iterable[object]) -> Iterator[str]:
    """Requests of at most `MAX_BODY` bytes that carry all the items (one item is far shorter)."""
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
    return f'{{"epoch":"{epoch}","{name}":[{",".join(items)}]}}'
