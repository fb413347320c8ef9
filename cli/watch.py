"""`attestgate sessions|hosts|apps|explain`: the sessions now, their changes, and the timeline of one."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live
from rich.table import Column, Table

from attestgate.bus import subjects
from attestgate.bus.api import Bus, Entry
from attestgate.bus.client.nats import NatsBus, join
from attestgate.bus.forward import event_of
from attestgate.cli.common import Json, OperatorOption, operator_file, say, screen
from attestgate.cli.explain import clock, timeline
from attestgate.schemas.base import Refusal, printable
from attestgate.schemas.events import Event
from attestgate.schemas.summary import Summary, summary_of

COLUMNS = ("role", "id", "host", "state", "integrity", "simulated", "lease_end", "session")
WatchOption = Annotated[bool, typer.Option("--watch", "-w", help="Then show each change, until Ctrl-C.")]
JsonLines = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output; with --watch, one line per change.")
]
Rows = dict[str, Summary]
"""Summaries by their key in the bucket."""


def register(app: typer.Typer) -> None:
    """Mount these commands."""
    app.command("sessions")(sessions)
    app.command("hosts")(hosts)
    app.command("apps")(apps)
    app.command("explain")(explain)


def sessions(operator: OperatorOption, watch: WatchOption = False, as_json: JsonLines = False) -> None:
    """List every session that the bus still stores, of hosts and applications."""
    _show(operator, ">", watch, as_json)


def hosts(operator: OperatorOption, watch: WatchOption = False, as_json: JsonLines = False) -> None:
    """List the sessions of hosts."""
    _show(operator, "host.>", watch, as_json)


def apps(operator: OperatorOption, watch: WatchOption = False, as_json: JsonLines = False) -> None:
    """List the sessions of applications."""
    _show(operator, "app.>", watch, as_json)


def explain(
    session: Annotated[str, typer.Argument(help="A session's id, or a prefix of it.")],
    operator: OperatorOption,
    as_json: Json = False,
) -> None:
    """Show the timeline of one session: each step, its evidence by hash, what was expected, what was found."""
    summary, events = asyncio.run(_story(operator, session))
    if as_json:
        told = [event.model_dump(mode="json", exclude_none=True) for event in events]
        say(json.dumps({"summary": json.loads(summary.body()), "events": told}, indent=2))
        return
    for line in timeline(summary, events):
        say(line)


def _show(operator: Path, pattern: str, watch: bool, as_json: bool) -> None:
    if watch:
        asyncio.run(_follow(operator, pattern, as_json))
        return
    rows = asyncio.run(_now(operator, pattern))
    if as_json:
        say(json.dumps([json.loads(row.body()) for row in _sorted(rows)], indent=2))
    else:
        screen().print(table(rows) if rows else "no sessions")


async def _now(operator: Path, pattern: str) -> Rows:
    async with await _bus(operator) as bus:
        return await _present(bus, pattern)


async def _present(bus: Bus, pattern: str) -> Rows:
    rows: Rows = {}
    async with aclosing(bus.bucket("summaries").watch(pattern)) as changes:  # type: ignore[type-var]
        async for entry in changes:
            if entry is None:
                break
            _take(rows, entry)
    return rows


async def _follow(operator: Path, pattern: str, as_json: bool) -> None:
    """Show the current state, then each change: a table that is redrawn on a terminal, lines in a pipe."""
    async with await _bus(operator) as bus:
        if as_json or not sys.stdout.isatty():
            await _lines(bus, pattern, _json_line if as_json else _text_line)
        else:
            with Live(Table(), console=screen(), auto_refresh=False) as live:
                await _redraw(bus, pattern, lambda rows: live.update(table(rows), refresh=True))


async def _lines(bus: Bus, pattern: str, line: Callable[[str, Summary | None], str]) -> None:
    rows: Rows = {}
    async for entry in bus.bucket("summaries").watch(pattern):
        if entry is None:
            if not rows:
                sys.stderr.write("no sessions yet\n")
        elif _take(rows, entry):
            say(line(entry.key, rows.get(entry.key)))


async def _redraw(bus: Bus, pattern: str, draw: Callable[[Rows], None]) -> None:
    rows: Rows = {}
    whole = False
    async for entry in bus.bucket("summaries").watch(pattern):
        whole = whole or entry is None
        changed = entry is None or _take(rows, entry)
        if whole and changed:
            draw(rows)


def _take(rows: Rows, entry: Entry) -> bool:
    """Apply a change to the rows; False if it changes nothing."""
    before = rows.get(entry.key)
    if entry.value is None:
        rows.pop(entry.key, None)
    elif (summary := summary_of(entry.key, entry.value)) is not None:
        rows[entry.key] = summary
    return rows.get(entry.key) != before


def _sorted(rows: Rows) -> list[Summary]:
    return sorted(rows.values(), key=lambda row: (row.role != "host", row.id, row.created_at))


def _json_line(key: str, row: Summary | None) -> str:
    return json.dumps({"deleted": key}) if row is None else row.body().decode()


def _text_line(key: str, row: Summary | None) -> str:
    return f"{key} deleted" if row is None else "  ".join(_cell(row, column) for column in COLUMNS)


def table(rows: Rows) -> Table:
    """One session per row; cells wrap on a narrow terminal."""
    columns = (Column(name, overflow="fold") for name in COLUMNS)
    drawn = Table(*columns, box=None, pad_edge=False, caption=None if rows else "no sessions yet")
    for row in _sorted(rows):
        drawn.add_row(*(_cell(row, column) for column in COLUMNS))
    return drawn


def _cell(row: Summary, column: str) -> str:
    value = getattr(row, column)
    if column == "lease_end" and value is not None:
        return clock(value)
    return "" if value is None else printable(str(value))


async def _story(operator: Path, session: str) -> tuple[Summary, list[Event]]:
    """A session's summary, its own events, and what gateways say of its leases, in the order of the stream."""
    async with await _bus(operator) as bus:
        found = [row for row in (await _present(bus, ">")).values() if row.session.startswith(session)]
        if len(found) != 1:
            raise Refusal.because(
                "session.ambiguous" if found else "session.unknown",
                "session",
                expected="the id of a session that the bus still stores, or a prefix of exactly one",
                found=f"{session}, a prefix of {len(found) or 'none'}",
                action="see: attestgate sessions",
            )
        own = [e async for e in _events(bus, subjects.events_of(found[0].role, found[0].name)) if _is_of(e, found[0])]
        keys = {f"host.{found[0].session}", *(f"cert.{e.data['serial']}" for e in own if "serial" in e.data)}
        leases = [e async for e in _events(bus, f"{subjects.EVENTS}.gateway.>") if str(e.data.get("key")) in keys]
        own.sort(key=lambda event: event.number or 0)  # they come from two streams
        return found[0], sorted([*own, *leases], key=lambda event: event.at)


def _is_of(event: Event, summary: Summary) -> bool:
    return event.session == summary.session


async def _events(bus: Bus, pattern: str) -> AsyncIterator[Event]:
    async for message in bus.history(pattern):
        if (event := event_of(message.subject, message.data)) is not None:
            yield event


async def _bus(operator: Path) -> NatsBus:
    settings = operator_file(operator)
    return await join(settings.bus)
