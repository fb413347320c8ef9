"""The client of Intel's legacy attestation service (IAS) for EPID quotes.

Source: "Attestation Service for Intel SGX: API Documentation", revision 6 (API version 4): `GET sigrl/{gid}` and
`POST report`, authenticated by a subscription key. The service is closed: what answers is a simulated one.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from secrets import token_hex
from urllib.parse import unquote_to_bytes

from attestgate.manager.attestation.fetch import Service
from attestgate.manager.verification.epid.report import MAX_REPORT

MAX_SIG_RL = 1024 * 1024
_PREFIX = "/attestation/v4"


@dataclass(frozen=True)
class Answer:
    """A report as signed, its signature, and the signing certificates (PEM, leaf first)."""

    report: bytes
    signature: bytes
    certificates: bytes
    nonce: str
    """What was sent with the request: the report must repeat it."""


@dataclass(frozen=True)
class Ias:
    """A service at `url`, its base up to `/attestation/v4`, without it or with it."""

    service: Service
    url: str
    patience_s: float = 20.0
    nonce: Callable[[], str] = lambda: token_hex(16)

    async def report(self, quote: bytes) -> Answer:
        """A fresh report on a quote. Raises Refusal (`ias.unavailable`, `ias.answer`)."""
        nonce = self.nonce()
        body = {"isvEnclaveQuote": base64.b64encode(quote).decode(), "nonce": nonce}
        url = self._at("report")
        async with self._in_time(url):
            response = await self.service.ask("POST", url, limit=MAX_REPORT, body=body)
        try:
            signature = base64.b64decode(response.headers["X-IASReport-Signature"], validate=True)
            certificates = unquote_to_bytes(response.headers["X-IASReport-Signing-Certificate"])
        except (KeyError, binascii.Error, ValueError) as error:
            found = f"{type(error).__name__}: {error}"
            raise self.service.answer(url, "the headers of a signed report", found) from None
        return Answer(response.content, signature, certificates, nonce)

    async def sig_rl(self, group: str) -> bytes:
        """The signature revocation list of an EPID group (hexadecimal, big-endian); empty if nothing is revoked.

        Raises Refusal (`ias.unavailable`, `ias.answer`): an unknown group is HTTP 404.
        """
        url = self._at(f"sigrl/{group}")
        async with self._in_time(url):
            response = await self.service.ask("GET", url, limit=MAX_SIG_RL)
        try:
            return base64.b64decode(response.content, validate=True)
        except (binascii.Error, ValueError) as error:
            raise self.service.answer(url, "a list in base64", str(error)) from None

    def _at(self, path: str) -> str:
        return f"{self.url.rstrip('/').removesuffix(_PREFIX)}{_PREFIX}/{path}"

    @asynccontextmanager
    async def _in_time(self, url: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self.patience_s):
                yield
        except TimeoutError:
            raise self.service.unavailable(url, f"no whole answer within {self.patience_s} s") from None
