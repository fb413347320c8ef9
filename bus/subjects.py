"""Every subject on the bus, built and parsed in one place.

attest.v1.in.<role>.<name>.<step>         agent or gateway to manager (a stream a role, see bus/layout.py)
attest.v1.out.<role>.<name>.<step>        manager to agent (plain messages)
attest.v1.op.<name>.<command>             operator to manager (ATTEST_OPERATOR; policies: ATTEST_POLICY)
attest.v1.events.<kind>.<name>.<what>     events for observers (ATTEST_EVENTS; alarms: ATTEST_ALARMS)
attest.v1.work.<kind>.<session>.<what>    manager to manager (ATTEST_WORK)
attest.v1.schedule.<session>              a deadline not yet due (ATTEST_WORK)
attest.v1.due.<session>                   a deadline that is due (ATTEST_WORK)
attest.v1.log.<kind>.<id>.<entry>         a decision of a manager, for the decision log (ATTEST_LOG)
attest.v1.copy.<stream>                   the server to itself: from a stream to the viewers' copy of it

<name> is the id of a host, gateway or operator. An application's is two tokens, <host>.<id>: it runs on several hosts,
and each place is a sender of its own. It is also the name in the sender's credential.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from attestgate.schemas.base import Refusal
from attestgate.schemas.limits import SMALL

ROOT = "attest.v1"
IN = f"{ROOT}.in"
OUT = f"{ROOT}.out"
OPERATOR = f"{ROOT}.op"
EVENTS = f"{ROOT}.events"
WORK = f"{ROOT}.work"
SCHEDULE = f"{ROOT}.schedule"
DUE = f"{ROOT}.due"
LOG = f"{ROOT}.log"
COPY = f"{ROOT}.copy"

STEPS: dict[str, tuple[str, ...]] = {
    "host": ("hello", "evidence", "key_proof", "recheck_evidence", "recheck_list", "key_delivered", "resume"),
    "app": ("hello", "evidence", "colocation_proof", "recheck_evidence", "resume"),
    "gateway": ("report",),
}
"""What each role may send to the manager. A credential allows these and no others: with the stream's limit of messages
per subject, that bounds what one sender can queue there."""

LISTS = ("evidence", "recheck_list")
"""The steps of a host that are large: first evidence, and a recheck that does not fit into `recheck_evidence`."""

COMMANDS = ("enrol", "revoke", "recheck", "retry", "drop")
POLICY_COMMANDS = ("put-policy", "try-policy")
"""What an operator may order: the last token of its subject, and `do` in the command (schemas/enrolment.py)."""

_TOKEN = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")


class Address(NamedTuple):
    """The parts of an inbound or outbound subject that name the sender or recipient and the step."""

    role: str
    name: str
    step: str


def recheck_step(answer: bytes) -> str:
    """The step of a host's packed answer to a recheck, by its size."""
    return "recheck_evidence" if len(answer) <= SMALL else "recheck_list"


def app_name(host: str, app: str) -> str:
    """An application's name on the bus: it is one sender for each host that it runs on."""
    return f"{host}.{app}"


def name_tokens(role: str) -> int:
    """How many tokens the names of a role, or of a kind of event, have."""
    return 2 if role == "app" else 1


REPORTS = f"{IN}.gateway.*.report"
"""Gateways' signed reports, which operators hear as well: what a gateway confirms, nobody else can."""


def inbound(role: str, name: str, step: str) -> str:
    """Subject of a message from an agent or gateway to the manager. Raises ValueError for an unknown role or step."""
    if step not in STEPS.get(role, ()):
        raise ValueError(f"bus.subjects.STEPS has no step {step!r} for role {role!r}")
    return _join(IN, role, *_name(role, name), step)


def outbound(role: str, name: str, step: str) -> str:
    """Subject of a message from the manager to an agent."""
    return _join(OUT, role, *_name(role, name), step)


def outbound_all(role: str, name: str) -> str:
    """What an agent subscribes to: everything addressed to it."""
    return f"{_join(OUT, role, *_name(role, name))}.>"


def event(kind: str, name: str, what: str) -> str:
    """Subject of an event."""
    return _join(EVENTS, kind, *_name(kind, name), what)


