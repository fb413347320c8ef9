"""The real nginx for each test, in a folder of its own."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.support import Gate, running


@pytest.fixture
async def gate(tmp_path: Path) -> AsyncIterator[Gate]:
    async with running(Gate(tmp_path, time.time)) as gate:
        yield gate
