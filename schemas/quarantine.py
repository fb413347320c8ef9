"""An entry of the dead-letter queue: a message that a worker failed on at every attempt, kept with the reasons."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from attestgate.schemas.base import MAX_MESSAGE, Count, Id, Model, Reasons, Seconds, Text

BUCKET = "quarantine"
LIMIT = MAX_MESSAGE + 64 * 1024


class Quarantined(Model):
    """The message as received, and what went wrong with it. Its payload is still sealed, as it was on the bus."""

    subject: Text
    data: Annotated[bytes, Field(max_length=LIMIT)]
    attempts: Count
    at: Seconds
    worker: Id
    reasons: Annotated[Reasons, Field(min_length=1)]
