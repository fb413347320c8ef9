"""`attestgate manager|gateway|host|app run`: the processes of a deployment."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from attestgate.bus.auth import credentials
from attestgate.bus.lifetime import until_told
from attestgate.bus.logs import reload_level
from attestgate.cli.common import LogFormat, SettingsFile, set_up_logs
from attestgate.enclave.simulated.launcher import launch
from attestgate.enclave.simulated.measure import CODE_ROOT, agent_manifest
from attestgate.schemas.base import Refusal
from attestgate.schemas.settings import (
    AgentSettings,
    AppSettings,
    GatewaySettings,
    HostSettings,
    ManagerSettings,
    ProcessSettings,
    load_settings,
)

S = TypeVar("S", bound=ProcessSettings)
LogChoice = Annotated[
    LogFormat | None, typer.Option("--log", help="Log as JSON, or as readable text; overrides the settings.")
]

CodeOption = Annotated[
    Path,
    typer.Option(help="Folder with the packages that enclave.toml trusts; this installation's by default."),
]

manager = typer.Typer(help="Run manager workers, which appraise evidence and sign leases.", no_args_is_help=True)
gateway = typer.Typer(help="Run gateway workers, one beside each nginx, and set up nginx.", no_args_is_help=True)
host = typer.Typer(help="Run a host's agent.", no_args_is_help=True)
application = typer.Typer(help="Run the agent in an application's container.", no_args_is_help=True)


@manager.callback()
@gateway.callback()
@host.callback()
@application.callback()
def _group() -> None:
    """Keep each a group although some have only one command."""


@manager.command("run")
def run_manager(settings: SettingsFile, log: LogChoice = None) -> None:
    """Run a manager worker until Ctrl-C. Start any number of them: each handles any message."""
    from attestgate.manager.main import run

    _serve(ManagerSettings, "manager", settings, log, run)


@gateway.command("run")
def run_gateway(settings: SettingsFile, log: LogChoice = None) -> None:
    """Run a gateway worker until Ctrl-C: it keeps the nginx beside it in agreement with the manager's signed leases."""
    from attestgate.manager.gateway.main import run

    _serve(GatewaySettings, "gateway", settings, log, run)


@host.command("run")
def run_host(settings: SettingsFile) -> None:
    """Run the host's agent in its enclave until Ctrl-C."""
    _in_enclave("host", load_settings(HostSettings, settings), settings)


@application.command("run")
def run_app(settings: SettingsFile, code: CodeOption = CODE_ROOT) -> None:
    """Run an application with its agent in its enclave until Ctrl-C."""
    _in_enclave("app", load_settings(AppSettings, settings), settings, code)


def _serve(
    kind: type[S], role: str, path: Path, log: LogFormat | None, run: Callable[[S], Coroutine[Any, Any, None]]
) -> None:
    """Run a process with its settings. SIGHUP reloads its log level."""
    set_up_logs(log or LogFormat.JSON)
    settings = load_settings(kind, path)
    credentials.require(settings.bus.credentials, role)
    set_up_logs(log or LogFormat(settings.log.format), settings.log.level)
    until_told(run(settings), lambda: reload_level(kind, path))


def _in_enclave(kind: Literal["host", "app"], settings: AgentSettings, path: Path, code: Path = CODE_ROOT) -> None:
    """Have the simulated platform launch the agent; with Gramine, `gramine-sgx` launches it instead."""
    if settings.platform.socket is None:
        raise Refusal.because(
            "settings.platform",
            "platform.kind",
            expected='"simulated", with its socket, for this command to launch the enclave',
            found=settings.platform.kind,
            action="on SGX hardware start it as its image does: gramine-sgx agent (docs/sgx.md)",
        )
    manifest = agent_manifest(kind, code)
    sys.exit(launch(settings.platform.socket, manifest, code, settings.measured, [str(path.absolute())]))
