"""Events handed on to a SIEM: in order, none lost, going on where an earlier run left off."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from attestgate.bus import subjects
from attestgate.bus.auth import credentials
from attestgate.bus.client.nats import NatsBus, connect
from attestgate.bus.client.setup import ensure
from attestgate.bus.forward import DATAGRAM, File, Position, Stream, Syslog, follow, syslog_message
from attestgate.bus.server.embedded import EmbeddedServer
from attestgate.schemas.base import Refusal
from attestgate.schemas.events import Event
from tests.support.cli.fixtures import Run
from tests.support.threats import rows, threat


def event(number: int, what: str = "trusted", **data: str) -> Event:
    id, at = f"{number:032x}", 1_700_000_000 + number
    return Event(id=id, kind="host", subject=f"h{number % 8}", what=what, at=at, source="test", data=dict(data))


async def publish(bus: NatsBus, *events: Event) -> None:
    for one in events:
        subject = subjects.event(one.kind, one.subject, one.what)
        await bus.publish(subject, one.body(), message_id=one.id, headers=one.headers())


@pytest.fixture
async def buses(tmp_path: Path) -> AsyncIterator[tuple[NatsBus, NatsBus]]:
    """A manager's connection and an operator's, on a real server."""
    keys = tmp_path / "bus"
    credentials.create(keys)
    async with EmbeddedServer(tmp_path / "nats", credentials.load(keys)) as server:
        found = []
        for role in ("manager", "operator"):
            credentials.issue(keys, role, role, tmp_path / f"{role}.creds")
            found.append(await connect([server.url], tmp_path / f"{role}.creds"))
        await ensure(found[0])
        try:
            yield found[0], found[1]
        finally:
            for bus in found:
                await bus.close()


class Kept:
    """A sink that can fail, and tells when it has enough."""

    def __init__(self, enough: int, failures: int = 0) -> None:
        self.lines: list[bytes] = []
        self.enough = asyncio.Event()
        self._wanted, self._failures = enough, failures
        self._loop = asyncio.get_running_loop()

    def write(self, lines: Sequence[bytes]) -> None:
        if self._failures:
            self._failures -= 1
            raise OSError("no space left")
        self.lines += lines
        if len(self.lines) >= self._wanted:
            self._loop.call_soon_threadsafe(self.enough.set)

    @property
    def ids(self) -> list[int]:
        return [int(json.loads(line)["id"], 16) for line in self.lines]


async def follow_until_enough(bus: NatsBus, sink: Kept, position: Position) -> None:
    task = asyncio.create_task(follow(bus, sink, position))
    async with asyncio.timeout(30):
        await sink.enough.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.stack
async def test_all_that_is_kept_comes_first_and_then_what_happens(buses: tuple[NatsBus, NatsBus]) -> None:
    manager, operator = buses
    await publish(manager, *map(event, range(300)))
    sink = Kept(303)
    task = asyncio.create_task(follow_until_enough(operator, sink, Position(None)))
    await publish(manager, *map(event, range(300, 303)))
    await task
    assert sink.ids == list(range(303))


@pytest.mark.stack
async def test_routine_and_alarms_come_in_the_order_in_which_they_were_stored(buses: tuple[NatsBus, NatsBus]) -> None:
    """They are in two streams, and each is read in pages."""
    manager, operator = buses
    for number in range(600):
        await publish(manager, event(number, what="untrusted" if number % 7 == 3 else "trusted"))
    sink = Kept(600)
    await follow_until_enough(operator, sink, Position(None))
    assert sink.ids == list(range(600))


@pytest.mark.stack
async def test_it_goes_on_where_it_left_off(buses: tuple[NatsBus, NatsBus], tmp_path: Path) -> None:
    manager, operator = buses
    place = tmp_path / "position"
    await publish(manager, *map(event, range(3)))
    await follow_until_enough(operator, Kept(3), Position(place))
    await publish(manager, *map(event, range(3, 5)))
    again = Kept(2)
    await follow_until_enough(operator, again, Position(place))
    assert again.ids == [3, 4]


@pytest.mark.stack
async def test_what_the_receiver_did_not_take_is_tried_again(
    buses: tuple[NatsBus, NatsBus], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attestgate.bus.forward.LOOK_AGAIN_S", 0.01)
    manager, operator = buses
    await publish(manager, *map(event, range(3)))
    sink = Kept(3, failures=2)
    await follow_until_enough(operator, sink, Position(None))
    assert sink.ids == [0, 1, 2]


@threat(rows.GATEWAY_EVENTS)
@pytest.mark.stack
async def test_what_a_gateway_stores_that_is_no_event_of_its_own_is_left_out(buses: tuple[NatsBus, NatsBus]) -> None:
    manager, operator = buses
    theirs = subjects.event("gateway", "g1", "admitted")
    for data in (b"", b"\xff", b"{}", event(0).body(), event(0).body().replace(b",", b",\n")):
        await manager.publish(theirs, data)
    await publish(manager, event(1))
    sink = Kept(1)
    await follow_until_enough(operator, sink, Position(None))
    assert sink.lines == [event(1).body()]


def test_a_file_is_appended_to_and_may_be_rotated(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    sink = File(path)
    sink.write([event(1).body()])
    path.rename(tmp_path / "events.jsonl.1")
    sink.write([event(2).body(), event(3).body()])
    assert [json.loads(line)["id"][-1] for line in path.read_text(encoding="utf-8").splitlines()] == ["2", "3"]
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("local", [True, False])
def test_syslog_gets_a_message_an_event(tmp_path: Path, local: bool) -> None:
    with socket.socket(socket.AF_UNIX if local else socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(10)
        receiver.bind(str(tmp_path / "log") if local else ("127.0.0.1", 0))
        Syslog(tmp_path / "log" if local else receiver.getsockname()).write(
            [event(1).body(), event(2, "refused").body()]
        )
        good, bad = receiver.recv(65536), receiver.recv(65536)
    assert good.startswith(b"<85>1 2023-11-14T22:13:21Z ") and b" attestgate - host.trusted - {" in good
    assert bad.startswith(b"<84>1 ")
    assert json.loads(bad[bad.index(b"{") :])["what"] == "refused"


def test_an_event_too_long_for_syslog_goes_without_its_data() -> None:
    message = syslog_message(event(1, "refused", why="x" * 2 * DATAGRAM).body())
    assert len(message) < DATAGRAM
    assert json.loads(message[message.index(b"{") :])["data"]["cut"] > DATAGRAM


def test_a_position_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "position"
    path.write_text("yesterday", encoding="ascii")
    with pytest.raises(Refusal, match=r"file\.position"):
        Position(path)


@pytest.mark.parametrize("to", ["syslog://", "syslog://127.0.0.1", "syslog://127.0.0.1:0", "syslog://127.0.0.1:x"])
def test_an_address_that_is_none_is_one_line(attestgate: Run, deployed: object, to: str) -> None:
    operator = deployed.settings("operator")  # type: ignore[attr-defined]
    ran = attestgate("events", "follow", "--to", to, "--operator", operator)
    assert ran.status == 2 and "cli.argument: --to: expected syslog://HOST:PORT" in ran.line


@pytest.mark.stack
async def test_it_ends_when_nobody_reads_any_more(buses: tuple[NatsBus, NatsBus]) -> None:
    manager, operator = buses
    await publish(manager, event(1))
    reader, writer = os.pipe()
    os.close(reader)
    closing = suppress(BrokenPipeError)  # that says so once more
    with closing, os.fdopen(writer, "w") as unread, pytest.raises(BrokenPipeError):
        async with asyncio.timeout(60):
            await follow(operator, Stream(unread), Position(None))
