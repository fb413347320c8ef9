"""The dead-letter queue: messages on which a worker failed at every attempt, for operators to list, retry or drop.

Each sender has room for `ROOM` of them, so that nobody's pushes out, or keeps out, another's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

import structlog

from attestgate.bus.api import Bus, BusError
from attestgate.schemas.base import Reason, Refusal, pack, unpack
from attestgate.schemas.quarantine import BUCKET, LIMIT, Quarantined

log = structlog.get_logger(__name__)
ROOM = 2
"""Messages of one sender that are kept: the first ones, since what follows is most likely the same fault."""


class Quarantine:
    """The bucket of quarantined messages. Each is named by the SHA-256 of its subject and bytes; its key is the subject
    without the step, which is its sender, then its name."""

    def __init__(self, bus: Bus, worker: str, handle: Callable[[str, bytes], Awaitable[None]]) -> None:
        self._bucket = bus.bucket(BUCKET)
        self._worker = worker
        self._handle = handle

    async def put(self, subject: str, data: bytes, attempts: int, reason: Reason, now: int) -> str | None:
        """Quarantine a message; returns its name, or None if there is no room for it: then it is only dropped."""
        name = hashlib.sha256(subject.encode() + b"\0" + data).hexdigest()
        message = Quarantined(
            subject=subject, data=data, attempts=attempts, at=now, worker=self._worker, reasons=[reason]
        )
        sender = subject.rpartition(".")[0]
        try:
            kept = await self._bucket.keys(f"{sender}.*")
            if len(kept) >= ROOM and f"{sender}.{name}" not in kept:
                log.warning("quarantine: no room for more of this sender, message dropped", subject=subject)
                return None
            await self._bucket.put(f"{sender}.{name}", pack(message))
        except BusError as error:
            log.warning("quarantine failed, message dropped", subject=subject, error=str(error))
            return None
        return name

    async def retry(self, name: str) -> None:
        """Handle a message once more; it stays in quarantine if that fails. Raises Refusal with the reason."""
        message = await self._get(name)
        try:
            await self._handle(message.subject, message.data)
        except (Refusal, BusError):
            raise
        except Exception as error:  # most likely the fault that put it in quarantine
            log.exception("fault", subject=message.subject, message=name)
            raise Refusal.because(
                "quarantine.again",
                message.subject,
                expected="a message that this worker can handle",
                found=type(error).__name__,
                action="see the worker's log; drop the message if it is not needed",
            ) from None
        await self.drop(name)

    async def _get(self, name: str) -> Quarantined:
        entries = [await self._bucket.get(key) for key in await self._keys(name)]
        values = [entry.value for entry in entries if entry is not None and entry.value is not None]
        if not values:
            raise Refusal.because(
                "quarantine.unknown",
                "message",
                expected="the name of a message in quarantine",
                found=name,
                action="list them: attestgate quarantine list",
            )
        return unpack(Quarantined, values[0], limit=LIMIT)

    async def drop(self, name: str) -> None:
        """Delete a message; one that is not there is no error."""
        for key in await self._keys(name):
            await self._bucket.delete(key)

    async def _keys(self, name: str) -> list[str]:
        return [key for key in await self._bucket.keys() if key.rpartition(".")[2] == name]
