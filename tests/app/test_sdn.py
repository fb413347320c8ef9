"""The whole path to a real switch: an attested application's flow is in its table, a drifted host's is not."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import httpx
import pytest

from attestgate.compose.local.recorded import DRIFT
from attestgate.compose.local.stack import Stack
from attestgate.compose.local.up import one_of_each
from attestgate.compose.nginx.process import free_port
from tests.support.app.switch import DATAPATH_ID, WHY_NOT, Switch, switch
from tests.support.gateway.gate import until

pytestmark = [pytest.mark.stack, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]


async def connected(stack: Stack) -> None:
    """The switch has found its controller."""
    transport = httpx.AsyncHTTPTransport(uds=str(stack.nginx.config.controller))
    async with httpx.AsyncClient(transport=transport, base_url="http://controller") as http:

        async def switches() -> object:
            return (await http.get("/switches")).json()

        assert await until(switches, bool) == [{"id": "s1"}]


async def test_a_flow_arrives_and_after_a_drift_none_does(tmp_path: Path) -> None:
    openflow = free_port()
    controller = ("simulated", "sdn", "--openflow", str(openflow), "--name", f"s1={DATAPATH_ID}")
    async with switch(tmp_path / "ovs") as bridge, Stack(tmp_path / "s", controller=controller) as stack:
        await bridge.controlled_by(openflow)
        await connected(stack)
        assert await bridge.flows() == []
        listed = await one_of_each(stack)
        assert await stack.saw("app-1", "add flow", 201, within_s=60) is not None
        flows = await in_table(bridge)
        drifted = time.time()
        fresh = tmp_path / "fresh"
        shutil.copy(DRIFT, fresh)
        fresh.replace(listed)
        await stack.until("host", "host-1", "untrusted")
        assert await stack.saw("app-1", "add flow", 403, since=drifted) is not None
        assert await bridge.flows() == flows
        assert "northbound" in stack.log("controller")


async def in_table(bridge: Switch) -> list[str]:
    """The flow table, which holds the application's flow and nothing else."""
    flows = await bridge.flows()
    assert len(flows) == 1, flows
    assert "priority=100,in_port=1 actions=output:2" in flows[0]
    return flows
