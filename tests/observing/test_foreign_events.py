"""Whatever is stored as an event: no reader ends by it, tries it again for ever, or shows more of it than there is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from attestgate.bus import subjects
from attestgate.bus.api import Message
from attestgate.bus.forward import DATAGRAM, Position, event_of, follow, syslog_message
from attestgate.bus.memory.server import MemoryServer
from attestgate.cli.explain import timeline
from attestgate.cli.policy_hosts import Answers
from attestgate.compose.local.events import EventWatch
from attestgate.schemas.base import MAX_REASONS, Reason, Refusal
from attestgate.schemas.events import MAX_EVENT, MAX_GATEWAY_EVENT, Event, read_event, reason_of, reasons_of
from attestgate.schemas.summary import Summary, summary_of
from tests.support.hostile_messages import costliest_events
from tests.support.threats import rows, threat

KINDS = ("gateway", "host")
STORED = [(kind, name, data) for kind in KINDS for name, data in costliest_events(kind)]
SUMMARY = Summary(role="host", id="h1", host="h1", session="ab" * 16, state="TRUSTED", created_at=1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    ["reasons", "reason", "problem", "outcome", "ear", "lease_end", "not_after", "until", "serial", "key", "x"]
)


def subject_of(kind: str) -> str:
    return subjects.event(kind, "g1", "admitted" if kind == "gateway" else "trusted")


class Kept:
    """A sink that holds what it gets until there is enough."""

    def __init__(self, last: str) -> None:
        self.lines: list[bytes] = []
        self._last = last
        self.done = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def write(self, lines: Sequence[bytes]) -> None:
        self.lines += lines
        if any(json.loads(line)["id"] == self._last for line in lines):
            self._loop.call_soon_threadsafe(self.done.set)


@threat(rows.GATEWAY_EVENTS)
@pytest.mark.parametrize(("kind", "name", "data"), STORED, ids=[f"{kind}: {name}" for kind, name, _ in STORED])
async def test_nothing_stored_ends_a_reader_or_is_shown_beyond_its_bound(kind: str, name: str, data: bytes) -> None:
    event = event_of(subject_of(kind), data)
    if event is not None:
        assert len(syslog_message(event.body())) <= DATAGRAM
        assert list(timeline(SUMMARY, [event]))
        assert len(reasons_of(event)) <= len(data)
    message = Message(subject_of(kind), data, {})
    await Answers("ab" * 32).hear(message)
    await EventWatch()._take(message)


@threat(rows.GATEWAY_EVENTS)
async def test_the_forwarder_leaves_out_what_is_no_event_and_goes_on() -> None:
    server = MemoryServer()
    bus = server.connect()
    for kind, _, data in STORED:
        await bus.publish(subject_of(kind), data)
    good = Event(id="cd" * 16, kind="host", subject="h1", what="trusted", at=1, source="test")
    await bus.publish(subjects.event("host", "h1", "trusted"), good.body())
    sink, position = Kept(good.id), Position(None)
    following = asyncio.create_task(follow(bus, sink, position))
    try:
        async with asyncio.timeout(60):
            await sink.done.wait()
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    left_out = [data for kind, _, data in STORED if event_of(subject_of(kind), data) is None]
    assert left_out
    assert len(sink.lines) == len(STORED) + 1 - len(left_out)
    assert sink.lines[-1] == good.body()


@given(data=st.dictionaries(KEYS, JSON, max_size=5))
def test_any_data_of_an_event_can_be_shown(data: dict[str, JsonValue]) -> None:
    event = Event(id="x", kind="gateway", subject="g1", what="admitted", at=1, source="x", data=data)
    read = event_of(subject_of("gateway"), event.body())
    if read is None:  # what JSON has no number for
        assert len(event.body()) <= MAX_GATEWAY_EVENT
        return
    assert len(syslog_message(read.body())) <= DATAGRAM
    for line in timeline(SUMMARY, [read]):
        assert line.isprintable()


@pytest.mark.parametrize("value", [None, 1, "x", [], {}, {"code": "x"}, {"code": 1, "field": "x" * 10_000}])
def test_a_reason_that_is_none_is_shown_as_it_stands(value: Any) -> None:
    reason = reason_of(value)
    assert reason.code == "event.reason"
    assert len(reason.sentence()) < 1000


def test_a_reason_comes_back() -> None:
    reason = Reason(code="x", field="x", expected="x", found="x", action="x")
    event = Event(
        id="x", kind="op", subject="o", what="refused", at=1, source="x", data={"reasons": [reason.model_dump()]}
    )
    assert reasons_of(event) == [reason]


@pytest.mark.parametrize(("kind", "most"), [("gateway", MAX_GATEWAY_EVENT), ("host", MAX_EVENT)])
def test_an_event_is_written_without_its_largest_data_where_it_would_be_too_long(kind: str, most: int) -> None:
    event = Event(id="x", kind=kind, subject="g1", what="admitted", at=1, source="x", data={"key": "x" * most})
    assert json.loads(event.body())["data"]["cut"] > most
    both = event.model_copy(update={"data": {"ear": "x" * most, "reasons": ["y" * 1000]}})
    assert json.loads(both.body())["data"].keys() == {"reasons", "cut"}, "the largest goes first"
    fitting = event.model_copy(update={"data": {"key": "x" * (most - 200)}})
    assert read_event(fitting.body(), source="x") == fitting
    with pytest.raises(Refusal, match=r"file\.size"):
        read_event(event.model_dump_json().encode(), source="x")


@threat(rows.GATEWAY_EVENTS)
def test_a_large_event_of_a_gateway_is_none_whatever_it_says_of_itself() -> None:
    event = Event(id="x", kind="host", subject="g1", what="trusted", at=1, source="x", data={"key": "x" * 20_000})
    assert event_of(subject_of("host"), event.body()) == event
    assert event_of(subject_of("gateway"), event.body()) is None
    own = event.model_copy(update={"kind": "gateway", "what": "admitted"})
    assert event_of(subject_of("gateway"), own.model_dump_json(exclude_none=True).encode()) is None
    assert event_of(subject_of("gateway"), own.body()) is not None, "what a gateway itself would publish of it"


@pytest.mark.parametrize("value", [b"", b"{}", b"[" * 100_000, b"x" * 2**20, b'{"role": "host"}'])
def test_what_is_stored_as_a_summary_and_is_none_is_left_out(value: bytes) -> None:
    assert summary_of("host.h1.x", value) is None
    reason = Reason(**dict.fromkeys(Reason.model_fields, "x" * 300))
    whole = SUMMARY.model_copy(update={"reasons": [reason] * MAX_REASONS})
    assert summary_of("host.h1.x", whole.body()) == whole
