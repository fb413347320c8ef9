"""The decision log as the bus shows it now, whole: for those who check it."""

from __future__ import annotations

from dataclasses import dataclass

from attestgate.bus.api import Bus, StoredMessage
from attestgate.bus.layout import LOG, TREE
from attestgate.manager.audit.head import HEAD, Head, leaves_from, open_head
from attestgate.schemas.base import Refusal
from attestgate.schemas.checkpoint import Checkpoint


@dataclass(frozen=True)
class LogCopy:
    """A head, all leaf hashes of its tree, and what the stream holds. `note` is the head as it was signed."""

    note: str
    checkpoint: Checkpoint
    leaves: list[bytes]
    stored: list[StoredMessage]

    def index(self) -> dict[bytes, int]:
        """The index of each leaf hash."""
        return {leaf: number for number, leaf in enumerate(self.leaves)}


async def read_head(bus: Bus, signers: set[bytes]) -> str:
    """The signed head alone. Raises Refusal (`log.*`, `signature.*`), BusError."""
    head, _ = await _head(bus, signers)
    return head.note


async def read_log(bus: Bus, signers: set[bytes]) -> LogCopy:
    """All of it. Raises Refusal (`log.*`, `signature.*`) for a head or tree that cannot be read, BusError."""
    head, checkpoint = await _head(bus, signers)
    leaves = await leaves_from(bus, 0, head, checkpoint.size)
    stored: list[StoredMessage] = []
    after, more = 0, True
    while more:
        page, more = await bus.page(LOG.name, after)
        stored += page
        after = page[-1].sequence if page else after
    return LogCopy(head.note, checkpoint, leaves, stored)


async def _head(bus: Bus, signers: set[bytes]) -> tuple[Head, Checkpoint]:
    entry = await bus.bucket(TREE.name).get(HEAD)
    if entry is None or entry.value is None:
        raise Refusal.because(
            "log.none",
            "decision log",
            expected="a head in the bucket log",
            found="no head",
            action="start a manager worker; if there was a log before, docs/decision-log.md says what to do",
        )
    return open_head(entry.value, signers)
