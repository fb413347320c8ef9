"""The egress proxy before the real nginx: a request goes as it came, whole or not at all."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from attestgate.app_agent import proxy
from attestgate.app_agent.application import Application
from attestgate.app_agent.step8_open import client
from attestgate.schemas.settings import Measured
from tests.support.gateway.gate import Gate, until

pytestmark = pytest.mark.stack


@pytest.fixture
async def socket(gate: Gate, tmp_path: Path) -> AsyncIterator[Path]:
    """The proxy of an admitted application."""
    admitted = gate.client()
    await gate.admit(admitted)
    measured = cast(Measured, SimpleNamespace(gateway_name="localhost"))
    application = SimpleNamespace(
        settings=SimpleNamespace(proxy_socket=tmp_path / "p.sock", proxy_port=None),
        client=lambda: client(lambda: admitted.context, f"127.0.0.1:{gate.config.port}", measured),
    )
    serving = asyncio.create_task(proxy.main(cast(Application, application)))

    async def listening() -> bool:
        try:
            _, writer = await asyncio.open_unix_connection(tmp_path / "p.sock")
        except OSError:
            return False
        writer.transport.abort()
        return True

    await until(listening, bool)
    yield tmp_path / "p.sock"
    serving.cancel()
    await asyncio.wait([serving])


async def ask(socket: Path, request: bytes) -> int:
    reader, writer = await asyncio.open_unix_connection(socket)
    writer.write(request)
    answer = await reader.read()
    writer.transport.abort()
    return int(answer.split(b" ", 2)[1])


CHUNKS = b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
BODIES = {
    "chunks": CHUNKS,
    "chunks and a shorter length": b"Content-Length: 3\r\n" + CHUNKS,
    "a length": b"Content-Length: 5\r\n\r\nabcde",
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_body_arrives_whole(gate: Gate, socket: Path, name: str) -> None:
    status = await ask(socket, b"POST /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + BODIES[name])
    assert [await request.body() for request in gate.upstream.requests] == [b"abcde"]
    assert status == 200


@pytest.mark.parametrize(
    "body",
    [b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"Content-Length: 5\r\n\r\nabc"],
    ids=["chunks", "a length"],
)
async def test_a_body_that_breaks_off_is_no_request(gate: Gate, socket: Path, body: bytes) -> None:
    _, writer = await asyncio.open_unix_connection(socket)
    writer.write(b"POST /x HTTP/1.1\r\nHost: a\r\n" + body)
    await writer.drain()
    writer.close()
    await ask(socket, b"GET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert [request.url.path for request in gate.upstream.requests] == ["/next"]


@pytest.mark.parametrize(
    "target", ["/a%20b?c=%3A&d=e+f", "/a%22b?'%22<>", "http://elsewhere.example/a?b", "http://elsewhere.example"]
)
async def test_a_target_arrives_as_it_came(gate: Gate, socket: Path, target: str) -> None:
    """In absolute form it is judged, and goes on, by its path."""
    assert await ask(socket, f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()) == 200
    (request,) = gate.upstream.requests
    path = "/" + target.removeprefix("http://elsewhere.example").removeprefix("/")
    assert f"{request.scope['raw_path'].decode()}?{request.url.query}".rstrip("?") == path
    assert request.headers["host"] == "controller"


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("CONNECT", "elsewhere.example:443"),
        ("GET", "elsewhere.example/x"),
        ("GET", "@elsewhere.example/x"),
        ("GET", "//elsewhere.example/x"),
        ("GET", "/a/../b"),
        ("GET", "/a%2fb"),
        ("GET", "/a#b"),
        ("OPTIONS", "*"),
    ],
)
async def test_what_the_gateway_refuses_is_refused_and_goes_nowhere_else(
    gate: Gate, socket: Path, method: str, target: str
) -> None:
    status = await ask(socket, f"{method} {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    assert status in {400, 403, 405}
    assert gate.upstream.requests == []
