"""`attestgate demo` and `up`, interrupted at any time and in any way: no process is left, and no secret on disk."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.cli.command import started

pytestmark = pytest.mark.stack

KEYS = "making the deployment's keys"
SERVER = "nats-server in operator mode"
MACHINES = "simulated SGX machines"
ENCLAVES = "host host-1 challenged"
"""Lines of the demo: by the last, the host's enclave runs."""
LONG_S = 180.0
"""By then something hangs."""


@pytest.fixture
def temporary() -> Iterator[Path]:
    """For temporary files. Its path is short: that of a socket has at most 107 bytes."""
    with TemporaryDirectory(prefix="attestgate-") as name:
        yield Path(name)


@pytest.mark.parametrize(
    ("moment", "number"),
    [(KEYS, signal.SIGINT), (SERVER, signal.SIGINT), (ENCLAVES, signal.SIGINT), (SERVER, signal.SIGTERM)],
    ids=["keys", "server", "enclaves", "server-SIGTERM"],
)
async def test_a_demo_that_is_told_to_stop_tidies_up(temporary: Path, moment: str, number: signal.Signals) -> None:
    async with asyncio.timeout(LONG_S), started(temporary, "demo") as demo:
        await demo.until(moment)
        demo.signal(number)
        assert await demo.end() == 130
        assert demo.output.splitlines()[-1] == "stopped" and "Traceback" not in demo.output
        assert demo.processes() == []
        assert list(temporary.iterdir()) == []


async def test_an_impatient_ctrl_c_changes_nothing(temporary: Path) -> None:
    async with asyncio.timeout(LONG_S), started(temporary, "demo") as demo:
        await demo.until(MACHINES)
        ending = asyncio.create_task(demo.end())
        while any(temporary.iterdir()):
            demo.signal(signal.SIGINT)
            await asyncio.wait({ending}, timeout=0.02)
        assert await ending == 130
        assert "Traceback" not in demo.output
        assert demo.processes() == []
        assert list(temporary.iterdir()) == []


async def test_a_demo_that_is_killed_leaves_no_orphan(temporary: Path) -> None:
    async with asyncio.timeout(LONG_S), started(temporary, "demo") as demo:
        await demo.until(ENCLAVES)
        assert len(demo.processes()) > 8  # itself, server, machines, service, manager, controller, nginx, worker, host
        demo.signal(signal.SIGKILL)
        assert await demo.end() == -signal.SIGKILL
        await demo.gone()
        assert demo.processes() == []


async def test_a_demo_that_nobody_reads_ends(temporary: Path) -> None:
    async with asyncio.timeout(LONG_S), started(temporary, "demo") as demo:
        await demo.until("The stack starts")
        transport = demo.process._transport.get_pipe_transport(1)  # type: ignore[attr-defined]
        transport.close()
        assert await demo.process.wait() not in (0, None)
        await demo.gone()
        assert list(temporary.iterdir()) == []


async def test_up_says_how_to_watch_it_and_stays_until_ctrl_c(temporary: Path) -> None:
    async with asyncio.timeout(LONG_S), started(temporary, "up") as up:
        await up.until("Ctrl-C ends everything")
        (folder,) = temporary.iterdir()
        for said in ("sub 'attest.v1.events.>'", "attestgate sessions --operator", "attestgate revoke app app-1"):
            assert said in up.output
        assert f"removes {folder}" in up.output
        (path,) = re.findall(r'PATH="(.*):\$PATH"', up.output)
        assert Path(path, "attestgate").exists()
        for word in up.output.split():
            if word.startswith(str(folder)):
                assert Path(word.rstrip(".")).exists(), word
        assert up.process.returncode is None
        up.signal(signal.SIGINT)
        assert await up.end() == 130
        assert up.processes() == []
        assert list(temporary.iterdir()) == []


async def test_without_python3_venv_make_says_what_to_install(tmp_path: Path) -> None:
    ended = await _make(tmp_path, lacks="venv")
    assert ended == (2, "attestgate needs Python's venv module: apt-get install python3-venv")


async def test_with_a_python_too_old_make_says_so(tmp_path: Path) -> None:
    status, said = await _make(tmp_path, lacks="sys.version_info")
    assert status == 2 and said.startswith("attestgate needs ") and "3.11" in said


async def _make(folder: Path, *, lacks: str) -> tuple[int, str]:
    """`make setup` in a clean copy, with a Python that fails at a line with `lacks` in it; the line it says."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    root = Path(__file__).resolve().parent.parent.parent
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(root / name, folder)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\ncase "$2" in *{lacks}*) exit 1;; esac\n')
    python.chmod(0o755)
    process = await asyncio.create_subprocess_exec(
        *(make, "-s", "setup", f"PYTHON={python}"),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))},
    )
    out, _ = await process.communicate()
    lines = [line for line in out.decode().splitlines() if not line.startswith("make: ***")]
    assert len(lines) == 1, lines
    assert not (folder / ".venv").exists()
    return process.returncode or 0, lines[0]
