"""`attestgate doctor`: find what is misconfigured, and what to do about it."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from attestgate.cli.common import REFUSED, Json, say
from attestgate.compose.nginx.process import Nginx
from attestgate.manager.diagnosis import doctor as checks
from attestgate.manager.diagnosis.doctor import Finding
from attestgate.schemas.base import Refusal
from attestgate.schemas.nginx import NginxConfig
from attestgate.schemas.settings import GatewaySettings, HostSettings, ManagerSettings, load_settings
from attestgate.schemas.settings_file import load_part


def register(app: typer.Typer) -> None:
    """Mount this command."""
    app.command("doctor")(doctor)


def doctor(
    manager: Annotated[
        Path | None, typer.Option(help="A manager's settings: bus, keys, CA, attestation service.")
    ] = None,
    gateway: Annotated[Path | None, typer.Option(help="A gateway worker's settings: bus, key, its nginx.")] = None,
    nginx: Annotated[
        Path | None, typer.Option(help="nginx's settings: configuration, certificate, and that nothing bypasses it.")
    ] = None,
    host: Annotated[Path | None, typer.Option(help="A host agent's settings: enclave, TPM, what IMA measures.")] = None,
    as_json: Json = False,
) -> None:
    """Check what a deployment needs on this machine, for each settings file given; the clock is always checked.

    Does not affect running processes. Exit status: 0 all good, 1 something has to be done.
    """
    findings = asyncio.run(_examine(manager, gateway, nginx, host))
    if as_json:
        say(json.dumps([finding.model_dump() for finding in findings], indent=2))
    else:
        for finding in findings:
            say(f"{'ok ' if finding.good else 'BAD'}  {finding.check}: {finding.found}")
            if not finding.good:
                say(f"     to do: {finding.action}")
    if not all(finding.good for finding in findings):
        sys.exit(REFUSED)


async def _examine(manager: Path | None, gateway: Path | None, nginx: Path | None, host: Path | None) -> list[Finding]:
    findings = [checks.clock()]
    if manager is not None:
        findings += await checks.of_manager(load_settings(ManagerSettings, manager))
    if gateway is not None:
        findings += await checks.of_gateway(load_settings(GatewaySettings, gateway))
    if nginx is not None:
        config = load_part(NginxConfig, nginx)
        findings += [await _configuration(config), *await checks.gateway(config)]
    if host is not None:
        findings += await checks.of_host(load_settings(HostSettings, host))
    return findings


async def _configuration(config: NginxConfig) -> Finding:
    try:
        await Nginx(config).check()
    except Refusal as refusal:
        reason = refusal.reasons[0]
        return Finding(check="nginx -t", good=False, found=reason.found, action=reason.action)
    return Finding(check="nginx -t", good=True, found="accepts the configuration")
