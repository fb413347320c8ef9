"""Every host is a witness of the decision log: it writes each new head to its own log, and complains of one that goes
back. The head comes on the session's channel; its signature stands in what is written, for whoever asks later.
"""

from __future__ import annotations

import structlog

from attestgate.schemas.base import Refusal
from attestgate.schemas.checkpoint import Checkpoint, open_checkpoint

log = structlog.get_logger(__name__)


class Witness:
    """What one agent has been shown of the log. `managers`: the identities that it pins."""

    def __init__(self, managers: set[bytes]) -> None:
        self._managers = managers
        self.seen: Checkpoint | None = None

    def hear(self, note: str) -> None:
        """Take note of a head; an empty one says that there is none yet."""
        if not note:
            return
        try:
            head = open_checkpoint(note, self._managers)
        except Refusal as refusal:
            log.error("a head of the decision log is not believed", reason=refusal.reasons[0].sentence())
            return
        before = self.seen
        if before is None or head.size > before.size:
            self.seen = head
            log.info("decision log", head=note)
        elif head.size == before.size and head.root != before.root:
            # Two workers may be a batch apart, so a smaller size alone says nothing: two roots of one size do.
            log.error("the decision log tells two stories", head=note, before_root=before.root.hex())
