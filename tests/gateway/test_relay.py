"""WebSockets through the real nginx and the worker's relay: none outlives its admission, its time, or the worker."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from pydantic import ValidationError

from attestgate.manager.gateway.relay import Relay
from attestgate.schemas.base import Refusal
from attestgate.schemas.nginx import NginxConfig
from attestgate.schemas.settings import RelaySettings
from tests.support.gateway.deployment import HOST, GatewayDeployment, at_work
from tests.support.gateway.gate import Client, Gate, host_lease, lease, until, withdrawal
from tests.support.reasons import refusal_code
from tests.support.threats import rows, threat

pytestmark = pytest.mark.stack
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
UPGRADE = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: a2V5\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"


class Upstream:
    """A controller that switches protocols when asked and then echoes; it keeps what reached it."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.ended = asyncio.Event()
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            self.writers.append(writer)
            if b"Upgrade: websocket" not in self.heads[-1]:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                return
            writer.write(SWITCHED)
            while piece := await reader.read(65536):
                writer.write(piece)
                await writer.drain()
        except OSError:
            pass  # cut, as it should be
        finally:
            self.ended.set()
            writer.close()


class Relayed:
    """A gateway that lets WebSockets pass, its worker, and its controller."""

    def __init__(self, deployment: GatewayDeployment) -> None:
        self.deployment = deployment
        self.gate = deployment.gate
        self.upstream = Upstream()

    @property
    def relay(self) -> dict[str, object]:
        return {"socket": self.gate.config.relay, "controller": self.gate.config.controller}

    async def open(self, client: Client, head: str = f"GET /events HTTP/1.1\r\nHost: g\r\n{UPGRADE}\r\n") -> Stream:
        stream = await asyncio.open_connection("localhost", self.gate.config.port, ssl=client.context)
        stream[1].write(head.encode())
        return stream

    async def websocket(self, client: Client) -> Stream:
        """An open one, tried."""
        reader, writer = await self.open(client)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101"), answer
        await self.echoes((reader, writer))
        return reader, writer

    async def echoes(self, stream: Stream) -> None:
        stream[1].write(b"ping")
        async with asyncio.timeout(15):
            assert await stream[0].readexactly(4) == b"ping"


async def cut(stream: Stream) -> bool:
    """Whether the connection is over, with nothing more on it."""
    async with asyncio.timeout(15):
        try:
            rest = await stream[0].read()
        except ConnectionError:
            rest = b""
    stream[1].transport.abort()
    return rest == b""


@asynccontextmanager
async def relayed(folder: Path) -> AsyncIterator[Relayed]:
    gate = Gate(folder, time.time, relay=folder / "n" / "relay.sock")
    here = Relayed(GatewayDeployment(gate))
    server = await asyncio.start_unix_server(here.upstream.serve, gate.config.controller)
    try:
        async with gate.nginx:
            yield here
    finally:
        server.close()
        for writer in here.upstream.writers:
            writer.transport.abort()


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Relayed]:
    """With a worker at work."""
    async with relayed(tmp_path) as here, at_work(here.deployment.worker(relay=here.relay)):
        await until(socket_there(here), bool)
        yield here


def socket_there(here: Relayed):  # type: ignore[no-untyped-def]
    async def there() -> bool:
        return here.gate.config.relay is not None and here.gate.config.relay.exists()

    return there


async def test_a_websocket_passes_and_is_named_upstream(here: Relayed) -> None:
    client = here.gate.client()
    await here.deployment.admit(client)
    stream = await here.websocket(client)
    (head,) = here.upstream.heads
    assert client.issued is not None
    assert head.startswith(b"GET /events HTTP/1.1\r\n")
    assert f"X-Attestgate-Identity: {client.issued.identity}\r\n".encode() in head
    assert b"Sec-WebSocket-Key: a2V5\r\n" in head
    stream[1].write(b"x" * 1_000_000)
    async with asyncio.timeout(15):
        assert await stream[0].readexactly(1_000_000) == b"x" * 1_000_000
    stream[1].transport.abort()
    async with asyncio.timeout(15):
        await here.upstream.ended.wait()


@threat(rows.CONNECTION_OUTLIVES)
@pytest.mark.parametrize("whole_host", [False, True])
async def test_it_ends_with_its_admission_and_the_others_go_on(here: Relayed, whole_host: bool) -> None:
    client, other = here.gate.client(), here.gate.client(app="a2")
    await here.deployment.admit(client, other)
    stream, others = await here.websocket(client), await here.websocket(other)
    if not whole_host:
        await here.deployment.withdraw(client.key)
        await here.echoes(others)
        assert await cut(stream)
        await here.deployment.withdraw(other.key)
    else:
        await here.deployment.withdraw(HOST)
        assert await cut(stream)
    assert await cut(others)
    refused = await here.open(client)
    assert (await refused[0].readline()).startswith(b"HTTP/1.1 403")
    refused[1].transport.abort()


