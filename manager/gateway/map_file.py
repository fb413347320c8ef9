"""Admissions at an nginx without njs: a map file, and a reload that closes what was served under the previous one.

The file follows the prototype's `nginx_client_crts`: a regular expression for each rule of each admitted certificate,
keyed by serial. The entries themselves are in the file too, as comments, so that a restarted worker can read what nginx
holds. Unlike njs, it cannot bind the certificate's hash (the CA's serials are unique), nor end an admission while no
worker runs.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from attestgate.manager.gateway.dictionary import (
    DictionaryContents,
    Health,
    NginxError,
    OtherEpoch,
    Rejection,
    RequestRefusal,
)
from attestgate.manager.gateway.entries import ENTRY, CertificateEntry, DictionaryEntry
from attestgate.manager.local.atomic_file import atomic_write
from attestgate.schemas.clocks import stale

_MARK = "# "
_PLAIN = r"(?:[\w~!$&'()*+,=:@-]|%(?i:2[0-246-9a-c]|3[ace]|40|5[bde]|60|7[b-d]))"
_SEGMENT = rf"(?:{_PLAIN}(?:\.|{_PLAIN})*)"
"""One segment of a target in plain form, as in compose/nginx/admission.js."""
_RELOADED_S = 5.0


class MapFile:
    """The file and the nginx that includes it; `nginx.pid` stands beside it. Every method raises NginxError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def health(self) -> Health:
        """The master process is the epoch. Removes entries that have expired or are stale: nginx does not do it."""
        entries, now = self._read(), time.time()
        over = [key for key, entry in entries.items() if entry.until <= now or stale(entry.since, now)]
        if over:
            await self._write({key: entry for key, entry in entries.items() if key not in over})
        return Health(epoch=self._epoch(), entries=len(entries) - len(over), free=0)

    async def contents(self) -> DictionaryContents:
        """Every entry."""
        entries = {key: entry.model_dump_json() for key, entry in self._read().items()}
        return DictionaryContents(epoch=self._epoch(), entries=entries)

    async def put(self, epoch: str, entries: Mapping[str, DictionaryEntry]) -> None:
        """Write entries, and return when no nginx process uses the previous file any more."""
        if entries:
            await self._change(epoch, {**self._read(), **entries})

    async def remove(self, epoch: str, keys: Sequence[str]) -> None:
        """Remove keys in the same way."""
        before = self._read()
        if set(keys) & before.keys():
            await self._change(epoch, {key: entry for key, entry in before.items() if key not in keys})

    async def refusals(self) -> list[RequestRefusal]:
        """None: a stock nginx does not count them, only its access log shows them."""
        return []

    async def rejections(self) -> list[Rejection]:
        """None: without njs, only error.log shows them."""
        return []

    async def _change(self, epoch: str, entries: Mapping[str, DictionaryEntry]) -> None:
        if epoch != self._epoch():
            raise OtherEpoch("nginx was restarted")
        await self._write(entries)

    async def _write(self, entries: Mapping[str, DictionaryEntry]) -> None:
        try:
            atomic_write(self._path, "".join(_lines(entries)).encode())
        except OSError as error:
            raise NginxError(f"{self._path}: {error.strerror}") from None
        await self._reload()

    async def _reload(self) -> None:
        master = self._master()
        before = _children(master)
        try:
            os.kill(master, signal.SIGHUP)
            async with asyncio.timeout(_RELOADED_S):
                while before & _children(master):  # noqa: ASYNC110  only its parent is notified when a process ends
                    await asyncio.sleep(0.01)
        except OSError as error:
            raise NginxError(f"nginx {master}: {error.strerror}") from None
        except TimeoutError:
            raise NginxError("workers from before the reload are still running: set worker_shutdown_timeout") from None

    def _read(self) -> dict[str, DictionaryEntry]:
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line.removeprefix(_MARK)) for line in lines if line.startswith(_MARK)]
            return {key: ENTRY.validate_json(value) for key, value in rows}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise NginxError(f"{self._path}: {error}") from None

    def _master(self) -> int:
        try:
            return int((self._path.parent / "nginx.pid").read_text(encoding="ascii"))
        except (OSError, ValueError):
            raise NginxError(f"no nginx is running next to {self._path}") from None

    def _epoch(self) -> str:
        master = self._master()
        try:
            started = Path(f"/proc/{master}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[19]
        except OSError:
            raise NginxError(f"no nginx is running next to {self._path}") from None
        return hashlib.sha256(f"{master} {started}".encode()).hexdigest()[:32]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None


def _lines(entries: Mapping[str, DictionaryEntry]) -> list[str]:
    # Nothing here can break out of its line or its quotes: JSON escapes line breaks, and neither a rule nor an identity
    # can hold a quote, a backslash or a line break (schemas/admission.py, Rule and SpiffeId).
    found = [f"{_MARK}{json.dumps([key, entry.model_dump_json()])}\n" for key, entry in entries.items()]
    for key, entry in entries.items():
        if isinstance(entry, CertificateEntry) and entry.host_key in entries:
            serial = key.removeprefix("cert.").upper()
            found += [f'"~^{serial} {expression(rule)}" "{entry.identity}";\n' for rule in entry.allow]
    return found


def expression(rule: str) -> str:
    """A rule as a regular expression (PCRE) over `METHOD TARGET`."""
    methods, path = rule.split(" ")
    method = "[A-Z]+" if methods == "*" else f"(?:{methods.replace(',', '|')})"
    if path.endswith("/**"):
        return rf"{method} {re.escape(path[:-3])}(?:/{_SEGMENT})*/?(?:\?|$)"
    return rf"{method} {re.escape(path)}(?:\?|$)"


def _children(master: int) -> set[int]:
    try:
        return {int(pid) for pid in Path(f"/proc/{master}/task/{master}/children").read_text(encoding="ascii").split()}
    except OSError:
        raise NginxError(f"nginx {master} is no longer running") from None