def events_of(kind: str, name: str) -> str:
    """Every event of one subject."""
    return f"{_join(EVENTS, kind, *_name(kind, name))}.*"


def decision(kind: str, id: str, entry: str) -> str:
    """Subject of one entry of the decision log."""
    return _join(LOG, kind, id, entry)


def operator(name: str, command: str) -> str:
    """Subject of an operator's signed command."""
    return _join(OPERATOR, name, command)


def work(kind: str, session: str, what: str) -> str:
    """Subject of a message from one manager worker to any worker."""
    return _join(WORK, kind, session, what)


def deadline(session: str) -> str:
    """Subject of a session's one scheduled deadline; a new one replaces the old."""
    return _join(SCHEDULE, session)


def due(subject: str) -> str:
    """Where the server publishes what was scheduled under `deadline(...)`."""
    if not subject.startswith(f"{SCHEDULE}."):
        raise ValueError(f"{subject!r} is not a deadline's subject")
    return f"{DUE}{subject.removeprefix(SCHEDULE)}"


def parse_inbound(subject: str) -> Address:
    """Who sent it, and which step. Raises Refusal (`bus.subject`); nothing else from the bus is trusted."""
    address = _address(subject, IN)
    if address.step not in STEPS.get(address.role, ()):
        raise _unknown(subject, IN)
    return address


def parse_outbound(subject: str) -> Address:
    """For whom it is, and which step. Raises Refusal (`bus.subject`)."""
    return _address(subject, OUT)


def parse_event(subject: str) -> Address:
    """Kind, name and what of an event. Raises Refusal (`bus.subject`)."""
    return _address(subject, EVENTS)


def parse_operator(subject: str) -> tuple[str, str]:
    """An operator's name and command. Raises Refusal (`bus.subject`)."""
    name, command = _split(subject, OPERATOR, 2)
    return name, command


def parse_work(subject: str) -> tuple[str, str, str]:
    """Kind, session and what of a manager's own message. Raises Refusal (`bus.subject`)."""
    kind, session, what = _split(subject, WORK, 3)
    return kind, session, what


def is_internal(subject: str) -> bool:
    """Whether a message came from a manager or from the clock."""
    return subject.startswith((f"{WORK}.", f"{DUE}."))


def parse_due(subject: str) -> str:
    """The session whose deadline is due. Raises Refusal (`bus.subject`)."""
    return _split(subject, DUE, 1)[0]


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject fits a pattern (`*` one token, `>` one or more at the end)."""
    wanted, tokens = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted = wanted[:-1]
        if len(tokens) <= len(wanted):
            return False
        tokens = tokens[: len(wanted)]
    return len(wanted) == len(tokens) and all(w in ("*", t) for w, t in zip(wanted, tokens, strict=True))


def is_token(text: str) -> bool:
    """Whether a text can be one part of a subject here."""
    return _TOKEN.fullmatch(text) is not None


def _name(role: str, name: str) -> list[str]:
    tokens = name.split(".")
    if len(tokens) != name_tokens(role):
        raise ValueError(f"{name!r} is not a name of role {role!r}: a subject token too few or too many")
    return tokens


def _address(subject: str, prefix: str) -> Address:
    role = subject.removeprefix(f"{prefix}.").partition(".")[0]
    role, *name, step = _split(subject, prefix, 2 + name_tokens(role))
    return Address(role, ".".join(name), step)


def _join(prefix: str, *tokens: str) -> str:
    for token in tokens:
        if not is_token(token):
            raise ValueError(f"{token!r} is not a subject token")
    return ".".join((prefix, *tokens))


def _split(subject: str, prefix: str, count: int) -> list[str]:
    tokens = subject.removeprefix(f"{prefix}.").split(".")
    if not subject.startswith(f"{prefix}.") or len(tokens) != count or not all(map(_TOKEN.fullmatch, tokens)):
        raise _unknown(subject, prefix)
    return tokens


def _unknown(subject: str, prefix: str) -> Refusal:
    return Refusal.because(
        "bus.subject",
        "subject",
        expected=f"a subject of {prefix}.>",
        found=subject,
        action="check the sender's version",
    )
