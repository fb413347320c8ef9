"""A Docker engine for the tests: the one that runs, else one of their own that leaves nothing behind.

Their own runs in network and mount namespaces of its own: its bridges, packet filters and published ports are seen by
nobody else, and are gone with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

HINT = (
    "no Docker engine: on Debian, as root, `apt-get install docker.io docker-compose debootstrap iproute2` is enough: "
    "the tests then start dockerd themselves; elsewhere start Docker"
)
READY_S = 60.0


class NoEngine(Exception):
    """There is none to be had here, and why."""


@dataclass(frozen=True)
class Engine:
    """How to reach an engine: its environment, and what to put before a command that uses its published ports."""

    environment: dict[str, str] = field(default_factory=dict)
    inside: tuple[str, ...] = ()

    def run(self, *command: str, timeout_s: float = 300.0, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command that talks to the engine."""
        return subprocess.run(
            command,
            env={**os.environ, **self.environment, **more},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def reach(self, *command: str, timeout_s: float = 60.0, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command that uses published ports, where they are."""
        return self.run(*self.inside, *command, timeout_s=timeout_s, **more)

    @property
    def compose(self) -> tuple[str, ...]:
        """The compose command that there is. Raises NoEngine."""
        if self.run("docker", "compose", "version").returncode == 0:
            return ("docker", "compose")
        if shutil.which("docker-compose"):
            return ("docker-compose",)
        raise NoEngine(HINT)


@contextmanager
def engine(folder: Path) -> Iterator[Engine]:
    """The engine that runs, or one started in `folder`. Raises NoEngine."""
    if shutil.which("docker") is None:
        raise NoEngine(HINT)
    running = Engine()
    if running.run("docker", "info").returncode == 0:
        yield running
        return
    needed = ("dockerd", "ip", "nsenter", "unshare")
    if os.getuid() != 0 or any(shutil.which(program) is None for program in needed):
        raise NoEngine(HINT)
    with _own(folder) as own:
        yield own


@contextmanager
def _own(folder: Path) -> Iterator[Engine]:
    socket, log = folder / "docker.sock", folder / "dockerd.log"
    dockerd = ["dockerd", "--storage-driver=overlay2", "-H", f"unix://{socket}", "--pidfile", str(folder / "pid")]
    dockerd += ["--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")]
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *dockerd],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        own = Engine({"DOCKER_HOST": f"unix://{socket}"}, ("nsenter", "--target", str(process.pid), "--net"))
        until = time.monotonic() + READY_S
        while not (socket.exists() and own.run("docker", "info").returncode == 0):
            if process.poll() is not None or time.monotonic() > until:
                lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
                raise NoEngine(f"dockerd does not start here: {lines[-1] if lines else 'it says nothing'}")
            time.sleep(0.2)
        yield own
    finally:
        process.terminate()
        process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=False)
