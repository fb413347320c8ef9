"""Alarms of a worker about the decision log: in its own log, and as events."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Sequence

import structlog

from attestgate.bus.api import BusError, StoredMessage
from attestgate.manager.events.emitter import Emit, plain
from attestgate.schemas.base import Reason, Refusal

log = structlog.get_logger(__name__)
MAX_LEAVES = 16


class Alarms:
    """One worker's reporter. An event that cannot be published is not retried: the worker's own log has it."""

    def __init__(self, worker: str, emit: Emit) -> None:
        self._worker = worker
        self._emit = emit

    async def inconsistent(self, reasons: Sequence[Reason]) -> None:
        """The head on the bus does not extend the one seen before."""
        log.error("decision log inconsistent", reasons=[reason.sentence() for reason in reasons])
        await _sent(self._emit("manager", self._worker, "log-inconsistent", reasons=plain(reasons)))

    async def stranger(self, stored: StoredMessage, refusal: Refusal) -> None:
        """The stream holds what no manager signed."""
        name = hashlib.sha256(stored.data).hexdigest()
        log.error("foreign entry in the decision log", sequence=stored.sequence, message=name)
        more = {"message": name, "sequence": stored.sequence, "reasons": plain(refusal.reasons)}
        await _sent(self._emit("manager", self._worker, "log-stranger", **more))

    async def overdue(self, leaves: Sequence[bytes]) -> None:
        """Entries that this worker handed in are not in the tree."""
        named = [leaf.hex() for leaf in leaves]
        log.error("decision log entries overdue", leaves=named)
        more = {"leaves": named[:MAX_LEAVES], "count": len(named)}
        await _sent(self._emit("manager", self._worker, "log-overdue", **more))


async def _sent(event: Awaitable[None]) -> None:
    try:
        await event
    except BusError as error:
        log.warning("event not published", error=str(error))
