"""A message that made a worker fail again and again, put aside with the reason so that it never blocks the others."""

from __future__ import annotations

from attestgate.schemas.base import MAX_MESSAGE, Id, Model, Reason, Seconds

BUCKET = "quarantine"
LIMIT = MAX_MESSAGE + 64 * 1024


class Quarantined(Model):
    """The message as it came, and what went wrong with it. Its payload is as sealed as it was on the bus."""

    subject: str
    data: bytes
    attempts: int
    at: Seconds
    worker: Id
    reasons: list[Reason]
