"""The real nginx for each test, in a folder of its own."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.gateway.deployment import GatewayDeployment, at_work
from tests.support.gateway.gate import Gate, running


@pytest.fixture
async def gate(tmp_path: Path) -> AsyncIterator[Gate]:
    async with running(Gate(tmp_path, time.time)) as gate:
        yield gate


@pytest.fixture
def deployment(gate: Gate) -> GatewayDeployment:
    return GatewayDeployment(gate)


@pytest.fixture
async def working(deployment: GatewayDeployment) -> AsyncIterator[GatewayDeployment]:
    async with at_work(deployment.worker()):
        yield deployment
