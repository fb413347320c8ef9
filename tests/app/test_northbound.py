"""The os-ken controller's northbound with a real switch: list, add, delete, and what it does not take."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import httpx
import pytest

from attestgate.compose.nginx.process import free_port
from tests.support.app.switch import DATAPATH_ID, WHY_NOT, switch
from tests.support.gateway.gate import until

pytestmark = [pytest.mark.stack, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]
FLOW = {"priority": 5, "match": {"in_port": "3", "eth_type": "2048"}, "actions": ["output:4"]}


async def test_flows_come_and_go_at_the_switch(tmp_path: Path) -> None:
    openflow, path = free_port(), tmp_path / "c.sock"
    arguments = ("simulated", "sdn", "--socket", str(path), "--openflow", str(openflow))
    with (tmp_path / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "attestgate.cli", *arguments, stdout=log, stderr=log
        )
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    try:
        async with (
            switch(tmp_path / "ovs") as bridge,
            httpx.AsyncClient(transport=transport, base_url="http://controller") as http,
        ):
            await bridge.controlled_by(openflow)

            async def switches() -> object:
                try:
                    return (await http.get("/switches")).json()
                except httpx.TransportError:
                    return []

            assert await until(switches, bool) == [{"id": DATAPATH_ID}]
            flows = f"/switches/{DATAPATH_ID}/flows"
            added = await http.post(flows, json=FLOW)
            assert added.status_code == 201
            number = added.json()["id"]
            (listed,) = (await http.get(flows)).json()
            assert (listed["id"], listed["priority"], listed["actions"]) == (number, 5, ["output:4"])
            assert any("priority=5,ip,in_port=3 actions=output:4" in flow for flow in await bridge.flows())
            for wrong in ({"actions": ["drop-all"]}, {"actions": ["output:x"]}, {"priority": -1}):
                assert (await http.post(flows, json={**FLOW, **wrong})).status_code == 422
            assert (await http.delete(f"{flows}/{number + 1}")).status_code == 404
            assert (await http.delete(f"{flows}/{number}")).status_code == 204
            assert await bridge.flows() == [] == (await http.get(flows)).json()
            assert (await http.get("/switches/none/flows")).status_code == 404
            assert (await http.get("/switches/00000000000000ff/flows")).status_code == 502
    finally:
        process.terminate()
        await process.wait()
