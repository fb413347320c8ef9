"""What the bus says reaches a terminal as text: its operator is not trusted, and a terminal does what it is told."""

from __future__ import annotations

import io

import pytest
from pydantic import JsonValue
from rich.console import Console

from attestgate.cli.explain import timeline
from attestgate.cli.watch import table
from attestgate.compose.local.plan import Plan
from attestgate.schemas.base import Reason, Refusal
from attestgate.schemas.events import Event
from attestgate.schemas.summary import Summary
from tests.support.cli.fixtures import Run
from tests.support.threats import rows, threat

EVIL = "\x1b[2J\r\n[/red] \x9b1m :x: \u202e end"
SUMMARY = Summary(role="host", id="host-1", host="host-1", session="ab" * 16, state=EVIL, created_at=1)
REASON = Reason(code="host.list", field=EVIL, expected=EVIL, found=EVIL, action=EVIL)


@threat(rows.LOG_SPOILED)
def test_a_timeline_has_no_control_characters() -> None:
    data: dict[str, JsonValue] = {"step": EVIL, "reasons": [REASON.model_dump()], "reason": EVIL, EVIL: EVIL}
    event = Event(id="1", kind="host", subject=EVIL, what=EVIL, at=2, before=EVIL, state=EVIL, source=EVIL, data=data)
    lines = list(timeline(SUMMARY, [event]))
    assert any("end" in line for line in lines)
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("width", ["40", "200"])
def test_a_table_shows_what_it_is_given(
    attestgate: Run, deployed: Plan, monkeypatch: pytest.MonkeyPatch, width: str
) -> None:
    async def now(*_: object) -> dict[str, Summary]:
        return {"host.host-1": SUMMARY}

    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setattr("attestgate.cli.watch._now", now)
    ran = attestgate("sessions", "-O", deployed.settings("operator"))
    assert ran.status == 0 and "[/red]" in ran.out and ":x:" in ran.out
    assert all(line.isprintable() for line in ran.out.splitlines())


def test_a_complaint_is_one_line(attestgate: Run, deployed: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_: object) -> None:
        raise Refusal(REASON)

    monkeypatch.setattr("attestgate.cli.watch._now", refused)
    ran = attestgate("sessions", "-O", deployed.settings("operator"))
    assert ran.status == 1 and ran.line.isprintable()


def test_a_narrow_terminal_shows_every_letter() -> None:
    narrow = io.StringIO()
    row = SUMMARY.model_copy(update={"id": "a-rather-long-name", "state": "TRUSTED"})
    Console(file=narrow, width=40).print(table({"host.host-1": row}))
    shown = "".join(c for c in narrow.getvalue() if not c.isspace())
    assert "…" not in shown
