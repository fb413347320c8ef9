"""A session's timeline as text: each step with its time, the evidence by hash, what was expected and found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from pydantic import JsonValue, ValidationError

from attestgate.manager.verification.ear import look
from attestgate.schemas.base import MAX_TIME, Refusal, first_message, printable, where
from attestgate.schemas.ear import tier
from attestgate.schemas.event_data import BY_NAME
from attestgate.schemas.events import Event, reason_of
from attestgate.schemas.messages import Outcome
from attestgate.schemas.summary import Summary

STEPS = {
    ("host", "challenged"): 1,
    ("host", "granted"): 4,
    ("host", "trusted"): 4,
    ("app", "challenged"): 5,
    ("app", "waiting-for-key"): 5,
    ("app", "granted"): 6,
    ("app", "proven"): 6,
    ("app", "certified"): 7,
    ("app", "admitted"): 7,
}
"""Which of the eight steps (docs/how-it-works.md) an event belongs to."""
INDENT = " " * 20
TIMES = ("lease_end", "not_after", "until")


def clock(at: int) -> str:
    """A Unix second as a time of day, UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S")


def timeline(summary: Summary, events: Sequence[Event]) -> Iterator[str]:
    """The lines to print."""
    return map(printable, _lines(summary, events))


def _lines(summary: Summary, events: Sequence[Event]) -> Iterator[str]:
    began = datetime.fromtimestamp(summary.created_at, UTC).isoformat(sep=" ", timespec="seconds")
    yield f"session {summary.session} of {summary.role} {summary.id}, started {began}"
    where = f" on host {summary.host}" if summary.role == "app" else ""
    until = f", leased until {clock(summary.lease_end)}" if summary.lease_end and not summary.reasons else ""
    yield f"now {summary.state}{where}{until}"
    if not events:
        yield "its events have expired"
    for event in events:
        yield from _event(event)


def _event(event: Event) -> Iterator[str]:
    step = STEPS.get((event.kind, event.what))
    move = f"  {event.before} -> {event.state}" if event.before else ""
    mark = "  [simulated]" if event.simulated else ""
    told = BY_NAME.get((event.kind, event.what))
    yield ""
    number = f"step {step}" if step else " " * 6
    yield f"{clock(event.at)}  {number}  {event.kind} {event.subject} {event.what}{move}{mark}"
    if told is not None:
        yield f"{INDENT}{told.means}"
    for key, value in event.data.items():
        if key == "outcome" and value is not None:
            yield from _outcome(value)
        elif key in ("reasons", "reason", "problem") and value:
            yield from _reasons(value if isinstance(value, list) else [value])
        elif key == "ear":
            yield from _result(str(value))
        elif value not in (None, [], {}):
            yield f"{INDENT}{key.replace('_', ' ')}: {_shown(key, value)}"


def _outcome(value: JsonValue) -> Iterator[str]:
    try:
        outcome = Outcome.model_validate(value)
    except ValidationError as error:
        yield f"{INDENT}outcome: not one ({where(error)}: {first_message(error)})"
        return
    yield f"{INDENT}quote: SHA-256 {outcome.quote_id}"
    yield f"{INDENT}MRENCLAVE: {outcome.mrenclave}"
    yield f"{INDENT}TCB status: {outcome.tcb_status}; host integrity: {outcome.integrity}"
    for name, digest in outcome.policy.items():
        yield f"{INDENT}{name} policy: SHA-256 {digest}"
    if outcome.observe_only:
        yield f"{INDENT}the policy only observes: an enforcing one would refuse this"


def _result(token: str) -> Iterator[str]:
    """The signed verdict, decoded only: `attestgate verify ear` verifies its signature with the managers' keys."""
    yield f"{INDENT}signed verdict: EAR, SHA-256 {hashlib.sha256(token.encode()).hexdigest()}"
    try:
        submods = look(token).submods
    except Refusal as refusal:
        yield f"{INDENT}  {refusal.reasons[0].sentence()}"
        return
    for name, submod in submods.items():
        vector = ", ".join(f"{claim} {value} ({tier(value)})" for claim, value in submod.vector.items())
        yield f"{INDENT}  {name}: {submod.status}" + (f": {vector}" if vector else "")


def _reasons(reasons: list[JsonValue]) -> Iterator[str]:
    for value in reasons:
        if not isinstance(value, dict):  # a gateway's withdrawal has the code alone
            yield f"{INDENT}reason: {value}"
            continue
        reason = reason_of(value)
        yield f"{INDENT}{reason.code}: {reason.field}"
        yield f"{INDENT}  expected {reason.expected}"
        yield f"{INDENT}  found    {reason.found}"
        yield f"{INDENT}  to do    {reason.action}"


def _shown(key: str, value: JsonValue) -> str:
    if key in TIMES and isinstance(value, int) and 0 <= value <= MAX_TIME:
        return clock(value)
    if key == "measurements":
        return f"SHA-256 {value}"
    return value if isinstance(value, str) else json.dumps(value)
