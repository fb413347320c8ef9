"""Messages that made a worker fail each time: put aside, shown to operators, tried again or dropped by them."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

import structlog

from attestgate.bus.api import Bus, BusError
from attestgate.schemas.base import Reason, Refusal, pack, unpack
from attestgate.schemas.quarantine import BUCKET, LIMIT, Quarantined

log = structlog.get_logger(__name__)


class Quarantine:
    """The bucket of messages put aside, each under the SHA-256 of its subject and bytes."""

    def __init__(self, bus: Bus, worker: str, handle: Callable[[str, bytes], Awaitable[None]]) -> None:
        self._bucket = bus.bucket(BUCKET)
        self._worker = worker
        self._handle = handle

    async def put(self, subject: str, data: bytes, attempts: int, reason: Reason, now: int) -> str | None:
        """Put a message aside; its name, or None where the bucket is full: then it is only dropped."""
        name = hashlib.sha256(subject.encode() + b"\0" + data).hexdigest()
        message = Quarantined(
            subject=subject, data=data, attempts=attempts, at=now, worker=self._worker, reasons=[reason]
        )
        try:
            await self._bucket.put(name, pack(message))
        except BusError as error:
            log.warning("quarantine full", subject=subject, error=str(error))
            return None
        return name

    async def retry(self, name: str) -> None:
        """Handle a message once more; it stays here if that fails again. Raises Refusal with the reason."""
        message = await self._get(name)
        try:
            await self._handle(message.subject, message.data)
        except (Refusal, BusError):
            raise
        except Exception as error:  # the fault that brought it here, most likely
            log.exception("fault", subject=message.subject, message=name)
            raise Refusal.because(
                "quarantine.again",
                message.subject,
                expected="a message that can be handled now",
                found=type(error).__name__,
                action="see the worker's log; drop the message if it is of no use",
            ) from None
        await self.drop(name)

    async def _get(self, name: str) -> Quarantined:
        entry = await self._bucket.get(name)
        if entry is None or entry.value is None:
            raise Refusal.because(
                "quarantine.unknown",
                "message",
                expected="the name of a message in quarantine",
                found=name,
                action="see: attestgate quarantine list",
            )
        return unpack(Quarantined, entry.value, limit=LIMIT)

    async def drop(self, name: str) -> None:
        """Forget a message."""
        await self._bucket.delete(name)
