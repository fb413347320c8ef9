"""The small SDN controller: switches and flows, on a socket of its own."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from attestgate.compose.sdn.controller import MAX_FLOWS, Controller, application, serve

FLOW: dict[str, Any] = {"priority": 10, "match": {"eth_type": "0x0800"}, "actions": ["output:2"]}


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(application(Controller()))
    async with httpx.AsyncClient(transport=transport, base_url="http://controller") as client:
        yield client


async def test_a_flow_comes_and_goes(http: httpx.AsyncClient) -> None:
    assert (await http.get("/switches")).json() == [{"id": "s1", "flows": 0}, {"id": "s2", "flows": 0}]
    added = await http.post("/switches/s1/flows", json=FLOW)
    assert added.status_code == 201
    assert added.json() == {"id": 1, **FLOW}
    assert (await http.get("/switches/s1/flows")).json() == [added.json()]
    assert (await http.get("/switches/s2/flows")).json() == []
    assert (await http.delete("/switches/s2/flows/1")).status_code == 404
    assert (await http.delete("/switches/s1/flows/1")).status_code == 204
    assert (await http.delete("/switches/s1/flows/1")).status_code == 404
    assert (await http.post("/switches/s1/flows", json=FLOW)).json()["id"] == 2


@pytest.mark.parametrize(
    "body",
    [b"", b"nope", b"[]", b"{}", b'{"match":{},"actions":[],"priority":65536}', b'{"match":{},"actions":[],"x":1}'],
)
async def test_a_flow_that_is_none_is_refused_by_its_field(http: httpx.AsyncClient, body: bytes) -> None:
    assert (await http.post("/switches/s1/flows", content=body)).status_code == 422
    assert (await http.get("/switches/s1/flows")).json() == []


async def test_what_is_not_there(http: httpx.AsyncClient) -> None:
    for method, path in (("GET", "/switches/s9/flows"), ("POST", "/switches/s9/flows"), ("GET", "/"), ("PUT", "/x")):
        assert (await http.request(method, path)).status_code == 404


async def test_a_table_has_an_end() -> None:
    controller = Controller(("s1",))
    transport = httpx.ASGITransport(application(controller))
    async with httpx.AsyncClient(transport=transport, base_url="http://controller") as http:
        first = (await http.post("/switches/s1/flows", json=FLOW)).json()["id"]
        flows = controller._flows["s1"]
        flows.update(dict.fromkeys(range(first + 1, MAX_FLOWS + 1), flows[first]))
        assert (await http.post("/switches/s1/flows", json=FLOW)).status_code == 507


async def test_who_did_it_is_logged(http: httpx.AsyncClient) -> None:
    with capture_logs() as logs:
        await http.post("/switches/s1/flows", json=FLOW, headers={"X-Attestgate-Identity": "spiffe://x/host/h/app/a"})
    (line,) = [line for line in logs if line["event"] == "northbound"]
    assert (line["identity"], line["method"], line["flow"]) == ("spiffe://x/host/h/app/a", "POST", 1)


async def test_it_serves_on_a_socket_of_its_own_and_goes_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    for _ in range(2):
        serving = asyncio.create_task(serve(path))
        await asyncio.sleep(0)
        assert path.stat().st_mode & 0o777 == 0o600
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, base_url="http://controller") as http:
            assert (await http.get("/switches")).status_code == 200
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert not path.exists()


async def test_a_file_that_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text("a key")
    with pytest.raises(OSError, match="in use"):
        async with asyncio.timeout(60):
            await serve(path)
    assert path.read_text() == "a key"
