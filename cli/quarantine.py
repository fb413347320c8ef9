"""`attestgate quarantine`: the dead-letter queue, for messages that made a worker fail at every attempt."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import structlog
import typer
from rich.table import Table

from attestgate.bus.client.nats import join
from attestgate.cli.common import Json, OperatorOption, checked, operator_file, say, screen
from attestgate.cli.enrol import command
from attestgate.schemas.base import Refusal, printable, unpack
from attestgate.schemas.enrolment import Drop, Retry
from attestgate.schemas.quarantine import BUCKET, LIMIT, Quarantined

log = structlog.get_logger(__name__)
app = typer.Typer(
    help="Inspect, retry and drop messages in quarantine (the dead-letter queue): a worker failed on every attempt.",
    no_args_is_help=True,
)


@app.command("list")
def list_all(operator: OperatorOption, as_json: Json = False) -> None:
    """List every message in quarantine: its name, where it came from, why it is there."""
    found = asyncio.run(_read(operator))
    if as_json:
        say(json.dumps([_plain(name, message) for name, message in found.items()], indent=2))
        return
    table = Table("message", "when", "subject", "attempts", "reason", box=None, pad_edge=False)
    for name, message in found.items():
        when = datetime.fromtimestamp(message.at, UTC).strftime("%Y-%m-%d %H:%M:%S")
        cells = (name[:16], when, message.subject, str(message.attempts), message.reasons[0].code)
        table.add_row(*map(printable, cells))
    screen().print(table if found else "nothing in quarantine")


@app.command("show")
def show(message: str, operator: OperatorOption, as_json: Json = False) -> None:
    """Show one message: its sender, its size, and every reason. Its payload stays sealed."""
    name, found = _one(operator, message)
    if as_json:
        say(json.dumps(_plain(name, found), indent=2))
        return
    for key, value in _plain(name, found).items():
        if key != "reasons":
            say(printable(f"{key}: {value}"))
    for reason in found.reasons:
        say(printable(reason.sentence()))


@app.command("retry")
def retry(message: str, operator: OperatorOption) -> None:
    """Retry a message; it stays in quarantine if it fails again."""
    name, _ = _one(operator, message)
    command(operator, checked(Retry, message=name))


@app.command("drop")
def drop(message: str, operator: OperatorOption) -> None:
    """Delete a message."""
    name, _ = _one(operator, message)
    command(operator, checked(Drop, message=name))


def _one(operator: Path, message: str) -> tuple[str, Quarantined]:
    """The only message whose name has this prefix. Raises Refusal `quarantine.unknown`."""
    found = {name: m for name, m in asyncio.run(_read(operator)).items() if message and name.startswith(message)}
    if len(found) != 1:
        raise Refusal.because(
            "quarantine.unknown",
            "message",
            expected="a prefix of exactly one message's name",
            found=f"{message}, a prefix of {len(found)}",
            action="see: attestgate quarantine list",
        )
    return next(iter(found.items()))


def _plain(name: str, message: Quarantined) -> dict[str, object]:
    shown: dict[str, object] = message.model_dump(mode="json", exclude={"data"})
    return {"message": name, **shown, "size": len(message.data)}


async def _read(operator: Path) -> dict[str, Quarantined]:
    settings = operator_file(operator)
    async with await join(settings.bus) as bus:
        bucket = bus.bucket(BUCKET)
        entries = [await bucket.get(key) for key in await bucket.keys()]
        found = {e.key: _message(e.key, e.value) for e in entries if e and e.value is not None}
        return {key.rpartition(".")[2]: message for key, message in found.items() if message is not None}


def _message(key: str, value: bytes) -> Quarantined | None:
    """What is stored under a key, or None, which is logged: nothing that the bus holds there ends the command."""
    try:
        return unpack(Quarantined, value, limit=LIMIT)
    except Refusal as refusal:
        log.warning("skipped: no message in quarantine", key=key, why=refusal.reasons[0].code)
        return None
