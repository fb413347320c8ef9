"""Whoever holds connections and sends slowly, or not at all, at the real nginx: everybody else is served meanwhile.

The address of a slow client is 127.0.0.2 or one of the next, that of the honest application 127.0.0.1. The limits are
small, so that few connections reach them.
"""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from attestgate.compose.nginx.process import free_port
from attestgate.manager.gateway.dictionary import Dictionary
from tests.support.gateway.gate import Client, Gate, logged, running, until
from tests.support.gateway.slow import CHUNKED, LENGTH, SAYS, Slow, all_held
from tests.support.threats import rows, threat

pytestmark = pytest.mark.stack
STRANGER = "127.0.0.2"
SMALL = {
    "connections": 90,
    "connections_per_address": 12,
    "requests_per_application": 50,
    "uploads_per_application": 4,
    "uploads": 8,
}
LARGE = b"y" * 10_000
"""The smallest body that counts."""
ENDS_S = 60
"""When a test gives up waiting for an end. The longest documented one is 20 s after the connection's first byte."""


def slow(gate: Gate, kind: str, context: ssl.SSLContext, count: int = 30, source: str = STRANGER) -> list[Slow]:
    return [Slow(kind, gate.config.port, source, context) for _ in range(count)]


def others_are_served(gate: Gate, client: Client) -> Callable[[], Awaitable[None]]:
    """On a new connection, with a body too; and the gateway worker gets what it asks for."""

    async def check() -> None:
        async with httpx.AsyncClient(base_url=gate.url, verify=client.context) as http:
            assert (await http.get("/x")).status_code == 200
            assert (await http.post("/x", content=b"x" * 100_000)).status_code == 200
        async with Dictionary(gate.config.admin) as dictionary:
            await dictionary.health()

    return check


@threat(rows.DOOR_HELD)
@pytest.mark.parametrize("whose", ["nobody's", "not admitted", "admitted"])
async def test_the_others_are_served_and_the_slow_ones_end(tmp_path: Path, whose: str) -> None:
    """All kinds at once, each from an address of its own."""
    async with running(Gate(tmp_path, time.time, **SMALL)) as gate:
        honest, other = gate.client(), gate.client(app="a2")
        await gate.admit(honest, *([other] if whose == "admitted" else []))
        context = gate.context() if whose == "nobody's" else other.context
        clients = [c for n, kind in enumerate(SAYS) for c in slow(gate, kind, context, 30, f"127.0.0.{2 + n}")]
        async with asyncio.timeout(ENDS_S):
            answers = await all_held(clients, others_are_served(gate, honest))
        by_kind = {kind: [a for c, a in zip(clients, answers, strict=True) if c.kind == kind] for kind in SAYS}
        for kind in ["websocket"] if whose == "admitted" else ["websocket", "slow body", "slow chunks"]:
            # All that were let in: 12 of 30, and whoever came when one of these had gone.
            refused = [answer for answer in by_kind.pop(kind) if answer]
            assert len(refused) >= SMALL["connections_per_address"], kind
            assert {(a[:13], a[-12:], b"\r\nConnection: close\r\n" in a) for a in refused} == {
                (b"HTTP/1.1 403 ", b"\r\n\r\nrefused\n", True)
            }
        assert not any(b" 403 " in answer or b" 200 " in answer for found in by_kind.values() for answer in found)
        assert [r.method for r in gate.upstream.requests] == ["GET", "POST"], "nothing of theirs reached the controller"


@threat(rows.DOOR_HELD)
async def test_the_worker_is_served_when_the_connections_are_used_up(tmp_path: Path) -> None:
    """From so many addresses that the limit of each is not reached: new applications are out until these have ended."""
    async with running(Gate(tmp_path, time.time, connections=24, connections_per_address=12)) as gate:
        client = gate.client()
        await gate.admit(client)
        kept = await client.http.get("/x")

        async def check() -> None:
            async with httpx.AsyncClient(base_url=gate.url, verify=client.context) as http:
                with pytest.raises(httpx.TransportError):
                    await http.get("/x")
            again = await client.http.get("/x")
            assert again.status_code == 200
            assert again.extensions["network_stream"] is kept.extensions["network_stream"]
            await gate.withdraw(client.key)
            assert (await client.http.get("/x")).status_code == 403

        clients = [Slow("no request", gate.config.port, f"127.0.0.{2 + n % 6}", gate.context()) for n in range(60)]
        async with asyncio.timeout(ENDS_S):
            await all_held(clients, check)
            await gate.admit(client)

            async def anew() -> int:
                async with httpx.AsyncClient(base_url=gate.url, verify=client.context) as http:
                    try:
                        return (await http.get("/x")).status_code
                    except httpx.TransportError:
                        return 0

            await until(anew, lambda status: status == 200)


