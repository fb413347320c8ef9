"""One sender has one sender's room: what a stolen credential can have stored, and that nobody else notices it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from nats.errors import Error

from attestgate.bus import layout, subjects
from attestgate.bus.api import BusError
from attestgate.bus.auth.permissions import MANAGER, NAME, ROLES, VIEWER
from attestgate.bus.client.nats import NatsBus
from attestgate.bus.client.setup import ensure
from tests.support.bus.everything import name_of
from tests.support.bus.fixtures import Join
from tests.support.threats import rows, threat

OUTSIDE = [role for role in ROLES if role not in (MANAGER, VIEWER)]
"""The roles that have something stored in the managers' account. A viewer has consumers in its own account only."""
PAGE = (Path(__file__).parents[2] / "docs" / "threats.md").read_text(encoding="utf-8")


def written(role: str, stream: layout.Stream) -> list[str]:
    """The subjects of a stream that a role's credential may publish to."""
    return [s for s in ROLES[role].publish if any(subjects.matches(p, concrete(role, s)) for p in stream.subjects)]


def concrete(role: str, subject: str, word: str = "thief") -> str:
    return subject.replace(NAME, name_of(role, word))


def room(role: str, stream: layout.Stream) -> int:
    """The most bytes that one credential can have stored in a stream."""
    payload = min(stream.max_msg_size, ROLES[role].max_payload + layout.HEADERS)
    return len(written(role, stream)) * stream.max_msgs_per_subject * payload


ROOMS = [(role, stream) for role in OUTSIDE for stream in layout.STREAMS.values() if written(role, stream)]


def test_the_page_states_each_room() -> None:
    for role, stream in ROOMS:
        row = f"| {role} | `{stream.name}` | {shown(room(role, stream))} | {shown(stream.max_bytes)} |"
        assert row in PAGE, row


def shown(count: int) -> str:
    return f"{count / layout.MIB:.1f} MiB" if count < 10 * layout.MIB else f"{round(count / layout.MIB)} MiB"


@threat(rows.ROOM_FILLED)
@pytest.mark.parametrize(("role", "stream"), ROOMS, ids=lambda value: value if isinstance(value, str) else value.name)
def test_many_stolen_credentials_are_needed_to_fill_what_a_role_shares(role: str, stream: layout.Stream) -> None:
    assert stream.max_bytes >= 7 * room(role, stream)


@threat(rows.ROOM_FILLED)
@pytest.mark.stack
@pytest.mark.parametrize("role", OUTSIDE)
async def test_a_stolen_credential_fills_its_own_room_and_nobody_notices(role: str, join: Join) -> None:
    """The largest messages that it may send, on every subject that it may publish to, until each is full."""
    manager, thief = await join(MANAGER, "m"), await join(role, name_of(role, "thief"))
    honest = {other: await join(other, name_of(other, "honest")) for other in OUTSIDE}
    await manager.publish(subjects.event("host", "honest", "trusted"), b"{}")
    await manager.publish(subjects.event("host", "honest", "untrusted"), b"{}")
    await gateways_events(honest["gateway"])
    for stream in layout.STREAMS.values():
        for subject in written(role, stream):
            await fill(thief, role, concrete(role, subject), stream)
    for of, stream in ROOMS:
        info = (await manager.jetstream.stream_info(stream.name, subjects_filter=">")).state
        assert info.bytes <= (room(role, stream) if of == role else 0) + 64 * layout.KIB, stream.name
    for other, bus in honest.items():
        for subject in ROLES[other].publish:
            await bus.publish(concrete(other, subject, "honest"), b"{}")
    for subject in ("host.honest.trusted", "host.honest.untrusted", "gateway.honest.admitted"):
        assert [m async for m in manager.history(f"{subjects.EVENTS}.{subject}")], "pushed out"


async def gateways_events(gateway: NatsBus) -> None:
    await gateway.publish(subjects.event("gateway", "honest", "admitted"), b"{}")


async def fill(thief: NatsBus, role: str, subject: str, stream: layout.Stream) -> None:
    """Publish there until the server refuses, or, where the oldest is discarded, until the subject's room is full."""
    largest = bytes(min(stream.max_msg_size - 512, ROLES[role].max_payload))
    for _ in range(stream.max_msgs_per_subject):
        await thief.publish(subject, largest)
    if stream.discard == "new":
        with pytest.raises(BusError, match="maximum messages per subject"):
            await thief.publish(subject, largest)
    else:
        await thief.publish(subject, largest)


@threat(rows.ROOM_FILLED)
@pytest.mark.stack
async def test_no_fresh_subject_can_be_named(join: Join) -> None:
    """What cut everybody off once: thousands of tiny messages, each on an invented last token of its own."""
    manager = await join(MANAGER, "m")
    for role in OUTSIDE:
        thief = await join(role, name_of(role, "thief"))
        refused: list[str] = []

        async def problem(error: Exception, refused: list[str] = refused) -> None:
            refused.append(str(error))

        thief.client._error_cb = problem
        prefixes = {concrete(role, subject).rpartition(".")[0] for subject in ROLES[role].publish}
        for prefix in prefixes:
            for last in ("x", "x-1", "hello-2", ">", "*"):
                try:
                    await thief.client.publish(f"{prefix}.{last}", b"garbage")
                except Error:
                    continue
        await thief.flush()
        assert refused and all("permissions violation" in error for error in refused)
    for stream in layout.STREAMS.values():
        assert (await manager.jetstream.stream_info(stream.name)).state.messages == 0


@threat(rows.ROOM_FILLED)
@pytest.mark.stack
async def test_summaries_without_end_hold_up_no_session(join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session's transition waits until its summary is stored: where there is no room, an older one makes it."""
    small = replace(layout.SUMMARIES, max_bytes=64 * layout.KIB)
    before = replace(layout.SUMMARIES, discard="new")
    manager = await join(MANAGER, "m")
    for configured in (before, small):  # a bucket of an earlier version is changed where it is
        monkeypatch.setitem(layout.BUCKETS, "summaries", configured)
        await ensure(manager)
    bucket = manager.bucket("summaries")
    for number in range(100):
        await bucket.put(f"host.thief.{number:032x}", bytes(layout.KIB))
    await bucket.put("host.honest.session", b"{}")
    assert await bucket.get("host.honest.session") is not None
    state = (await manager.jetstream.stream_info(layout.SUMMARIES.stream)).state
    assert state.bytes <= small.max_bytes
