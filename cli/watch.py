"""`attestgate sessions|hosts|apps|explain`: what stands now, and what happened."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from bus import subjects
from bus.nats import NatsBus, connect
from cli.common import Json, OperatorOption, say
from schemas.base import Refusal, parse_json
from schemas.events import Event
from schemas.settings import OperatorFile, load_settings

COLUMNS = ("role", "id", "host", "state", "integrity", "simulated", "lease_end", "session")


def register(app: typer.Typer) -> None:
    """Mount these commands."""
    app.command("sessions")(sessions)
    app.command("hosts")(hosts)
    app.command("apps")(apps)
    app.command("explain")(explain)


def sessions(operator: OperatorOption, as_json: Json = False) -> None:
    """Every session that the bus still knows, hosts' and applications'."""
    _show(operator, "", as_json)


def hosts(operator: OperatorOption, as_json: Json = False) -> None:
    """The sessions of hosts."""
    _show(operator, "host", as_json)


def apps(operator: OperatorOption, as_json: Json = False) -> None:
    """The sessions of applications."""
    _show(operator, "app", as_json)


def explain(session: str, operator: OperatorOption, as_json: Json = False) -> None:
    """The timeline of one session: each step, its evidence by hash, what was expected, what was found."""
    events = asyncio.run(_events_of(operator, session))
    if not events:
        raise Refusal.because(
            "session.unknown", "session", expected="one with events", found=session, action="see: attestgate sessions"
        )
    if as_json:
        say(json.dumps([event.model_dump(mode="json", exclude_none=True) for event in events], indent=2))
        return
    for event in events:
        _tell(event)


def _tell(event: Event) -> None:
    when = datetime.fromtimestamp(event.at, UTC).strftime("%H:%M:%S")
    move = f"{event.before} -> {event.state}" if event.before else (event.state or "")
    mark = " [simulated]" if event.simulated else ""
    say(f"{when}  {event.kind} {event.subject}  {event.what}  {move}{mark}")
    for key, value in event.data.items():
        if key == "reasons" and isinstance(value, list):
            for reason in value:
                if isinstance(reason, dict):
                    say(f"          {reason['code']}: {reason['field']}")
                    say(f"            expected {reason['expected']}")
                    say(f"            found    {reason['found']}")
                    say(f"            to do    {reason['action']}")
        else:
            say(f"          {key}: {value if isinstance(value, str | int) else json.dumps(value)}")


def _show(operator: Any, role: str, as_json: bool) -> None:
    rows = [row for row in asyncio.run(_summaries(operator)) if row["role"].startswith(role)]
    rows.sort(key=lambda row: (row["role"] != "host", row["id"], row["created_at"]))
    if as_json:
        say(json.dumps(rows, indent=2))
        return
    table = Table(*COLUMNS, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(_cell(column, row.get(column)) for column in COLUMNS))
    Console().print(table if rows else "no sessions")


def _cell(column: str, value: object) -> str:
    if column == "lease_end" and isinstance(value, int):
        return datetime.fromtimestamp(value, UTC).strftime("%H:%M:%S")
    return "" if value is None else str(value)


async def _connected(operator: Any) -> NatsBus:
    settings = load_settings(OperatorFile, operator)
    return await connect([settings.bus.url], settings.bus.credentials)


async def _summaries(operator: Any) -> list[dict[str, Any]]:
    bus = await _connected(operator)
    try:
        bucket = bus.bucket("summaries")
        entries = [await bucket.get(key) for key in await bucket.keys()]
        return [json.loads(entry.value) for entry in entries if entry is not None and entry.value is not None]
    finally:
        await bus.close()


async def _events_of(operator: Any, session: str) -> list[Event]:
    bus = await _connected(operator)
    try:
        return [
            event
            async for message in bus.history(f"{subjects.EVENTS}.>")
            if (event := parse_json(Event, message.data, source=message.subject)).session == session
        ]
    finally:
        await bus.close()
