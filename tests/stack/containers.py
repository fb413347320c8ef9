"""The stack in containers, as a person with Docker sees it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attestgate.bus.auth.credentials import holder
from attestgate.compose.images.prepare import APPS, prepare
from attestgate.compose.local.recorded import CLEAN, DRIFT
from tests.stack.engine import Engine

ROOT = Path(__file__).resolve().parents[2]
LOCAL = {
    "ATTESTGATE_BASE": "attestgate/base:bookworm",
    "ATTESTGATE_SWITCH_BASE": "attestgate/switch-base:bookworm",
    "ATTESTGATE_PROMETHEUS": "attestgate/prometheus:bookworm",
}
"""The images that compose/images/local-images makes."""
BRIDGE = "unix:/run/openvswitch/br0.mgmt"
LAST_EVENT = """
import asyncio, sys, nats
from nats.js.errors import NotFoundError

async def main(server, credentials, subject):
    bus = await nats.connect(server, user_credentials=credentials, inbox_prefix=sys.argv[4])
    try:
        print((await bus.jetstream().get_last_msg("ATTEST_EVENTS", subject)).data.decode())
    except NotFoundError:
        print("null")
    finally:
        await bus.close()

asyncio.run(main(*sys.argv[1:4]))
"""
EVERY_S = 0.25


class Containers:
    """One project of the stack. `folder` is what `compose.prepare` made."""

    def __init__(self, engine: Engine, folder: Path, project: str, overrides: tuple[str, ...] = ()) -> None:
        self.engine = engine
        self.folder = folder
        self.project = project
        self.nats_port, self.gateway_port, self.prometheus_port = _free_port(), _free_port(), _free_port()
        self._volumes = self._all_volumes()
        files = [argument for name in ("compose.yaml", *overrides) for argument in ("-f", str(ROOT / "compose" / name))]
        self._command = [*engine.compose, "-p", project, "--env-file", str(folder / "env"), *files]
        self._environment = {
            **LOCAL,
            "COMPOSE_PROFILES": "prometheus",
            "ATTESTGATE_NATS_PORT": str(self.nats_port),
            "ATTESTGATE_GATEWAY_PORT": str(self.gateway_port),
            "ATTESTGATE_PROMETHEUS_PORT": str(self.prometheus_port),
        }

    def compose(self, *arguments: str, timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
        """`docker compose ARGUMENTS`."""
        return self.engine.run(*self._command, *arguments, timeout_s=timeout_s, **self._environment)

    def done(self, *arguments: str) -> str:
        """The same, which has to succeed; its output."""
        ran = self.compose(*arguments)
        assert ran.returncode == 0, f"{' '.join(arguments)}: {ran.stdout[-2000:]}{ran.stderr[-2000:]}"
        return ran.stdout

    def ids(self, service: str) -> list[str]:
        """The containers of a service."""
        return self.done("ps", "-q", service).split()

    def health(self, service: str) -> list[str]:
        """The health of each container of a service."""
        found = self.engine.run("docker", "inspect", *self.ids(service))
        return [container["State"].get("Health", {}).get("Status", "none") for container in json.loads(found.stdout)]

    def until_healthy(self, *services: str, within_s: float = 90.0) -> None:
        """Return once every container of these is healthy."""
        for service in services:
            self.until(lambda name=service: set(self.health(name)) == {"healthy"}, f"{service} healthy", within_s)

    def until(self, holds: object, what: str, within_s: float = 120.0) -> None:
        """Return once `holds()` is true."""
        assert callable(holds)
        until = time.monotonic() + within_s
        while not holds():
            assert time.monotonic() < until, f"not in {within_s:g} s: {what}\n{self.logs()}"
            time.sleep(EVERY_S)

    def logs(self, *services: str) -> str:
        """The last lines that containers have logged."""
        return self.compose("logs", "--no-color", "--tail=5", *services).stdout[-6000:]

    def seen(self, app: str) -> list[dict[str, object]]:
        """What an application's program has written to its status file."""
        ran = self.compose("exec", "-T", "machine", "cat", f"/run/agents/{app}.jsonl")
        return [json.loads(line) for line in ran.stdout.splitlines()]

    def last_status(self, app: str) -> object:
        """The last HTTP status that an application's program got."""
        lines = [line["status"] for line in self.seen(app) if "status" in line]
        return lines[-1] if lines else None

    def until_status(self, app: str, status: int, within_s: float = 60.0) -> None:
        """Return once an application's last status is this one."""
        self.until(lambda: self.last_status(app) == status, f"{app} gets {status}", within_s)

    def drift(self) -> None:
        """Have the host's measurement list grow by what no policy knows."""
        with (self.folder / "measurement-list").open("ab") as file:
            file.write(DRIFT.read_bytes()[len(CLEAN.read_bytes()) :])

    def reboot_clean(self) -> None:
        """Have the host start anew with the list that it had."""
        os.truncate(self.folder / "measurement-list", len(CLEAN.read_bytes()))
        self.done("restart", "host-1")
        self.until_healthy("host-1", *APPS)

    def flows(self) -> list[str]:
        """The switch's flow table, as the switch itself says it."""
        said = self.done("exec", "-T", "switch", "ovs-ofctl", "-O", "OpenFlow13", "dump-flows", BRIDGE)
        return [line.strip() for line in said.splitlines() if "cookie=" in line]

    def last_event(self, kind: str, id: str, what: str) -> Any:
        """The newest event of its kind about somebody, as a viewer reads it; None if there is none."""
        server = f"nats://127.0.0.1:{self.nats_port}"
        credentials = self.folder / "keys" / "credentials" / "viewer-viewer.creds"
        subject = f"attest.v1.events.{kind}.{id}.{what}"
        inbox = holder(credentials).inbox
        asked = self.python(LAST_EVENT, server, str(credentials), subject, inbox)
        assert asked.returncode == 0, asked.stderr
        return json.loads(asked.stdout)

    def prometheus(self, path: str) -> Any:
        """What Prometheus answers at /api/v1/`path`; None where it does not."""
        url = f"http://127.0.0.1:{self.prometheus_port}/api/v1/{path}"
        asked = self.python("import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode())", url)
        return json.loads(asked.stdout)["data"] if asked.returncode == 0 else None

    def python(self, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python where the published ports are."""
        return self.engine.reach(sys.executable, "-c", code, *arguments, timeout_s=60)

    @contextmanager
    def instead(self, service: str, variable: str, value: str) -> Iterator[str]:
        """Another container of a service in its place, with one setting changed; its id. Then the first one again."""
        self.done("stop", service)
        name = f"{self.project}-instead"
        try:
            self.done("run", "-d", "--no-deps", "--name", name, "-e", f"{variable}={value}", service)
            yield name
        finally:
            self.engine.run("docker", "rm", "--force", name)
            self.done("start", service)

    def attestgate(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`attestgate ARGUMENTS` by the operator, in a container of his own."""
        operator = ("--operator", "/etc/attestgate/operator.toml")
        entry = ("run", "--rm", "-T", "--no-deps", "--entrypoint", "attestgate", "enrol")
        return self.compose(*entry, *arguments, *operator)

    def scale(self, service: str, number: int) -> None:
        """Have so many containers of a service; what is over is removed with its memory."""
        over = self.ids(service)[number:]
        if over:
            self.engine.run("docker", "rm", "--force", "--volumes", *over)
        self.done("up", "-d", "--no-recreate", "--no-deps", "--scale", f"{service}={number}", service)

    def left(self) -> str:
        """Every container and network of the project that there still is, and every volume made since it began."""
        label = f"label=com.docker.compose.project={self.project}"
        kinds = (("ps", "-a"), ("network", "ls"))
        found = [self.engine.run("docker", *kind, "-q", "--filter", label).stdout for kind in kinds]
        return "".join([*found, *(self._all_volumes() - self._volumes)])

    def _all_volumes(self) -> set[str]:
        return set(self.engine.run("docker", "volume", "ls", "-q").stdout.split())


@contextmanager
def up(engine: Engine, folder: Path, project: str, overrides: tuple[str, ...] = ()) -> Iterator[Containers]:
    """The stack, built and started; at the end everything of it is gone, volumes too."""
    prepare(folder)
    containers = Containers(engine, folder, project, overrides)
    try:
        containers.done("build")
        containers.done("up", "-d")
        containers.until_healthy("host-1", "app-1", "app-2", "gateway", "nginx", "manager")
        yield containers
    finally:
        everything = ("--profile", "prometheus", "--profile", "second")
        containers.compose(*everything, "down", "--volumes", "--remove-orphans", "--timeout", "5")
        shutil.rmtree(folder)


def base_images(engine: Engine) -> str | None:
    """Have the base images made where there are none; what is wrong, if they cannot be."""
    ran = engine.run(str(ROOT / "compose" / "images" / "local-images"), timeout_s=1800)
    return None if ran.returncode == 0 else ran.stderr.strip() or f"local-images ended with {ran.returncode}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


WANTED = "ATTESTGATE_TEST_STACK"
