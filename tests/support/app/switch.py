"""Open vSwitch in user space, in one folder: a bridge, its controller on loopback, and its flow table as it says it."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
BRIDGE = "br0"
DATAPATH_ID = "0000000000000001"
_COUNTERS = re.compile(r"(?:duration|n_packets|n_bytes|idle_age|hard_age)=[^,]+, ")


def missing() -> str:
    """Why there can be no switch here; empty if there can."""
    if shutil.which("ovs-vswitchd") is None or not SCHEMA.exists():
        return "no ovs-vswitchd here: make test-sdn installs Debian's openvswitch-switch"
    if os.geteuid() != 0:
        return "ovs-vswitchd in user space needs root for its tap device"
    return ""


@dataclass(frozen=True)
class Switch:
    """One bridge."""

    folder: Path
    environment: dict[str, str]

    async def flows(self) -> list[str]:
        """Its flow table, less counters."""
        target = f"unix:{self.folder}/{BRIDGE}.mgmt"
        output = await self._run("ovs-ofctl", "-O", "OpenFlow13", "dump-flows", target)
        return sorted(_COUNTERS.sub("", line).strip() for line in output.splitlines() if "cookie=" in line)

    async def controlled_by(self, port: int) -> None:
        """Have a controller on loopback; without one the bridge forwards nothing."""
        await self._vsctl("set-controller", BRIDGE, f"tcp:127.0.0.1:{port}")

    async def _vsctl(self, *arguments: str) -> str:
        return await self._run("ovs-vsctl", "--timeout=20", "--retry", f"--db=unix:{self.folder}/db.sock", *arguments)

    async def _run(self, *command: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *command, env=self.environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        output, complaint = await process.communicate()
        assert process.returncode == 0, f"{command}: {complaint.decode()}"
        return output.decode()


@asynccontextmanager
async def switch(folder: Path) -> AsyncIterator[Switch]:
    """A bridge without a controller yet. Everything is gone afterwards."""
    folder.mkdir()
    names = ("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR")
    here = Switch(folder, {**os.environ, **dict.fromkeys(names, str(folder))})
    await here._run("ovsdb-tool", "create", str(folder / "conf.db"), str(SCHEMA))
    daemons: list[asyncio.subprocess.Process] = []

    async def start(*command: str) -> None:
        with (folder / "log").open("ab") as log:
            daemons.append(await asyncio.create_subprocess_exec(*command, env=here.environment, stdout=log, stderr=log))

    try:
        database = f"unix:{folder}/db.sock"
        await start("ovsdb-server", str(folder / "conf.db"), f"--remote=p{database}", f"--unixctl={folder}/db.ctl")
        await here._vsctl("--no-wait", "init")
        await start("ovs-vswitchd", database, "--disable-system", f"--unixctl={folder}/v.ctl")
        await here._vsctl(
            *("add-br", BRIDGE, "--", "set", "bridge", BRIDGE, "datapath_type=netdev", "protocols=OpenFlow13"),
            *("fail_mode=secure", f"other-config:datapath-id={DATAPATH_ID}"),
        )
        yield here
        await here._vsctl("del-br", BRIDGE)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            await daemon.wait()


WHY_NOT = missing() or (
    "" if importlib.util.find_spec("os_ken") else "no os-ken here: make test-sdn installs requirements-sdn.lock"
)
