"""What a program sees of attestgate: where it may go, with what, and when that ends."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from attestgate.app_agent.step7_certificate import Credential
from attestgate.app_agent.step8_open import client
from attestgate.schemas.base import Reason
from attestgate.schemas.settings import AppSettings, Measured


@dataclass
class Application:
    """An admitted application. A program is a module with `async def main(application: Application) -> None`.

    `credential` is replaced before its certificate lapses: `client()` follows it by itself; who uses `context` asks for
    it again with each new connection. `ended` is set when trust has ended, `reasons` then say why; half a second later
    the program is cancelled.
    """

    credential: Credential
    gateway: str
    measured: Measured = field(repr=False)
    settings: AppSettings = field(repr=False)
    lease_end: int
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    reasons: list[Reason] = field(default_factory=list)

    @property
    def identity(self) -> str:
        """The name in the certificate, `spiffe://…`."""
        return self.credential.identity

    @property
    def context(self) -> ssl.SSLContext:
        """The TLS context with the present certificate."""
        return self.credential.context

    @property
    def status_file(self) -> Path | None:
        """Where the settings want the program to write what it sees."""
        return self.settings.status_file

    def client(self) -> httpx.AsyncClient:
        """An HTTP client for the controller behind the gateway, always with the present certificate."""
        return client(lambda: self.credential.context, self.gateway, self.measured)
