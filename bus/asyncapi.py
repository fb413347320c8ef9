"""The AsyncAPI 3 document of what an observer sees: events, and the readable line beside each session.

`python -m attestgate.bus.asyncapi > docs/asyncapi.json` generates it from the models (JSON, which is also YAML); a test
fails when it is out of date, and another validates what is really published against it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from attestgate.bus import subjects
from attestgate.bus.layout import SUMMARIES
from attestgate.schemas.base import Model
from attestgate.schemas.event_data import EVENTS, Told
from attestgate.schemas.events import CLOUDEVENTS_TYPE, Event
from attestgate.schemas.summary import Summary

VERSION = "3.0.0"
SCHEMAS = "#/components/schemas"
ABOUT = """What can be observed of attestgate on its bus (NATS). Events are JSON in CloudEvents 1.0 binary mode, kept in
the streams ATTEST_EVENTS and ATTEST_ALARMS; every session also has a readable line in the key-value bucket `summaries`.
No decision depends on either, and neither holds a secret. Agents, gateways and managers exchange sealed or signed
msgpack: docs/how-it-works.md."""


def document() -> dict[str, Any]:
    """The whole document."""
    schemas: dict[str, Any] = {}
    channels = {"summaries": _summaries(schemas)}
    for kind in sorted({kind for event in EVENTS for kind in event.kinds}):
        events = [event for event in EVENTS if kind in event.kinds]
        channels[f"events-{kind}"] = {
            "address": subjects.EVENTS + f".{kind}." + ("{host}.{id}" if kind == "app" else "{id}") + ".{what}",
            "title": f"Events of kind {kind}",
            "parameters": {
                **({"host": {"description": "The id of the host that it runs on."}} if kind == "app" else {}),
                "id": {"description": "The id of the event's subject."},
                "what": {"description": "What happened.", "enum": sorted(event.what for event in events)},
            },
            "messages": {event.what: _message(kind, event, schemas) for event in events},
        }
    operations = {f"see-{name}": {"action": "receive", "channel": {"$ref": f"#/channels/{name}"}} for name in channels}
    return {
        "asyncapi": VERSION,
        "info": {
            "title": "attestgate: observable events",
            "version": "1",
            "description": " ".join(ABOUT.split()),
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"schemas": schemas},
    }


def _message(kind: str, event: Told, schemas: dict[str, Any]) -> dict[str, Any]:
    """One event: the common envelope, with this event's name and data."""
    name = f"{kind}-{event.what}"
    narrowed = {
        "kind": {"const": kind},
        "what": {"const": event.what},
        "data": {"$ref": _add(event.data, schemas)},
    }
    return {
        "name": f"{CLOUDEVENTS_TYPE}.{kind}.{event.what}",
        "title": name,
        "summary": event.means,
        "headers": {"$ref": _add_headers(schemas)},
        "payload": {"allOf": [{"$ref": _add(Event, schemas)}, {"type": "object", "properties": narrowed}]},
        "correlationId": {"location": "$message.payload#/session", "description": "The session."},
    }


def _summaries(schemas: dict[str, Any]) -> dict[str, Any]:
    return {
        "address": SUMMARIES.subject("{role}.{id}.{session}"),
        "title": "The bucket `summaries`",
        "description": "The newest state of each session. A message without a payload is a deletion.",
        "parameters": {
            "role": {"enum": ["host", "app"]},
            "id": {"description": "The id of the host or application."},
            "session": {"description": "The session's id."},
        },
        "messages": {"summary": {"title": "summary", "payload": {"$ref": _add(Summary, schemas)}}},
    }


def _add(model: type[Model], schemas: dict[str, Any]) -> str:
    """Put a model's JSON schema, and those it refers to, among the components; return its reference."""
    schema = model.model_json_schema(ref_template=f"{SCHEMAS}/{{model}}", mode="serialization")
    schemas.update(schema.pop("$defs", {}))
    schemas[model.__name__] = schema
    return f"{SCHEMAS}/{model.__name__}"


def _add_headers(schemas: dict[str, Any]) -> str:
    """The CloudEvents attributes as headers (NATS protocol binding), and the id by which the stream drops a repeat."""
    always = ["specversion", "id", "type", "source", "subject", "time", "datacontenttype"]
    properties: dict[str, Any] = {f"ce-{name}": {"type": "string"} for name in (*always, "correlationid")}
    properties["ce-specversion"]["const"] = "1.0"
    properties["ce-time"]["format"] = "date-time"
    properties["Nats-Msg-Id"] = {"type": "string", "description": "Makes a repeat in its stream a no-op."}
    schemas["EventHeaders"] = {
        "type": "object",
        "properties": properties,
        "required": [f"ce-{name}" for name in always],
    }
    return f"{SCHEMAS}/EventHeaders"


def text() -> str:
    """The document as docs/asyncapi.json has it."""
    return json.dumps(document(), indent=1, sort_keys=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
