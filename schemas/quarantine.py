"""An entry of the dead-letter queue: a message that a worker failed on at every attempt, kept with the reasons."""

from __future__ import annotations

from attestgate.schemas.base import MAX_MESSAGE, Id, Model, Reason, Seconds

BUCKET = "quarantine"
LIMIT = MAX_MESSAGE + 64 * 1024


class Quarantined(Model):
    """The message as received, and what went wrong with it. Its payload is still sealed, as it was on the bus."""

    subject: str
    data: bytes
    attempts: int
    at: Seconds
    worker: Id
    reasons: list[Reason]
