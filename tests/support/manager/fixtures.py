"""One world for all tests, a deployment of its own for each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.manager.deployment import Deployment, deployed
from tests.support.manager.world import World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
async def site(world: World, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(world, tmp_path) as deployment:
        yield deployment
