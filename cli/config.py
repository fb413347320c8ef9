"""`attestgate config`: check a settings file before a process is started with it."""

from __future__ import annotations

import json
import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

from attestgate.cli.common import WRONG, Json, complain, say
from attestgate.schemas.base import Refusal
from attestgate.schemas.nginx import NginxConfig
from attestgate.schemas.prototype import PROTOTYPE
from attestgate.schemas.settings import (
    AppSettings,
    GatewaySettings,
    HostSettings,
    ManagerSettings,
    Measured,
    OperatorFile,
    ProcessSettings,
    load_measured,
    load_settings,
)
from attestgate.schemas.settings_file import Part, load_part

app = typer.Typer(help="Check settings files.", no_args_is_help=True)


class Process(StrEnum):
    """The owners of settings files."""

    MANAGER = "manager"
    GATEWAY = "gateway"
    HOST = "host"
    APP = "app"
    OPERATOR = "operator"
    MEASURED = "measured"
    NGINX = "nginx"


MODELS: dict[Process, type[ProcessSettings] | type[Part]] = {
    Process.MANAGER: ManagerSettings,
    Process.GATEWAY: GatewaySettings,
    Process.HOST: HostSettings,
    Process.APP: AppSettings,
    Process.OPERATOR: OperatorFile,
    Process.MEASURED: Measured,
    Process.NGINX: NginxConfig,
}


@app.callback()
def _group() -> None:
    """Keep this a group although it has only one command."""


@app.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="The settings file (TOML).")],
    process: Annotated[
        Process | None, typer.Option(help="Whose settings they are; detected from the keys by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a settings file as its process would: the file, then ATTESTGATE_ variables. Connects to nothing.

    Exit status: 0 valid, 2 invalid; every invalid key is named.
    """
    kind = process
    try:
        kind = process or detect(file)
        _load(kind, file)
    except Refusal as refusal:
        if as_json:
            reasons = [reason.model_dump() for reason in refusal.reasons]
            say(json.dumps({"file": str(file), "process": kind, "valid": False, "reasons": reasons}, indent=2))
        else:
            for reason in refusal.reasons:
                complain(reason.sentence())
        raise typer.Exit(WRONG) from None
    if as_json:
        say(json.dumps({"file": str(file), "process": kind, "valid": True, "reasons": []}, indent=2))
    else:
        say(f"{file}: valid settings of: {kind.value}")


def detect(file: Path) -> Process:
    """Whose settings a file holds: the owner whose keys fit best. Raises Refusal (`settings.*`)."""
    try:
        keys = set(tomllib.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        keys = set()
        load_measured(file)  # raises Refusal with what is wrong
    old = sorted(keys & PROTOTYPE.keys() - HostSettings.model_fields.keys())
    if old:
        raise Refusal.because(
            "settings.prototype",
            f"{file}: {old[0]}",
            expected=PROTOTYPE[old[0]][0],
            found="the prototype's name for it",
            action="write a settings file for each process: docs/settings.md maps the old names",
        )
    scores = {kind: _fit(model, keys) for kind, model in MODELS.items()}
    best = max(scores.values())
    fitting = [kind for kind, score in scores.items() if score == best]
    if len(fitting) > 1:
        raise Refusal.because(
            "settings.process",
            str(file),
            expected="the keys of one process",
            found=f"keys that fit {' and '.join(fitting)}",
            action="name the process: --process",
        )
    return fitting[0]


def _fit(model: type[BaseModel], keys: set[str]) -> int:
    """Known keys, minus unknown ones, minus required ones that are missing."""
    needed = {name for name, field in model.model_fields.items() if field.is_required()}
    return len(keys & model.model_fields.keys()) - len(keys - model.model_fields.keys()) - len(needed - keys)


def _load(kind: Process, file: Path) -> None:
    model = MODELS[kind]
    if issubclass(model, ProcessSettings):
        load_settings(model, file)
    else:
        load_part(model, file)
