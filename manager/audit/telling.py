"""What a worker tells of the decision log when something is wrong with it: in its log, and as events."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence

import structlog

from bus.api import BusError, Stored
from schemas.base import Reason, Refusal

log = structlog.get_logger(__name__)
Emit = Callable[..., Awaitable[None]]
MAX_LEAVES = 16


class Telling:
    """The mouth of one worker. A bus that does not take an event changes nothing: the worker's own log has it."""

    def __init__(self, worker: str, emit: Emit) -> None:
        self._worker = worker
        self._emit = emit

    async def inconsistent(self, reasons: Sequence[Reason]) -> None:
        """The head on the bus does not go on from the one seen before."""
        log.error("the decision log does not fit", reasons=[reason.sentence() for reason in reasons])
        try:
            await self._emit("manager", self._worker, "log-inconsistent", reasons=_plain(reasons))
        except BusError as error:
            _lost(error)

    async def stranger(self, stored: Stored, refusal: Refusal) -> None:
        """The stream holds what no manager signed."""
        name = hashlib.sha256(stored.data).hexdigest()
        log.error("a stranger's entry in the decision log", sequence=stored.sequence, message=name)
        try:
            await self._emit(
                "manager",
                self._worker,
                "log-stranger",
                message=name,
                sequence=stored.sequence,
                reasons=_plain(refusal.reasons),
            )
        except BusError as error:
            _lost(error)

    async def overdue(self, leaves: Sequence[bytes]) -> None:
        """Entries that this worker handed in are not in the tree."""
        named = [leaf.hex() for leaf in leaves]
        log.error("decisions are not in the log", leaves=named)
        try:
            await self._emit("manager", self._worker, "log-overdue", leaves=named[:MAX_LEAVES], count=len(named))
        except BusError as error:
            _lost(error)


def _plain(reasons: Sequence[Reason]) -> list[dict[str, str]]:
    return [reason.model_dump() for reason in reasons]


def _lost(error: BusError) -> None:
    log.warning("an event was not taken", error=str(error))
