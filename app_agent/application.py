"""What a program sees of attestgate: the gateway, its credential, and when trust ends."""

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

    `credential` is replaced before its certificate expires: `client()` follows it automatically; code that uses
    `context` must read it again for each new connection. `ended` is set when trust has ended, `reasons` then say why;
    half a second later the program is cancelled.
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
        """The TLS context with the current certificate."""
        return self.credential.context

    @property
    def status_file(self) -> Path | None:
        """The file in which the program may record what it sees, from the settings."""
        return self.settings.status_file

    def client(self) -> httpx.AsyncClient:
        """An HTTP client for the controller behind the gateway, always with the current certificate."""
        return client(lambda: self.credential.context, self.gateway, self.measured)
