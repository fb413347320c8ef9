"""One authority with two machines, their daemons switched on, and a probe to run inside."""

from __future__ import annotations

import asyncio
import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attestgate
from attestgate.enclave.simulated import daemon, launcher

REPOSITORY = Path(attestgate.__file__).parents[2]

MANIFEST = """
entry = "probe"
packages = ["probe", "attestgate.enclave", "attestgate.schemas"]
distributions = ["cryptography", "msgpack", "packaging", "pydantic"]
environment = ["PROBE_*"]
isv_prod_id = 7
isv_svn = 3
debug = false
measured_settings = true
"""

PROBE = '''
"""Does what its first argument says, from inside, and prints JSON."""

import json, os, signal, socket, subprocess, sys, time

from attestgate.enclave.providers.choice import open_enclave

command, *rest = sys.argv[1:]
channel = int(os.environ["ATTESTGATE_ENCLAVE_FD"])
here = open_enclave("simulated", "development")


def say(**answer):
    print(json.dumps(answer), flush=True)


if command == "quote":
    say(quote=here.quote(bytes.fromhex(rest[0])).hex())
elif command == "keys":
    say(**{policy: here.sealing_key(policy).reveal().hex() for policy in ("mrenclave", "mrsigner")})
elif command == "look":
    say(environment=dict(os.environ), path=sys.path, settings=open(os.environ["ATTESTGATE_MEASURED"]).read())
elif command == "import":
    try:
        __import__(rest[0])
    except ImportError:
        say(imported=False)
    else:
        say(imported=True, source=sys.modules[rest[0]].__file__)
elif command == "exit":
    sys.exit(int(rest[0]))
elif command == "raw":
    with socket.socket(fileno=os.dup(channel)) as wire:
        wire.sendall(open(rest[0], "rb").read())
        say(answer=wire.recv(100).hex())
    time.sleep(600)
elif command == "reload":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    say(pids=[os.getpid()])
    for _ in range(2):
        signal.sigwait({signal.SIGHUP})
        say(reloaded=True)
elif command == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say(pids=[os.getpid()])
    time.sleep(600)
elif command == "wait":
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    say(pids=[os.getpid(), child.pid])
    for line in open(rest[0]):
        import probe.late
        say(late=probe.late.VALUE, settings=open(os.environ["ATTESTGATE_MEASURED"]).read())
        say(quote=here.quote(bytes(64)).hex())
    time.sleep(600)
'''


@dataclass(frozen=True)
class Machine:
    """A machine that is on, and where its launchers call."""

    folder: Path
    socket: Path


@dataclass(frozen=True)
class Code:
    """An enclave's sources, in a place of their own so that a test may change them."""

    root: Path

    @property
    def manifest(self) -> Path:
        return self.root / "probe" / "enclave.toml"

    @property
    def settings(self) -> Path:
        return self.root / "settings.toml"


@dataclass(frozen=True)
class Machines:
    """An authority, a signer, and two machines under them."""

    authority: Path
    signer: Path
    one: Machine
    other: Machine


@contextmanager
def switched_on(machine: Machine, signer_key: Path) -> Iterator[None]:
    """Run a machine's daemon in a thread with an event loop of its own."""
    ready = threading.Event()
    failure: list[BaseException] = []
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = []

    async def run() -> None:
        serving = asyncio.create_task(daemon.serve(machine.folder, machine.socket, signer_key, ready.set))
        running.append((asyncio.get_running_loop(), serving))
        await asyncio.wait([serving])
        if not serving.cancelled():
            failure.extend([error] if (error := serving.exception()) else [])
        ready.set()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    ready.wait()
    if failure:
        thread.join()
        raise failure[0]
    try:
        yield
    finally:
        loop, serving = running[0]
        loop.call_soon_threadsafe(serving.cancel)
        thread.join()
    assert not failure
    assert not (machine.folder / "images").exists()
    assert not machine.socket.exists()


def run_probe(
    machine: Machine, code: Code, *arguments: str, environment: dict[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    """Launch the probe to its end: its exit status and what it printed."""
    reader, writer = os.pipe()
    with os.fdopen(reader) as output:
        try:
            status = launcher.launch(
                machine.socket, code.manifest, code.root, code.settings, arguments, environment or {}, (writer, 2)
            )
        finally:
            os.close(writer)
        text = output.read()
    return status, json.loads(text) if text else {}


def start_launcher(machine: Machine, code: Code, *arguments: str) -> subprocess.Popen[str]:
    """A launcher as a process of its own, its enclave's output in its standard output."""
    script = (
        "import sys; from pathlib import Path; from attestgate.enclave.simulated.launcher import launch;"
        "socket, manifest, root, settings, *arguments = sys.argv[1:];"
        "sys.exit(launch(Path(socket), Path(manifest), Path(root), Path(settings), arguments))"
    )
    paths = (machine.socket, code.manifest, code.root, code.settings)
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, paths), *arguments], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )


def wait_dead(pid: int) -> None:
    """Return when a process is gone, reaped or not."""
    try:
        watch = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ended, _, _ = select.select([watch], [], [], 30)
    finally:
        os.close(watch)
    assert ended, f"process {pid} is still there"
