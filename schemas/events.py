"""Events, for people to watch with `nats sub 'attest.v1.events.>'`. Readable JSON, CloudEvents headers, no secrets.

No decision depends on an event. schemas/event_data.py lists every event there is, and what it holds. A gateway may
store anything under its own name, so a reader leaves out what is no event (`read_event`) and shows a reason that is
none as it stands (`reasons_of`).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from pydantic import JsonValue, ValidationError

from attestgate.schemas.base import Count, Label, Model, Reason, Refusal, Seconds, Text, parse_json, shown

CLOUDEVENTS_TYPE = "attestgate.v1"
MAX_EVENT = 32 * 1024
"""Largest event in bytes. What a verdict may have more of, unknown entries, is cut first (event_data.entries_told)."""
MAX_GATEWAY_EVENT = 16 * 1024
"""The same of a gateway, which names one certificate or host at a time."""
_AS_THEY_ARE = "!#$&'()*+,/:;<=>?@[\\]^`{|}"
"""Besides letters, digits and -._~: all of printable ASCII but space, double quote and percent."""


class Event(Model):
    """One thing that happened. `id` is unique; `session` ties the events of one session together.

    `number` counts the events of one session from 1, so that those of several streams have an order and a gap shows;
    `host` is where an application runs.
    """

    id: Label
    kind: Label
    subject: Label
    host: Label | None = None
    what: Label
    at: Seconds
    session: Label | None = None
    number: Count | None = None
    state: Label | None = None
    before: Label | None = None
    simulated: bool | None = None
    source: Text
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
        """The event as JSON; of its data without the largest, where it would be longer than an event may be."""
        return self.within(largest(self.kind))

    def within(self, room: int) -> bytes:
        """The event as JSON in `room` bytes: its largest data are left out, and `cut` says how many bytes it had."""
        body = self.model_dump_json(exclude_none=True).encode()
        size, data = len(body), dict(self.data)
        while data and len(body) > room:
            del data[max(data, key=lambda name: len(str(data[name])))]
            body = self.model_copy(update={"data": {**data, "cut": size}}).model_dump_json(exclude_none=True).encode()
        return body


def largest(kind: str) -> int:
    """The largest event of a kind of subject, in bytes."""
    return MAX_GATEWAY_EVENT if kind == "gateway" else MAX_EVENT


def read_event(data: bytes, *, source: str) -> Event:
    """An event, if it is one. Raises Refusal (`file.*`); `source` is named in it."""
    event = parse_json(Event, data, source=source, limit=MAX_EVENT)
    if len(data) > largest(event.kind):
        raise Refusal.because(
            "file.size",
            source,
            expected=f"at most {largest(event.kind)} bytes",
            found=f"{len(data)} bytes",
            action="find out who publishes there",
        )
    return event


def reasons_of(event: Event, key: str = "reasons") -> list[Reason]:
    """The reasons in an event; what is none is shown as it stands, in one that says so."""
    found = event.data.get(key)
    return [reason_of(value) for value in found] if isinstance(found, list) else []


def reason_of(value: Any) -> Reason:
    """A reason from an event's data; what is none is shown as it stands, in one that says so."""
    try:
        return Reason.model_validate(value)
    except ValidationError:
        return Reason(
            code="event.reason",
            field="reason",
            expected="a reason: code, field, expected, found, action",
            found=shown(value),
            action="find out who publishes there",
        )