async def answered(gate: Gate, context: ssl.SSLContext | None, head: bytes, port: int | None = None) -> bytes:
    """Everything up to the connection's end, in answer to a head without its body."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port or gate.config.port, ssl=context, server_hostname="localhost" if context else None
    )
    writer.write(head)
    async with asyncio.timeout(ENDS_S):
        answer = await reader.read()
    writer.transport.abort()
    return answer


@threat(rows.DOOR_HELD)
@pytest.mark.parametrize("head", [LENGTH, CHUNKED], ids=["length", "chunked"])
async def test_a_refusal_waits_for_no_body_and_is_counted_and_logged(gate: Gate, head: bytes) -> None:
    withdrawn, unknown = gate.client(), gate.client(app="a2")
    await gate.admit(withdrawn)
    await gate.withdraw(withdrawn.key)
    contexts = (gate.context(), withdrawn.context, unknown.context, None)
    verdicts = ["no certificate", "not admitted", "not admitted", "no certificate"]
    for number, context in enumerate(contexts, 1):
        answer = await answered(gate, context, head)
        assert answer.startswith(b"HTTP/1.1 403 ") and answer.endswith(b"\r\n\r\nrefused\n")
        assert [line["verdict"] for line in await logged(gate, number)] == verdicts[:number]
    async with Dictionary(gate.config.admin) as dictionary:
        counted = {(r.verdict, r.serial): r.times for r in await dictionary.refusals()}
    serials = [client.issued.serial.upper() for client in (withdrawn, unknown) if client.issued]
    assert counted == {("no certificate", ""): 2, **{("not admitted", serial): 1 for serial in serials}}


INNER = b"GET /smuggled HTTP/1.1\r\nHost: g\r\n\r\n"


@threat(rows.CONNECTION_OUTLIVES)
@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (LENGTH.replace(b"1000000", str(len(INNER)).encode()) + INNER, 403),
        (LENGTH + INNER, 403),
        (CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (len(INNER), INNER), 403),
        (CHUNKED + INNER, 400),
    ],
    ids=["its length", "longer", "chunk", "no chunk"],
)
async def test_a_request_in_the_body_of_a_refused_one_is_none(gate: Gate, request_: bytes, status: int) -> None:
    """The answer is a page of nginx's own, and the connection ends with it: the unread body is no next request."""
    client, admitted = gate.client(), gate.client(app="a2")
    await gate.admit(admitted)
    for context in (client.context, gate.context()):
        answer = await answered(gate, context, request_)
        assert answer.startswith(b"HTTP/1.1 %d " % status) and answer.count(b"HTTP/1.") == 1
    assert (await admitted.http.get("/own")).status_code == 200
    assert [request.url.path for request in gate.upstream.requests] == ["/own"]


@threat(rows.DOOR_HELD)
@pytest.mark.parametrize("mode", ["njs", "stock"])
async def test_the_public_port_waits_for_no_body_and_has_limits_of_its_own(tmp_path: Path, mode: str) -> None:
    port = free_port()
    async with running(Gate(tmp_path, time.time, mode=mode, public_port=port)) as gate:
        for path, status in (("/health", b"503" if mode == "njs" else b"200"), ("/crl/", b"403"), ("/", b"404")):
            answer = await answered(gate, None, LENGTH.replace(b"/x", path.encode(), 1), port)
            assert answer.split(b" ")[1] == status, path

        async def check() -> None:
            async with httpx.AsyncClient() as http:
                assert (await http.get(f"http://127.0.0.1:{port}/health")).status_code in {200, 503}

        async with asyncio.timeout(ENDS_S):
            await all_held([Slow("says nothing", port, STRANGER, None) for _ in range(100)], check)


