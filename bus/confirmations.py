"""What gateways confirm of a revocation: their signed reports, as an operator hears them on the bus.

A report that confirms is signed over the Revoke's hash, the count of the gateway's floors and its nginx's epoch. The
bus can keep one from the operator, and make none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

import structlog

from attestgate.bus import subjects
from attestgate.bus.api import Bus, Message
from attestgate.schemas.admission import open_report
from attestgate.schemas.base import Refusal
from attestgate.schemas.signing import TrustedKeys

log = structlog.get_logger(__name__)
KEPT = 256
"""Confirmations that are kept of one gateway, the newest."""


class Confirmations:
    """What the gateways with these keys, 32 raw bytes each, have confirmed since `heard` was entered."""

    def __init__(self, deployment: str, gateways: Mapping[str, bytes]) -> None:
        self._trusted = {id: TrustedKeys(deployment, {"gateway": {key}}) for id, key in gateways.items()}
        self._revoked: dict[str, dict[bytes, float]] = {id: {} for id in gateways}
        """When each Revoke was confirmed, by the gateway and the command's name; seconds of the monotonic clock."""
        self._news = asyncio.Event()

    @asynccontextmanager
    async def heard(self, bus: Bus) -> AsyncIterator[None]:
        """Listen within. Raises BusError."""
        subscription = await bus.listen(subjects.REPORTS, self._hear)
        try:
            await bus.flush()
            yield
        finally:
            await subscription.close()

    async def of(self, revoke: bytes, *, until: float) -> dict[str, float]:
        """When each gateway confirmed a Revoke, once all have, or at `until`; both by the monotonic clock."""
        while True:
            found = {id: at[revoke] for id, at in self._revoked.items() if revoke in at}
            left = until - time.monotonic()
            if len(found) == len(self._revoked) or left <= 0:
                return found
            self._news.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._news.wait()

    async def _hear(self, message: Message) -> None:
        id = subjects.parse_inbound(message.subject)[1]
        if id not in self._trusted:
            return
        try:
            report = open_report(message.data, id, self._trusted[id])
        except Refusal as refusal:
            # Anybody with that gateway's credential can send one: it confirms nothing.
            log.warning("a report that the gateway did not sign, ignored", gateway=id, reason=str(refusal))
            return
        confirmed = self._revoked[id]
        for revoke in report.revoked:
            confirmed.setdefault(revoke, time.monotonic())
        while len(confirmed) > KEPT:
            del confirmed[next(iter(confirmed))]
        self._news.set()
