"""Child processes of a stack on one machine: each with its own log, stopped by process id, none outlives this one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from attestgate.bus.server.embedded import die_with_parent
from attestgate.schemas.base import Refusal

STOP_S = 10.0


@dataclass
class Child:
    """One process. Its output, standard error with it, goes to `log`."""

    name: str
    process: asyncio.subprocess.Process
    log: Path

    @property
    def running(self) -> bool:
        """Whether it is still running."""
        return self.process.returncode is None

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL if it does not end."""
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                await self.process.wait()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """SIGKILL: no clean shutdown."""
        self._signal(signal.SIGKILL)
        await self.process.wait()

    def line_with(self, marker: str) -> str | None:
        """The first line of its log that holds `marker`."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line for line in lines if marker in line), None)

    def last_lines(self, count: int = 5) -> str:
        """The end of its log."""
        try:
            return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])
        except OSError:
            return ""

    def _signal(self, number: signal.Signals) -> None:
        if self.running:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)


class Children:
    """Starts children and stops them in reverse order. Use as an async context manager."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._children: list[Child] = []

    async def start(self, name: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Child:
        """Start `attestgate ARGUMENTS` of this installation."""
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"{name}.log"
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "attestgate.cli",
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
        child = Child(name, process, log)
        self._children.append(child)
        return child

    def running(self) -> list[str]:
        """The names of those still running."""
        return [child.name for child in self._children if child.running]

    def named(self, name: str) -> Child:
        """The newest child of that name."""
        return next(child for child in reversed(self._children) if child.name == name)

    def newest(self, prefix: str) -> Child:
        """The newest running child whose name has this prefix."""
        return next(child for child in reversed(self._children) if child.name.startswith(prefix) and child.running)

    async def line(self, child: Child, marker: str, within_s: float) -> str:
        """The first line of a child's log that holds `marker`.

        Raises Refusal `stack.child` if the child ends first, or logs no such line in time.
        """
        try:
            async with asyncio.timeout(within_s):
                while (line := child.line_with(marker)) is None and child.running:  # noqa: ASYNC110  a file tells nobody
                    await asyncio.sleep(0.02)
        except TimeoutError:
            line = None
        if line is None:
            found = f"not after {within_s:g} s" if child.running else f"exit code {child.process.returncode}"
            raise Refusal.because(
                "stack.child",
                child.name,
                expected=f"a process that logs {marker!r}",
                found=found,
                action=f"check the end of its log: {child.last_lines()}",
            )
        return line

    async def __aenter__(self) -> Children:
        return self

    async def __aexit__(self, *_: object) -> None:
        for child in reversed(self._children):
            await child.stop()
