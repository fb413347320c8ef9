"""What the commands share: options, settings, output, and errors of one line."""

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
"""Width in columns of a table that is not written to a terminal: enough for every cell."""

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
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


class LogFormat(StrEnum):
    """The form of a process's log lines."""

    JSON = "json"
    CONSOLE = "console"


LogOption = Annotated[LogFormat, typer.Option("--log", help="Log as JSON, or as readable text.")]


def operator_file(path: Path) -> OperatorFile:
    """Load an operator's file, for a command that connects to the bus. Raises Refusal."""
    settings = load_settings(OperatorFile, path)
    credentials.require(settings.bus.credentials, "operator", "viewer")
    return settings


def set_up_logs(form: LogFormat, level: str = "info") -> None:
    """Log to standard error, one line each."""
    logs.set_up_logs(form.value, level)


def say(text: str) -> None:
    """Print a line on standard output."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def screen() -> Console:
    """The console for tables. Cells are plain text, never markup: their content comes from others."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, markup=False, emoji=False)


def complain(text: str) -> None:
    """Print a line on standard error."""
    sys.stderr.write(f"attestgate: {printable(text)}\n")


def checked(model: type[M], /, **fields: Any) -> M:
    """A model from command-line values. Raises Refusal `cli.argument` that names the invalid one."""
    try:
        return model(**fields)
    except ValidationError as error:
        raise wrong(where(error), f"a valid {model.__name__}", first_message(error)) from None


def wrong(field: str, expected: str, found: object) -> Refusal:
    """The refusal of an invalid argument."""
    return Refusal.because("cli.argument", field, expected=expected, found=found, action="see --help")


def public_key(option: str, text: str) -> bytes:
    """An Ed25519 public key from the command line, 32 raw bytes. Raises Refusal `cli.argument`."""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise wrong(option, "an Ed25519 public key, 64 hexadecimal digits", text)
    return key


def inaccessible(error: OSError) -> Reason:
    """The reason for a file that cannot be read or written. The system names no file if the disk is full."""
    return Reason(
        code="file.access",
        field=str(error.filename or "file"),
        expected="a path that can be read or written",
        found=error.strerror or type(error).__name__,
        action="check the path, its permissions and the free space on its disk",
    )
