"""Events, for people to watch with `nats sub 'attest.v1.events.>'`. Readable JSON, CloudEvents headers, no secrets.

No decision depends on an event. schemas/event_data.py lists every event there is, and what it holds.
"""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import quote

from pydantic import JsonValue

from attestgate.schemas.base import Model, Seconds

CLOUDEVENTS_TYPE = "attestgate.v1"
MAX_EVENT = 16 * 1024
"""Largest event as JSON, in bytes."""
_AS_THEY_ARE = "!#$&'()*+,/:;<=>?@[\\]^`{|}"
"""Besides letters, digits and -._~: all of printable ASCII but space, double quote and percent."""


class Event(Model):
    """One thing that happened. `id` is unique; `session` ties the events of one session together.

    `number` counts the events of one session from 1, so that those of several streams have an order and a gap shows;
    `host` is where an application runs.
    """

    id: str
    kind: str
    subject: str
    host: str | None = None
    what: str
    at: Seconds
    session: str | None = None
    number: int | None = None
    state: str | None = None
    before: str | None = None
    simulated: bool | None = None
    source: str
    data: dict[str, JsonValue] = {}

    @property
    def name(self) -> str:
        """The name of its subject on the bus."""
        return f"{self.host}.{self.subject}" if self.host else self.subject

    def headers(self) -> dict[str, str]:
        """CloudEvents 1.0 context attributes as NATS headers (NATS protocol binding, binary content mode).

        `correlationid` is the extension of that name: it ties the events of one session together.
        """
        attributes = {
            "specversion": "1.0",
            "id": self.id,
            "type": f"{CLOUDEVENTS_TYPE}.{self.kind}.{self.what}",
            "source": self.source,
            "subject": self.subject,
            "time": datetime.fromtimestamp(self.at, UTC).isoformat().replace("+00:00", "Z"),
            "datacontenttype": "application/json",
            **({"correlationid": self.session} if self.session else {}),
        }
        return {f"ce-{name}": quote(value, safe=_AS_THEY_ARE) for name, value in attributes.items()}

    def body(self) -> bytes:
        """The event as JSON."""
        return self.model_dump_json(exclude_none=True).encode()
