"""What the commands share: options, running to the end or to Ctrl-C, saying what went wrong in one line."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError
from rich.console import Console

from attestgate.bus import logs
from attestgate.bus.auth import credentials
from attestgate.schemas.base import Reason, Refusal, first_message, printable, where
from attestgate.schemas.settings import OperatorFile, load_settings

M = TypeVar("M", bound=BaseModel)
REFUSED, WRONG, INTERRUPTED = 1, 2, 130
PIPE_WIDTH = 200
"""Columns of a table that goes to no terminal: enough for every cell."""

SettingsFile = Annotated[Path, typer.Option("--settings", "-s", help="The process's settings (TOML).")]
OperatorOption = Annotated[
    Path,
    typer.Option(
        "--operator",
        "-O",
        envvar="ATTESTGATE_OPERATOR",
        help="Your operator file (TOML): bus, name, identity. Also read from ATTESTGATE_OPERATOR.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


class LogFormat(StrEnum):
    """How a process logs."""

    JSON = "json"
    CONSOLE = "console"


LogOption = Annotated[LogFormat, typer.Option("--log", help="Log lines as JSON, or for a person.")]


def operator_file(path: Path) -> OperatorFile:
    """An operator's file, for a command that asks the bus. Raises Refusal."""
    settings = load_settings(OperatorFile, path)
    credentials.require(settings.bus.credentials, "operator", "viewer")
    return settings


def set_up_logs(form: LogFormat, level: str = "info") -> None:
    """Logs go to standard error, one line each."""
    logs.set_up_logs(form.value, level)


def say(text: str) -> None:
    """A line for the person at the terminal."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def screen() -> Console:
    """Where tables go. Cells are text and no markup: others have written them."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, markup=False, emoji=False)


def complain(text: str) -> None:
    """A line on standard error."""
    sys.stderr.write(f"attestgate: {printable(text)}\n")


def checked(model: type[M], /, **fields: Any) -> M:
    """A model from command-line values. Raises Refusal `cli.argument` that names the one that does not fit."""
    try:
        return model(**fields)
    except ValidationError as error:
        raise wrong(where(error), f"a valid {model.__name__}", first_message(error)) from None


def wrong(field: str, expected: str, found: object) -> Refusal:
    """A refusal of an argument."""
    return Refusal.because("cli.argument", field, expected=expected, found=found, action="see --help")


def inaccessible(error: OSError) -> Reason:
    """What to tell of a file that the system does not let a command read or write; of a full disk it gives no name."""
    return Reason(
        code="file.access",
        field=str(error.filename or "file"),
        expected="a path that can be read or written",
        found=error.strerror or type(error).__name__,
        action="check the path, its permissions and the room on its disk",
    )
