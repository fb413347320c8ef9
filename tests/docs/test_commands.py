"""The commands in the docs do what the docs say."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from attestgate.compose.local.recorded import CLEAN
from attestgate.compose.local.stack import Stack
from attestgate.compose.local.up import one_of_each
from tests.support.commands import commands, run_all

pytestmark = pytest.mark.stack


def test_a_deployment_is_made_as_the_page_says(tmp_path: Path) -> None:
    shutil.copy(CLEAN, tmp_path / "list.bin")
    lines = commands("getting-started.md")
    assert len(lines) > 10
    ran = run_all(lines, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "operator.toml: valid settings of: operator" in ran.stdout
    for name in ("host-1.creds", "app-1.creds", "set.signed"):
        assert (tmp_path / name).stat().st_size > 0


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """A stack with host-1 trusted and app-1 admitted."""
    async with Stack(tmp_path / "s") as running:
        await one_of_each(running)
        yield running


async def test_an_operators_day_goes_as_the_page_says(stack: Stack, tmp_path: Path) -> None:
    lines = commands("operations.md", "Routine commands")
    assert any(line.startswith("attestgate revoke") for line in lines)
    operator = str(stack.plan.settings("operator"))
    mark = stack.events.mark
    environment = {"ATTESTGATE_OPERATOR": operator, "ATTESTGATE_JWKS": str(stack.plan.keys / "jwks.json")}
    ran = await asyncio.to_thread(run_all, lines, tmp_path, **environment)
    assert ran.returncode == 0, ran.stderr
    assert "host-1" in ran.stdout and "app-1" in ran.stdout
    assert "valid: " in ran.stdout and "app app-1  issued" in ran.stdout
    await stack.until("app", "app-1", "revoked", since=mark)
