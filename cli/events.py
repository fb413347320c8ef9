"""`attestgate events`: export events to a SIEM."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from attestgate.bus.client.nats import join
from attestgate.bus.forward import File, Position, Sink, Stream, Syslog, follow
from attestgate.bus.lifetime import until_told
from attestgate.cli.common import LogFormat, OperatorOption, operator_file, set_up_logs, wrong

LOCAL_SYSLOG = Path("/dev/log")
app = typer.Typer(help="Export events to a SIEM.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep this a group although it has only one command."""


@app.command("follow")
def follow_events(
    operator: OperatorOption,
    to: Annotated[
        str, typer.Option(help="A file, `-` for standard output, `syslog` for /dev/log, `syslog://HOST:PORT` for UDP.")
    ] = "-",
    position: Annotated[
        Path | None, typer.Option(help="File that records the last exported event; FILE.position for a file.")
    ] = None,
) -> None:
    """Export every event as a JSON line until Ctrl-C, the oldest retained first, each at least once.

    With a position it resumes after the last exported event; without one it starts at the oldest retained (7 days).
    """
    set_up_logs(LogFormat.CONSOLE)
    settings = operator_file(operator)
    sink = _sink(to)
    if position is None and isinstance(sink, File):
        position = Path(f"{to}.position")
    reached = Position(position)

    async def run() -> None:
        async with await join(settings.bus) as bus:
            await follow(bus, sink, reached)

    until_told(run())


def _sink(to: str) -> Sink:
    if to == "-":
        return Stream(sys.stdout)
    if to == "syslog":
        return Syslog(LOCAL_SYSLOG)
    if to.startswith("syslog://"):
        host, _, port = to.removeprefix("syslog://").partition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise wrong("--to", "syslog://HOST:PORT", to)
        return Syslog((host, int(port)))
    return File(Path(to))
