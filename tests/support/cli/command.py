"""What a command did, a command as a process of its own, and what it left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import processes_of

NOBODY = "nats://127.0.0.1:1"
"""An address where nothing listens (port 1, tcpmux)."""


@dataclass(frozen=True)
class Ran:
    """A command's exit status and what it wrote."""

    status: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """Its complaint, which must be one line for a person, and nothing but that."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, f"one line, not {len(lines)}: {self.err}"
        assert lines[0].startswith("attestgate: "), lines[0]
        assert "Traceback" not in self.err
        return lines[0]


class Command:
    """`attestgate ARGUMENTS` as a process, with a folder of its own for temporary files."""

    def __init__(self, process: asyncio.subprocess.Process, temporary: Path) -> None:
        self.process = process
        self.temporary = temporary
        self.output = ""

    async def until(self, marker: str) -> None:
        """Read its output up to a line that holds `marker`."""
        assert self.process.stdout is not None
        while line := (await self.process.stdout.readline()).decode():
            self.output += line
            if marker in line:
                return
        raise AssertionError(f"it never said {marker!r}: {self.output}")

    async def end(self) -> int:
        """Read the rest; its exit status."""
        assert self.process.stdout is not None
        self.output += (await self.process.stdout.read()).decode()
        return await self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal: to it alone, as `kill` does. None to one that has ended."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def processes(self) -> list[str]:
        """Every process that has anything to do with its temporary folder, itself too."""
        return processes_of(self.temporary)

    async def gone(self) -> None:
        """Return once none of its processes is left: the kernel takes a moment to end orphans."""
        while self.processes():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def started(temporary: Path, *arguments: str) -> AsyncIterator[Command]:
    """Start a command; what is left of it at the end is killed by its ids."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "attestgate.cli",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    command = Command(process, temporary)
    try:
        yield command
    finally:
        for entry in command.processes():
            with suppress(ProcessLookupError):
                os.kill(int(entry.split()[0]), signal.SIGKILL)
        await process.communicate()
