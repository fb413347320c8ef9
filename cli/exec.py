"""`attestgate app exec`: run any program behind an enclave that forwards its requests to the gateway."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from attestgate.cli.common import REFUSED, SettingsFile, complain
from attestgate.cli.processes import CodeOption
from attestgate.enclave.simulated.measure import CODE_ROOT
from attestgate.schemas.base import Refusal
from attestgate.schemas.settings import AppSettings, load_measured, load_settings

PROGRAM = "attestgate.app_agent.proxy"
STATES = {
    "challenged": "challenged by the manager for evidence",
    "evidence sent": "evidence sent; waiting for the host's agent to deliver the key",
    "co-location proven": "proven to be on the host's machine",
    "certificate": "certificate received; waiting until the gateway admits it",
    "ready": "admitted at the gateway",
    "session over": "not admitted",
    "cannot prove": "cannot prove what it has to",
    "trouble": "failed; retrying",
}
"""Log events of the agent, and the message that the user sees for each."""
ENDS = {"session over", "cannot prove"}
GRACE_S = 0.5
"""Between SIGTERM and SIGKILL for the command."""


def run_exec(
    settings: SettingsFile,
    command: Annotated[list[str], typer.Argument(help="The program and its arguments, after --.")],
    code: CodeOption = CODE_ROOT,
) -> None:
    """Run COMMAND with access to the controller for as long as its enclave is admitted.

    COMMAND finds the controller in ATTESTGATE_SOCKET (a unix socket for plain HTTP) and, if the settings name a port on
    loopback, in ATTESTGATE_URL and http_proxy. It runs outside the enclave: the certificate says `proxy`, and the
    policy must allow it. When trust ends it is stopped within a second, and this command prints why and exits with 1.
    """
    loaded = load_settings(AppSettings, settings)
    if load_measured(loaded.measured).program != PROGRAM:
        raise Refusal.because(
            "settings.program",
            f"{loaded.measured}: program",
            expected=PROGRAM,
            found=load_measured(loaded.measured).program,
            action="measure and enrol the application with that program: the proxy is off by default",
        )
    if loaded.proxy_socket is None and loaded.proxy_port is None:
        raise Refusal.because(
            "settings.proxy",
            f"{settings}: proxy_socket",
            expected="a unix socket, or proxy_port",
            found="neither",
            action="add one to the application's settings",
        )
    sys.exit(asyncio.run(Exec(_agent(settings, code), command, _environment(loaded)).run()))


def _environment(settings: AppSettings) -> dict[str, str]:
    found = dict(os.environ)
    if settings.proxy_socket is not None:
        found["ATTESTGATE_SOCKET"] = str(settings.proxy_socket)
    if settings.proxy_port is not None:
        found["ATTESTGATE_URL"] = found["http_proxy"] = f"http://127.0.0.1:{settings.proxy_port}"
    return found


def _agent(settings: Path, code: Path) -> list[str]:
    return [sys.executable, "-m", "attestgate.cli", "app", "run", "-s", str(settings), "--code", str(code)]


class Exec:
    """The agent and the command, each a child process; when either ends, the other is stopped."""

    def __init__(self, agent: list[str], command: list[str], environment: dict[str, str]) -> None:
        self._agent_command = agent
        self._command = command
        self._environment = environment
        self._child: asyncio.subprocess.Process | None = None

    async def run(self) -> int:
        agent = await asyncio.create_subprocess_exec(*self._agent_command, stderr=asyncio.subprocess.PIPE)
        watching = asyncio.create_task(self._watch(agent))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, watching.cancel, number)
        try:
            return await watching
        except asyncio.CancelledError as told:
            return 128 + int(told.args[0])
        finally:
            await self._end_command()
            if agent.returncode is None:
                agent.terminate()
            await agent.wait()

    async def _watch(self, agent: asyncio.subprocess.Process) -> int:
        if agent.stderr is None:
            raise AssertionError("a pipe was asked for")
        lines = aiter(agent.stderr)
        command: asyncio.Task[int] | None = None
        line: asyncio.Future[bytes] = asyncio.ensure_future(anext(lines, b""))
        while True:
            waited: set[asyncio.Future[Any]] = {line} | ({command} if command else set())
            done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if command is not None and command in done:
                line.cancel()
                return command.result()
            text = await line
            if not text:
                complain("the agent has ended")
                return REFUSED
            said = _tell(text)
            if said == "ready" and command is None:
                command = asyncio.create_task(self._run_command())
            elif said in ENDS and command is not None:
                command.cancel()
                return REFUSED
            line = asyncio.ensure_future(anext(lines, b""))

    async def _run_command(self) -> int:
        self._child = await asyncio.create_subprocess_exec(*self._command, env=self._environment)
        return await self._child.wait()

    async def _end_command(self) -> None:
        child = self._child
        if child is None or child.returncode is not None:
            return
        with suppress(ProcessLookupError):
            child.terminate()
            try:
                async with asyncio.timeout(GRACE_S):
                    await child.wait()
            except TimeoutError:
                child.kill()
        await child.wait()


def _tell(line: bytes) -> str:
    """Say to the person what the agent logged, and return which event it was."""
    try:
        logged = json.loads(line)
        event = str(logged["event"])
    except (ValueError, KeyError, TypeError):
        sys.stderr.buffer.write(line)
        return ""
    if event in STATES:
        complain(STATES[event])
    if "code" in logged and "expected" in logged:
        complain(f"  {logged['code']}: {logged['field']}: expected {logged['expected']},")
        complain(f"    found {logged['found']}; {logged['action']}")
    return event
