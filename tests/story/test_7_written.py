"""What the run wrote: events that a person can read, and no secret anywhere."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import AsyncIterator

import pytest

from attestgate.bus import subjects
from attestgate.bus.api import Message
from attestgate.compose.demo.wiretap import Wiretap
from attestgate.compose.local.stack import Stack
from attestgate.schemas.event_data import BY_NAME
from attestgate.schemas.events import Event
from tests.story.secrets import at_rest, forms, in_records, key_files, leaks, overheard, written
from tests.support.story import APPS, HOST, restart, through
from tests.support.threats import rows, threat

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

JUDGED = {"waiting-for-key", "granted", "trusted", "proven", "certified", "admitted", "rechecking", "rechecked",
          "delivering-key", "key-delivered", "untrusted"}  # fmt: skip
"""What a session tells only after its quote was judged."""


async def every_event(stack: Stack) -> AsyncIterator[tuple[Message, Event]]:
    """All that the bus keeps of events."""
    seen = 0
    async for message in stack.bus.history(f"{subjects.EVENTS}.>"):
        seen += 1
        yield message, Event.model_validate_json(message.data)
    assert seen > 20


async def test_every_event_is_where_it_says_and_what_it_says(stack: Stack) -> None:
    async for message, event in every_event(stack):
        assert message.subject == subjects.event(event.kind, event.name, event.what)
        assert event.source.startswith("attestgate/")
        assert BY_NAME[event.kind, event.what].data.model_validate_json(json.dumps(event.data)) is not None


async def test_every_event_carries_cloudevents_headers(stack: Stack) -> None:
    ids = set()
    async for message, event in every_event(stack):
        wanted = event.headers()
        assert {name: message.headers.get(name) for name in wanted} == wanted
        assert wanted["ce-specversion"] == "1.0" and wanted["ce-time"].endswith("Z")
        ids.add(event.id)
    assert len(ids) > 20


async def test_everything_that_rests_on_a_simulated_platform_says_so(stack: Stack) -> None:
    simulated = set()
    async for _, event in every_event(stack):
        if event.kind in ("host", "app") and event.session is not None and event.what in JUDGED:
            assert event.simulated is True, event
            simulated.add(event.subject)
        outcome = event.data.get("outcome")
        assert not isinstance(outcome, dict) or outcome["simulated"] is True
    assert simulated >= {HOST, *APPS}


@threat(rows.BUS_READS)
async def test_no_secret_is_anywhere_but_in_its_file(stack: Stack) -> None:
    async with Wiretap(stack.server.url) as tap:
        transcripts = {s: t2 for app in APPS for s, t2 in (await overheard(stack, tap, app)).items()}
        await through(stack, *APPS)
        kept, live = at_rest(stack), await in_records(stack, transcripts)
        assert len(kept) >= 25
        assert any(name.endswith(" k") for name in live)
        assert sum(" K of " in name for name in live) == len(APPS)
        assert leaks(kept | live, written(stack)) == []
    await restart(stack, *APPS)


async def test_such_a_search_would_find_one(stack: Stack) -> None:
    kept = at_rest(stack)
    found = leaks(kept, ((path.name, path.read_bytes()) for path in key_files(stack)))
    named = {entry.split(" in ")[0] for entry in found}
    assert {"keys/manager/salt", "keys/manager/storage-keys.json 1", "keys/manager/identity.pem private"} <= named
    for secret in (os.urandom(32), os.urandom(33), os.urandom(34)):
        for before in range(4):
            around = os.urandom(before) + secret + os.urandom(5)
            for text in (around, around.hex().encode(), base64.b64encode(around), base64.urlsafe_b64encode(around)):
                assert any(form in text for form in forms(secret)), (len(secret), before)


@threat(rows.SECRETS_ON_DISK)
async def test_secrets_at_rest_are_for_their_owner_alone(stack: Stack) -> None:
    files = {name.rsplit(" ", 1)[0] if " " in name else name for name in at_rest(stack)}
    assert len(files) >= 20
    for name in files:
        path = stack.plan.folder / name
        assert path.stat().st_mode & 0o077 == 0, path
