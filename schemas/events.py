"""Events: what a person watches with `nats sub 'attest.v1.events.>'`. Readable JSON, CloudEvents headers, no secrets.

Nothing decides on an event.
"""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import JsonValue

from schemas.base import Model, Seconds

CLOUDEVENTS_TYPE = "attestgate.v1"


class Event(Model):
    """One thing that happened. `id` is unique; `session` ties the events of one session together."""

    id: str
    kind: str
    subject: str
    what: str
    at: Seconds
    session: str | None = None
    state: str | None = None
    before: str | None = None
    simulated: bool | None = None
    source: str
    data: dict[str, JsonValue] = {}

    def headers(self) -> dict[str, str]:
        """CloudEvents 1.0 headers, NATS binding in binary mode."""
        return {
            "ce-specversion": "1.0",
            "ce-id": self.id,
            "ce-type": f"{CLOUDEVENTS_TYPE}.{self.kind}.{self.what}",
            "ce-source": self.source,
            "ce-subject": self.subject,
            "ce-time": datetime.fromtimestamp(self.at, UTC).isoformat().replace("+00:00", "Z"),
            "content-type": "application/json",
            **({"correlationid": self.session} if self.session else {}),
        }

    def body(self) -> bytes:
        """The event as JSON."""
        return self.model_dump_json(exclude_none=True).encode()
