"""What a program sees of attestgate: where it may go, with what, and when that ends."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from app_agent.step8_open import client
from schemas.base import Reason
from schemas.settings import Measured


@dataclass
class Application:
    """An admitted application. A program is a module with `async def main(application: Application) -> None`.

    `ended` is set when trust has ended, `reasons` then say why; the program is cancelled a second later.
    """

    identity: str
    gateway: str
    context: ssl.SSLContext = field(repr=False)
    measured: Measured = field(repr=False)
    lease_end: int
    status_file: Path | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    reasons: list[Reason] = field(default_factory=list)

    def client(self) -> httpx.AsyncClient:
        """An HTTP client for the controller behind the gateway, with this enclave's certificate."""
        return client(self.context, self.gateway, self.measured)
