"""A gateway whose clock is set: the worker's, or nginx's, which are one on one machine, and are set apart here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from attestgate.compose.nginx import process
from attestgate.manager.gateway.dictionary import Dictionary
from attestgate.manager.gateway.entries import CertificateEntry, HostEntry
from attestgate.manager.gateway.map_file import MapFile
from attestgate.schemas.admission import ALL
from attestgate.schemas.event_data import ClockStepped
from tests.support.gateway.deployment import HOST, GatewayDeployment, at_work, status
from tests.support.gateway.gate import Client, Gate, host_lease, lease, running, until, withdrawal
from tests.support.gateway.statements import CERT, desired_state
from tests.support.gateway.statements import lease as plain_lease
from tests.support.threats import rows, threat

HOUR_S, DECADE_S = 3600, 3652 * 86_400
BEYOND_SKEW = [sign * seconds for seconds in (30, HOUR_S, DECADE_S) for sign in (1, -1)]


class SetClock:
    """The real clock, set by some seconds."""

    def __init__(self) -> None:
        self.by_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.by_s


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
async def working(deployment: GatewayDeployment, clock: SetClock) -> AsyncIterator[GatewayDeployment]:
    """A worker that compares with nginx only when it has a reason to."""
    async with at_work(deployment.worker(clock=clock, reconcile_s=3600)):
        yield deployment


async def answers(client: Client, code: int) -> None:
    async def answer() -> int:
        return await status(client)

    await until(answer, lambda found: found == code)


async def stepped(deployment: GatewayDeployment, by_s: float) -> None:
    told = await deployment.told("clock-stepped", lambda data: abs(float(str(data["by_s"])) - by_s) < 0.9)
    ClockStepped.model_validate(told)


@pytest.mark.stack
@pytest.mark.parametrize("by_s", [4, -4])
async def test_a_step_within_the_skew_ends_nothing(working: GatewayDeployment, clock: SetClock, by_s: float) -> None:
    client = working.gate.client()
    await working.admit(client)
    clock.by_s = by_s
    await stepped(working, by_s)
    assert await status(client) == 200
    assert [what for what, _ in working.events if what == "withdrawn"] == []


@threat(rows.CLOCK_SET)
@pytest.mark.stack
@pytest.mark.parametrize("by_s", [step for step in BEYOND_SKEW if abs(step) > 300 or step < 0])
async def test_a_lease_goes_while_the_clock_is_wrong_and_comes_again_when_it_is_right(
    working: GatewayDeployment, clock: SetClock, by_s: float
) -> None:
    """Nobody signs another meanwhile."""
    client = working.gate.client()
    await working.admit(client)
    clock.by_s = by_s
    await answers(client, 403)
    clock.by_s = 0
    await answers(client, 200)
    await stepped(working, by_s)
    await stepped(working, -by_s)


@threat(rows.CLOCK_SET)
@pytest.mark.stack
@pytest.mark.parametrize("by_s", BEYOND_SKEW)
async def test_what_is_withdrawn_while_the_clock_is_wrong_stays_out(
    working: GatewayDeployment, clock: SetClock, by_s: float
) -> None:
    client, other = working.gate.client(), working.gate.client(app="a2")
    await working.admit(client, other)
    clock.by_s = by_s
    await stepped(working, by_s)
    now = int(time.time())
    await working.say(withdrawal(client.key, now, left_s=1))
    await asyncio.sleep(1.5)
    clock.by_s = 0
    await stepped(working, -by_s)
    await answers(other, 200)
    assert await status(client) == 403


@pytest.mark.stack
@pytest.mark.parametrize("by_s", [-HOUR_S, HOUR_S])
async def test_what_was_refused_by_the_wrong_clock_is_read_again(
    working: GatewayDeployment, clock: SetClock, by_s: float
) -> None:
    client = working.gate.client()
    clock.by_s = by_s
    await stepped(working, by_s)
    now = int(time.time())
    await working.say(host_lease(now), lease(client, now))
    if by_s < 0:  # what has expired is told only by who has read everything
        code = "admission.future"
        await working.told("refused", lambda data: data["key"] == client.key and code in str(data["reason"]))
    assert await status(client) == 403
    clock.by_s = 0
    await answers(client, 200)


def entries(client: Client, since: int, until_: int) -> dict[str, CertificateEntry | HostEntry]:
    assert client.issued is not None
    return {
        client.key: CertificateEntry(
            sequence=1,
            since=since,
            until=until_,
            sha256=client.issued.sha256,
            identity=client.issued.identity,
            host_key=HOST,
            integrity="unanchored",
            marks="",
            allow=[ALL],
        ),
        HOST: HostEntry(sequence=1, since=since, until=until_, host="h1"),
    }


async def put(gate: Gate, said: dict[str, CertificateEntry | HostEntry]) -> None:
    async with Dictionary(gate.config.admin) as dictionary:
        await dictionary.put((await dictionary.health()).epoch, said)


@threat(rows.CLOCK_SET)
@pytest.mark.stack
async def test_nginx_takes_nothing_from_ahead_of_its_clock(gate: Gate) -> None:
    client, now = gate.client(), int(time.time())
    await put(gate, entries(client, now, now + 60))
    assert await status(client) == 200
    await put(gate, entries(client, now + HOUR_S, now + HOUR_S + 60))
    assert await gate.contents() == {}
    assert await status(client) == 403


@pytest.fixture
async def set_nginx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Gate, Path]]:
    """A gateway whose scripts read, in place of the clock, the clock and a file that says by how much it is set."""
    scripts, by_s, render = tmp_path / "scripts", tmp_path / "by_s", process.render
    by_s.write_text("0")
    scripts.mkdir()
    for script in process._FILES.glob("*.js"):
        text = script.read_text().replace("Date.now()", "set.now()")
        first = "import set from 'set.js';\n" if "set.now()" in text else ""
        (scripts / script.name).write_text(first + text)
    (scripts / "set.js").write_text(SET.format(by_s=by_s))
    monkeypatch.setattr(process, "render", lambda config: render(config).replace(str(process._FILES), str(scripts)))
    async with running(Gate(tmp_path, time.time)) as gate:
        yield gate, by_s


SET = """
import fs from 'fs';
const now = () => Date.now() + 1000 * fs.readFileSync('{by_s}');
export default {{ now }};
"""


@threat(rows.CLOCK_SET)
@pytest.mark.stack
@pytest.mark.parametrize("whose", ["client", "host"])
@pytest.mark.parametrize("by_s", [-30, -HOUR_S, -DECADE_S])
async def test_nginx_lets_nobody_pass_on_what_its_clock_set_back_has_left_ahead(
    set_nginx: tuple[Gate, Path], whose: str, by_s: int
) -> None:
    """Also on an open connection, whose certificate it knows."""
    gate, set_by = set_nginx
    client, now = gate.client(), int(time.time())
    said = entries(client, now, now + 60)
    key = client.key if whose == "client" else HOST
    # The other's is old enough to count by either clock.
    old = {other: entry.model_copy(update={"since": 0}) for other, entry in said.items() if other != key}
    await put(gate, said | old)
    assert await status(client) == 200
    set_by.write_text(str(by_s))
    assert await status(client) == 403
    await client.http.aclose()
    client.http = httpx.AsyncClient(base_url=gate.url, verify=client.context)
    assert await status(client) == 403
    set_by.write_text("-4")
    assert await status(client) == 200, "within the skew"


@pytest.mark.stack
async def test_a_stream_is_cut_when_the_clock_has_left_its_lease_ahead(set_nginx: tuple[Gate, Path]) -> None:
    gate, set_by = set_nginx
    client, now = gate.client(), int(time.time())
    await put(gate, entries(client, now, now + 60))
    with pytest.raises(httpx.RemoteProtocolError):
        async with client.http.stream("GET", "/stream") as response:
            async for _ in response.aiter_bytes():
                set_by.write_text(str(-HOUR_S))
                gate.upstream.more.set()


@pytest.mark.stack
async def test_nginx_takes_nothing_by_a_clock_that_was_set_back(set_nginx: tuple[Gate, Path]) -> None:
    gate, set_by = set_nginx
    client, now = gate.client(), int(time.time())
    set_by.write_text(str(-HOUR_S))
    await put(gate, entries(client, now, now + 60))
    assert await gate.contents() == {}


@pytest.mark.stack
async def test_nginx_holds_nothing_for_longer_than_its_span(gate: Gate) -> None:
    """Its clock is behind the worker's by less than the skew."""
    client, now = gate.client(), int(time.time())
    await put(gate, entries(client, now + 4, now + 6))
    await asyncio.sleep(2.1)
    assert await status(client) == 403


@pytest.mark.stack
async def test_a_stock_nginx_loses_what_the_clock_has_left_ahead(tmp_path: Path) -> None:
    async with running(Gate(tmp_path, time.time, mode="stock")) as gate:
        store, now = MapFile(gate.config.map), int(time.time())
        epoch = (await store.health()).epoch
        await store.put(epoch, {HOST: HostEntry(sequence=1, since=now, until=now + 60, host="h1")})
        assert (await store.health()).entries == 1
        await store.put(epoch, {HOST: HostEntry(sequence=1, since=now + HOUR_S, until=now + 2 * HOUR_S, host="h1")})
        assert (await store.health()).entries == 0


def test_after_a_step_every_websockets_bound_is_set_anew() -> None:
    desired, told = desired_state(60), list[str]()
    desired.take(plain_lease(), b"signed", 100)
    desired.on_change(told.append)
    assert desired.until(CERT, 100) == 130
    assert desired.until(CERT, 100 - HOUR_S) == 0
    desired.look_again()
    assert told == [CERT]
    assert desired.begin_round(100 - HOUR_S, everything=False).changes().remove == [CERT]
