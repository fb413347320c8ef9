"""One stack for all of these tests: a trusted host, two admitted applications, and whoever a test adds.

A test that ends somebody's trust brings it back; what it needs itself, it asks for first.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from attestgate.compose.local.recorded import CLEAN
from attestgate.compose.local.stack import Stack
from tests.support.processes import processes_of
from tests.support.story import APPS, HOST, MACHINE, measurement_list


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def stack() -> AsyncIterator[Stack]:
    """The stack with its host and applications; at the end, nothing of it may be left."""
    with tempfile.TemporaryDirectory(prefix="attestgate-test-") as name:
        folder = Path(name)
        async with Stack(folder) as running:
            listed = measurement_list(running)
            shutil.copy(CLEAN, listed)
            await running.put_policy(listed)
            await running.enrol_host(HOST, MACHINE)
            for index, app in enumerate(APPS):
                await running.enrol_app(app, HOST, index)
            await running.start_host(HOST, MACHINE, listed, list(APPS))
            await running.until("host", HOST, "trusted")
            for app in APPS:
                await running.start_app(app, HOST, MACHINE)
            for app in APPS:
                await running.until("app", app, "admitted")
            yield running
        assert running.children.running() == []
        assert processes_of(folder) == []