@threat(rows.CONNECTION_OUTLIVES)
async def test_it_ends_with_a_withdrawal_also_while_nginx_answers_no_worker(here: Relayed) -> None:
    client = here.gate.client()
    await here.deployment.admit(client)
    stream = await here.websocket(client)
    here.gate.config.admin.rename(here.gate.config.folder / "away.sock")
    now = int(time.time())
    gone = withdrawal(HOST, now, left_s=30, reason="ima.unknown")
    await here.deployment.say(gone)
    assert await cut(stream)
    assert HOST not in {r.key for r in here.deployment.reports() if r.state == "withdrawn"}


@threat(rows.WITHDRAWAL_WITHHELD)
async def test_it_ends_with_the_lease_and_lives_on_with_a_renewed_one(here: Relayed) -> None:
    client, lapsing = here.gate.client(), here.gate.client(app="a2")
    await here.deployment.admit(client, lapsing)
    stream, ends = await here.websocket(client), await here.websocket(lapsing)
    now = int(time.time())
    for short in (client, lapsing):
        await here.deployment.say(lease(short, now, sequence=2, lease_s=4))
    await here.deployment.say(lease(client, now, sequence=3))
    assert await cut(ends)
    await here.echoes(stream)
    stream[1].transport.abort()


async def test_it_ends_with_its_time_and_with_the_worker(tmp_path: Path) -> None:
    async with relayed(tmp_path) as here:
        client = here.gate.client()
        async with at_work(here.deployment.worker(relay={**here.relay, "longest_s": 2})):
            await until(socket_there(here), bool)
            await here.deployment.admit(client)
            stream = await here.open(client)
            assert (await stream[0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
            assert await cut(stream)
        async with at_work(here.deployment.worker(relay=here.relay)):
            await until(socket_there(here), bool)
            await here.deployment.admit(client, sequence=2)
            stream = await here.websocket(client)
        assert await cut(stream)
        without = await here.open(client)
        assert (await without[0].readline()).startswith(b"HTTP/1.1 502")
        without[1].transport.abort()


async def test_an_end_of_the_controllers_ends_it(here: Relayed) -> None:
    client = here.gate.client()
    await here.deployment.admit(client)
    stream = await here.websocket(client)
    here.upstream.writers[0].write(b"bye!")
    here.upstream.writers[0].write_eof()
    async with asyncio.timeout(15):
        assert await stream[0].read() == b"bye!"
    stream[1].transport.abort()


@threat(rows.SHARE_TAKEN)
async def test_an_application_has_no_more_than_its_share(tmp_path: Path) -> None:
    """Whichever of its certificates it uses; what it closes it may open again."""
    async with (
        relayed(tmp_path) as here,
        at_work(here.deployment.worker(relay={**here.relay, "connections_per_application": 2})),
    ):
        await until(socket_there(here), bool)
        client, renewed, other = here.gate.client(), here.gate.client(), here.gate.client(app="a2")
        await here.deployment.admit(client, renewed, other)
        streams = [await here.websocket(client), await here.websocket(renewed)]

        async def status(who: Client) -> bytes:
            streams.append(await here.open(who))
            return (await streams[-1][0].readline()).split()[1]

        assert [await status(client), await status(renewed)] == [b"503", b"503"]
        others = await here.websocket(other)
        streams[0][1].transport.abort()
        await until(partial(status, client), lambda code: code == b"101")
        await here.echoes(others)
        for stream in [*streams, others]:
            stream[1].transport.abort()


NOT_WEBSOCKETS = {
    "no rule": f"GET /other HTTP/1.1\r\nHost: g\r\n{UPGRADE}\r\n",
    "post": f"POST /events HTTP/1.1\r\nHost: g\r\nContent-Length: 0\r\n{UPGRADE}\r\n",
    "h2c": "GET /events HTTP/1.1\r\nHost: g\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    "either": "GET /events HTTP/1.1\r\nHost: g\r\nConnection: Upgrade\r\nUpgrade: websocket, h2c\r\n\r\n",
    "both": f"GET /events HTTP/1.1\r\nHost: g\r\n{UPGRADE}Upgrade: h2c\r\n\r\n",
    "connect": "CONNECT /events HTTP/1.1\r\nHost: g\r\n\r\n",
}


@threat(rows.CONNECTION_OUTLIVES)
async def test_nothing_else_is_upgraded(here: Relayed) -> None:
    client = here.gate.client()
    now = int(time.time())
    await here.deployment.say(host_lease(now), lease(client, now, allow=["GET,POST /events"]))
    await here.deployment.reported(client.key, "admitted", 1)
    for name, head in NOT_WEBSOCKETS.items():
        reader, writer = await here.open(client, head)
        status = int((await reader.readline()).split()[1])
        assert status in {400, 403, 405}, name
        writer.transport.abort()
    assert here.upstream.heads == []


async def test_ordinary_requests_go_by_the_relay_no_more_than_before(here: Relayed) -> None:
    """Straight to the controller, in the same words, and what spells an admission from outside is stripped."""
    client = here.gate.client()
    await here.deployment.admit(client)
    spoofed = "X-Attestgate-Admission: cert.aa host.bb\r\n"
    stream = await here.open(client, f"GET /a%20b?c=%2f HTTP/1.1\r\nHost: g\r\n{spoofed}\r\n")
    assert (await stream[0].readline()).startswith(b"HTTP/1.1 200")
    stream[1].transport.abort()
    (head,) = here.upstream.heads
    assert head.startswith(b"GET /a%20b?c=%2f HTTP/1.1\r\n")
    assert b"pgrade" not in head
    assert head.count(b"X-Attestgate-Admission") == 1 and b"cert.aa " not in head


NAMED = b"\r\nX-Attestgate-Admission: %(key)s %(host)s"
WHO = b"\r\nX-Attestgate-Identity: spiffe://sdn.example.org/host/h1/app/a1"
NOT_HANDED_OVER = {
    "unnamed": b"GET / HTTP/1.1\r\nHost: g\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\nX-Attestgate-Admission: %(key)s host.00" + WHO + b"\r\n\r\n",
    "two": b"GET / HTTP/1.1" + NAMED + NAMED + WHO + b"\r\n\r\n",
    "nobody's": b"GET / HTTP/1.1" + NAMED + b"\r\n\r\n",
    "two identities": b"GET / HTTP/1.1" + NAMED + WHO + WHO + b"\r\n\r\n",
    "not admitted": b"GET / HTTP/1.1\r\nX-Attestgate-Admission: cert.aa %(host)s" + WHO + b"\r\n\r\n",
    "too long": b"GET / HTTP/1.1" + NAMED + b"\r\nX-Filler: " + b"x" * 70_000 + b"\r\n\r\n",
    "not whole": b"GET / HTTP/1.1" + NAMED + b"\r\n",
}


@threat(rows.ADMIN_REACHED)
async def test_what_nginx_would_not_hand_over_is_not_carried(here: Relayed) -> None:
    client = here.gate.client()
    await here.deployment.admit(client)
    assert here.gate.config.relay is not None
    assert here.gate.config.relay.stat().st_mode & 0o777 == 0o600
    for name, head in NOT_HANDED_OVER.items():
        reader, writer = await asyncio.open_unix_connection(here.gate.config.relay)
        writer.write(head.replace(b"%(key)s", client.key.encode()).replace(b"%(host)s", HOST.encode()))
        writer.write_eof()
        assert await cut((reader, writer)), name
    assert here.upstream.heads == []


@threat(rows.ADMIN_REACHED)
async def test_its_socket_is_its_owners_alone_from_the_start_and_no_other_file_is(tmp_path: Path) -> None:
    """The mode of new files belongs to the process: what other tasks create meanwhile keeps theirs."""
    path = tmp_path / "relay.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    os.utime(path, (0, 0))
    before = os.umask(0)
    relay = asyncio.create_task(Relay(RelaySettings(socket=path, controller="127.0.0.1:1"), lambda key: 0).run())
    try:
        for turn in range(20):
            await asyncio.sleep(0)
            (tmp_path / str(turn)).touch()
            if path.stat().st_mtime:
                assert path.stat().st_mode & 0o777 == 0o600
        assert path.stat().st_mtime, "the stale one is replaced"
        assert {(tmp_path / str(turn)).stat().st_mode & 0o777 for turn in range(20)} == {0o666}
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write_eof()
        assert await cut((reader, writer))
    finally:
        os.umask(before)
        relay.cancel()
    await asyncio.gather(relay, return_exceptions=True)
    assert not path.exists()


def test_a_stock_nginx_has_no_relay(tmp_path: Path) -> None:
    config = Gate(tmp_path, time.time).config
    with pytest.raises(ValidationError, match="njs"):
        NginxConfig.model_validate({**config.model_dump(), "mode": "stock", "relay": tmp_path / "r"})


@pytest.mark.parametrize("name", ["controller.toml", "nowhere/relay.sock"])
async def test_a_file_that_is_no_socket_stays(tmp_path: Path, name: str) -> None:
    """A path typed wrong: what is there is not taken away, and the worker says so and ends."""
    kept = tmp_path / "controller.toml"
    kept.write_text("kept")
    async with relayed(tmp_path) as here:
        wrong = {"socket": tmp_path / name, "controller": here.gate.config.controller}
        with pytest.raises(Refusal) as refused:
            async with asyncio.timeout(15):
                await here.deployment.worker(relay=wrong).run()
    assert refusal_code(refused) == "gateway.relay"
    assert str(tmp_path / name) in refused.value.reasons[0].field
    assert kept.read_text() == "kept"