@threat(rows.CONNECTION_OUTLIVES)
async def test_a_body_ends_with_the_admission(gate: Gate) -> None:
    """Though each of its bytes comes in time; and nothing of it reaches the controller."""
    client = gate.client()
    await gate.admit(client)

    async def check() -> None:
        await gate.withdraw(client.key)

    async with asyncio.timeout(ENDS_S):
        assert await all_held(slow(gate, "slow body", client.context, 4), check) == [b""] * 4
    assert [line["verdict"] for line in await logged(gate, 4)] == ["cut: no longer admitted"] * 4
    assert gate.upstream.requests == []


@pytest.mark.parametrize("kind", ["slow body", "slow chunks"])
async def test_a_body_has_a_deadline(tmp_path: Path, kind: str) -> None:
    async with running(Gate(tmp_path, time.time, body_s=1)) as gate:
        client = gate.client()
        await gate.admit(client)

        async def nothing() -> None: ...

        async with asyncio.timeout(ENDS_S):
            await all_held(slow(gate, kind, client.context, 2), nothing)
        assert [line["verdict"] for line in await logged(gate, 2)] == ["cut: body took too long"] * 2
        async with Dictionary(gate.config.admin) as dictionary:
            (refusal,) = await dictionary.refusals()
        assert client.issued is not None
        assert (refusal.identity, refusal.times) == (client.issued.identity, 2)
        assert gate.upstream.requests == []


async def test_a_body_that_is_complete_after_its_end_goes_nowhere(tmp_path: Path) -> None:
    """Its last byte is the one with which nginx closes the connection."""
    async with running(Gate(tmp_path, time.time, body_s=1)) as gate:
        client = gate.client()
        await gate.admit(client)
        reader, writer = await asyncio.open_connection("localhost", gate.config.port, ssl=client.context)
        writer.write(b"POST /x HTTP/1.1\r\nHost: g\r\nContent-Length: 2\r\n\r\na")

        async def refusals() -> int:
            async with Dictionary(gate.config.admin) as dictionary:
                return len(await dictionary.refusals())

        await until(refusals, bool)
        writer.write(b"b")
        async with asyncio.timeout(ENDS_S):
            assert b"200" not in await reader.read()
        writer.transport.abort()
        assert (await client.http.get("/x")).status_code == 200
        assert [request.method for request in gate.upstream.requests] == ["GET"]
        assert "unhandled rejection" not in (gate.config.folder / "error.log").read_text()


async def test_a_kept_connection_ends_by_itself(gate: Gate) -> None:
    client = gate.client()
    await gate.admit(client)
    answer = await answered(gate, client.context, b"GET /x HTTP/1.1\r\nHost: g\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")


@threat(rows.SHARE_TAKEN)
async def test_an_application_has_its_share_of_large_bodies(tmp_path: Path) -> None:
    async with running(Gate(tmp_path, time.time, uploads_per_application=1)) as gate:
        client, other = gate.client(), gate.client(app="a2")
        await gate.admit(client, other)
        (holding,) = slow(gate, "slow body", client.context, 1)
        stream = await holding.connect()

        async def post() -> int:
            return (await client.http.post("/x", content=LARGE)).status_code

        await until(post, lambda status: status == 503)
        busy = await client.http.post("/x", content=LARGE)
        assert (busy.status_code, busy.text) == (503, "too many requests at once\n")
        assert (await client.http.post("/x", content=LARGE[1:])).status_code == 200
        assert (await client.http.get("/x")).status_code == 200
        assert (await other.http.post("/x", content=LARGE)).status_code == 200
        stream[1].transport.abort()
        await until(post, lambda status: status == 200)
        assert "too many at once" in {line["verdict"] for line in await logged(gate, 6)}


@threat(rows.SHARE_TAKEN)
async def test_an_application_has_its_share_of_requests(tmp_path: Path) -> None:
    async with running(Gate(tmp_path, time.time, requests_per_application=1)) as gate:
        client, other = gate.client(), gate.client(app="a2")
        await gate.admit(client, other)
        async with client.http.stream("GET", "/stream") as streamed:
            assert streamed.status_code == 200
            assert (await client.http.get("/x")).status_code == 503
            assert (await other.http.get("/x")).status_code == 200


