"""Every host is a witness of the decision log: it logs each new head, and reports two heads that contradict each other.

The head arrives on the session's channel; its signature is logged with it, so that it can be verified later.
"""

from __future__ import annotations

import structlog

from attestgate.schemas.base import Refusal
from attestgate.schemas.checkpoint import Checkpoint, open_checkpoint

log = structlog.get_logger(__name__)


class Witness:
    """The log as one agent has seen it. `managers`: the identities that it pins."""

    def __init__(self, managers: set[bytes]) -> None:
        self._managers = managers
        self.seen: Checkpoint | None = None

    def hear(self, note: str) -> None:
        """Take a head; an empty one means that there is none yet."""
        if not note:
            return
        try:
            head = open_checkpoint(note, self._managers)
        except Refusal as refusal:
            log.error("decision log head refused", reason=refusal.reasons[0].sentence())
            return
        before = self.seen
        if before is None or (head.tree, head.size) > (before.tree, before.size):
            self.seen = head
            log.info("decision log", head=note)
        elif (head.tree, head.size) == (before.tree, before.size) and head.root != before.root:
            # Two workers may be a batch apart, so a smaller size alone proves nothing: two roots of one size do.
            log.error("decision log is inconsistent: two heads of one size", head=note, before_root=before.root.hex())
