"""What is really published, held against the table: whole stories played in one process, and what a gateway tells."""

from __future__ import annotations

import json

from attestgate.bus import subjects
from attestgate.bus.layout import SUMMARIES
from attestgate.schemas.enrolment import Revoke
from attestgate.schemas.event_data import BY_NAME
from attestgate.schemas.events import Event
from attestgate.schemas.summary import Summary
from tests.support.manager.deployment import Deployment
from tests.support.manager.world import LISTS


def hold_against_the_table(events: list[Event]) -> set[tuple[str, str]]:
    """Every event is listed and its data is what the table says. Returns which were seen."""
    for event in events:
        told = BY_NAME[event.kind, event.what]
        told.data.model_validate_json(json.dumps(event.data))
    return {(event.kind, event.what) for event in events}


async def hold_summaries(deployment: Deployment) -> None:
    """Every readable line in the bucket is a `Summary`, under its own key."""
    bucket = deployment.bus.bucket(SUMMARIES.name)
    keys = await bucket.keys()
    assert keys
    for key in keys:
        entry = await bucket.get(key)
        assert entry is not None and entry.value is not None
        summary = Summary.model_validate_json(entry.value)
        assert (key, summary.body()) == (f"{summary.role}.{summary.id}.{summary.session}", entry.value)


async def test_from_hello_to_the_end(site: Deployment) -> None:
    await site.admitted()
    await site.advance(10)
    await site.until("host", "h1", "rechecked")
    await site.until("app", "a1", "rechecked")
    await site.bus.publish(subjects.inbound("host", "h1", "evidence"), b"garbage")
    await site.until("host", "h1", "dropped")
    await site.order(Revoke(kind="app", id="a1", reason="a test"))
    await site.until("app", "a1", "revoked")
    site.measurement_list.write_bytes((LISTS / "drift.bin").read_bytes())
    await site.advance(10)
    await site.until("host", "h1", "untrusted")
    await site.quiet()
    seen = hold_against_the_table(site.events)
    assert seen >= {
        ("host", what) for what in ("challenged", "granted", "trusted", "rechecked", "untrusted", "dropped")
    }
    assert seen >= {("app", what) for what in ("challenged", "waiting-for-key", "proven", "certified", "admitted")}
    assert ("op", "applied") in seen
    await hold_summaries(site)


async def test_a_host_that_is_refused_falls_silent_or_is_replaced(site: Deployment) -> None:
    site.measurement_list.write_bytes((LISTS / "drift.bin").read_bytes())
    await site.enrol_host()
    host = await site.host()
    await site.until("host", "h1", "refused")
    await host.stop()
    site.measurement_list.write_bytes((LISTS / "clean.bin").read_bytes())
    await site.advance(2)
    host = await site.host()
    await site.until("host", "h1", "trusted")
    await host.stop()
    since = len(site.events)
    await site.advance(2)
    await site.host()
    await site.until("host", "h1", "superseded", since=since)
    await site.quiet()
    assert hold_against_the_table(site.events) >= {("host", "refused"), ("host", "superseded")}
    await hold_summaries(site)
