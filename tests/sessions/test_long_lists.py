"""Long measurement lists: nobody waits for another's, and no host's can be made to cost more than one appraisal."""

from __future__ import annotations

import tracemalloc
import zlib
from typing import Any

import pytest

from attestgate.bus import subjects
from attestgate.manager.handlers import large_messages
from attestgate.schemas.evidence import PIECE, pack_measurements
from attestgate.schemas.messages import MAX_LIST, MeasurementList
from tests.support.ima.lists import frame, ng
from tests.support.manager.deployment import Deployment
from tests.support.manager.wire import Held
from tests.support.manager.world import LISTS
from tests.support.reasons import event_code
from tests.support.threats import rows, threat

CLEAN = (LISTS / "clean.bin").read_bytes()
UNKNOWN = b"".join(frame(b"ima-ng", ng(), b"/opt/%d\0" % number) for number in range(30_000))


async def evidence(site: Deployment, id: str, machine: str, data: bytes) -> Held:
    """What a host with this list says first, kept back."""
    site.measurement_list.write_bytes(data)
    await site.order(site.host_enrolment(id, machine))
    held = site.wire.hold(subjects.inbound("host", id, "evidence"))
    await site.host(id, machine)
    return await held


@threat(rows.MESSAGES_LARGE)
async def test_a_short_list_is_judged_while_a_long_one_is(site: Deployment) -> None:
    long = await evidence(site, "h1", "machine-a", CLEAN + UNKNOWN)
    short = await evidence(site, "h2", "machine-b", CLEAN)
    since = len(site.events)
    site.wire.inject(*long)
    site.wire.inject(*short)
    refused = await site.until("host", "h1", "refused", since=since)
    assert event_code(refused) == "ima.unknown"
    assert "granted" in site.what("host", "h2", since=since)
    ends = [(event.subject, event.what) for event in site.events[since:]]
    assert ends.index(("h2", "granted")) < ends.index(("h1", "refused"))


@threat(rows.MESSAGES_LARGE)
async def test_a_large_message_of_each_sender_and_each_is_judged(
    site: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_messages, "LARGE", 1024)
    monkeypatch.setattr(large_messages, "AT_ONCE", 1)
    first = await evidence(site, "h1", "machine-a", CLEAN)
    second = await evidence(site, "h2", "machine-b", CLEAN)
    for held in (first, second, first, second):
        site.wire.inject(*held)
    async with site.passing():
        await site.until("host", "h1", "trusted")
        await site.until("host", "h2", "trusted")
    await site.settled()
    assert [site.what("host", id).count("granted") for id in ("h1", "h2")] == [1, 1]


def bomb() -> MeasurementList:
    """A list of the largest size in a few kilobytes, and as much again behind it."""
    deflate = zlib.compressobj(9)
    data = b"".join(deflate.compress(bytes(2**20)) for _ in range(2 * MAX_LIST // 2**20)) + deflate.flush()
    return MeasurementList(offset=0, size=MAX_LIST, prefix=bytes(32), whole=bytes(32), zlib=data)


@threat(rows.MESSAGES_LARGE)
async def test_a_bomb_of_an_enrolled_host_is_refused_in_little_memory(
    site: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its quote covers it: only what is decompressed shows that it is none of its lists."""
    monkeypatch.setattr("attestgate.host_agent.step3_evidence.pack_measurements", _packed_as(bomb()))
    held = await evidence(site, "h1", "machine-a", CLEAN)
    tracemalloc.start()
    try:
        site.wire.inject(*held)
        refused = await site.until("host", "h1", "refused")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert event_code(refused) == "evidence.list"
    assert most < 64 * PIECE


def _packed_as(measurements: MeasurementList) -> Any:
    def packed(whole: bytes, offset: int) -> MeasurementList:
        assert pack_measurements(whole, offset).size
        return measurements

    return packed