async def test_one_that_is_not_admitted_counts_as_that_though_it_has_too_many(tmp_path: Path) -> None:
    async with running(Gate(tmp_path, time.time, requests_per_application=1)) as gate:
        client = gate.client()
        await gate.admit(client)
        async with client.http.stream("GET", "/stream"), Dictionary(gate.config.admin) as dictionary:
            assert (await client.http.post("/x")).status_code == 503
            assert len(await logged(gate, 1)) == 1
            await gate.withdraw(client.key)
            assert (await client.http.post("/x")).status_code == 503
            found = [(line["verdict"], line["status"]) for line in await logged(gate, 2)]
            assert found == [("too many at once", "503"), ("not admitted", "503")]
            counted = {refusal.verdict: refusal.times for refusal in await dictionary.refusals()}
            assert counted == {"too many at once": 1, "not admitted": 1}


async def test_refused_bodies_take_no_share(tmp_path: Path) -> None:
    async with running(Gate(tmp_path, time.time, uploads=1, requests_per_application=8)) as gate:
        honest, withdrawn = gate.client(), gate.client(app="a2")
        await gate.admit(honest)

        async def check() -> None:
            assert (await honest.http.post("/x", content=LARGE)).status_code == 200

        async with asyncio.timeout(ENDS_S):
            answers = await all_held(slow(gate, "slow body", withdrawn.context, 8), check)
        assert {answer[:12] for answer in answers} == {b"HTTP/1.1 403"}


def memory(gate: Gate) -> int:
    """Resident bytes of nginx's processes together."""
    children = Path(f"/proc/{gate.nginx.pid}/task/{gate.nginx.pid}/children").read_text().split()
    lines = (line for pid in children for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


@threat(rows.DOOR_HELD)
@pytest.mark.parametrize("kind", ["length", "chunked"])
async def test_bodies_of_the_refused_take_no_memory(gate: Gate, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """400 strangers, each with a body of a megabyte less one byte."""
    chunks = CHUNKED + b"".join(b"3e8\r\n" + b"x" * 1000 + b"\r\n" for _ in range(999))
    whole = {"length": LENGTH + b"x" * 999_999, "chunked": chunks}[kind]
    monkeypatch.setitem(SAYS, "slow body", (whole, b"x"))
    before = memory(gate)
    grown = 0

    async def check() -> None:
        nonlocal grown
        grown = memory(gate) - before

    clients = [Slow("slow body", gate.config.port, f"127.0.0.{2 + n % 10}", gate.context()) for n in range(400)]
    async with asyncio.timeout(2 * ENDS_S):
        await all_held(clients, check)
    # A connection itself takes some 100 kB (TLS, njs): a quarter of the bodies is far from both.
    assert grown < len(clients) * len(whole) // 4


async def test_bodies_reach_no_disk(gate: Gate) -> None:
    client = gate.client()
    await gate.admit(client)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 10_000

    for content in (b"x" * 1_000_000, chunks()):
        assert (await client.http.post("/x", content=content)).status_code == 200
    assert list((gate.config.folder / "client_body").iterdir()) == []
    assert "buffered to a temporary file" not in (gate.config.folder / "error.log").read_text()


async def test_rejected_connections_are_logged_and_a_flood_of_them_is_one_line(tmp_path: Path) -> None:
    async with running(Gate(tmp_path, time.time, **SMALL)) as gate:

        async def nothing() -> None: ...

        async with asyncio.timeout(ENDS_S):
            await all_held(slow(gate, "says nothing", gate.context(), 100), nothing)
        lines = [json.loads(line) for line in (gate.config.folder / "rejected.log").read_text().splitlines()]
        assert {line["client"] for line in lines} == {STRANGER}
        assert 1 <= len(lines) <= 10
        assert sum(int(line["rejected"]) for line in lines) <= 100 - SMALL["connections_per_address"]
        assert "limiting connections" not in (gate.config.folder / "error.log").read_text()
