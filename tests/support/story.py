"""What the tests of the running stack ask of it."""

from __future__ import annotations

import asyncio
import shutil
import tomllib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import tomli_w

from attestgate.compose.demo.narrator import Narrator
from attestgate.compose.local.stack import Stack
from attestgate.schemas.base import Reason
from attestgate.schemas.events import Event, reasons_of
from tests.support.processes import processes_of

HOST, MACHINE, APPS = "host-1", "machine-a", ("app-1", "app-2")
ENDS = {"refused", "untrusted", "expired", "revoked", "superseded"}
REVOKED = r"revoke: applied\ngateway-1: out after \d+ ms\n"
"""What `attestgate revoke` prints once the stack's gateway has confirmed."""
SLACK_S = 1.0
"""A lease's end is a whole second, and a program looks every 20 ms."""


def measurement_list(stack: Stack) -> Path:
    """The file that host-1's agent reads as its kernel's list."""
    return stack.plan.folder / "measurement-list"


def replace_list(stack: Stack, source: Path) -> None:
    """Put another list in place in one move, as a reader sees it."""
    new = measurement_list(stack).with_suffix(".new")
    shutil.copy(source, new)
    new.replace(measurement_list(stack))


async def scene(stack: Stack, play: Callable[[Stack, Narrator], Awaitable[None]]) -> list[Event]:
    """Play a scene of the demo: every check of it must hold. Returns the events of the meantime."""
    mark, said = stack.events.mark, list[str]()
    narrator = Narrator(said.append)
    await play(stack, narrator)
    assert narrator.checks
    failed = [what for what, held in narrator.checks if not held]
    assert failed == [], "\n".join(said)
    return stack.events.seen[mark:]


def refusals(events: list[Event], kind: str, subject: str, what: str) -> list[Reason]:
    """The reasons in the one event of its kind."""
    (event,) = [event for event in events if (event.kind, event.subject, event.what) == (kind, subject, what)]
    return reasons_of(event)


def session_of(stack: Stack, app: str) -> str | None:
    """The session by which an application is admitted now."""
    admitted = [e for e in stack.events.seen if (e.kind, e.subject, e.what) == ("app", app, "admitted")]
    if not admitted or any(e.session == admitted[-1].session and e.what in ENDS for e in stack.events.seen):
        return None
    return admitted[-1].session


def lease_end(stack: Stack, app: str) -> int:
    """The latest second until which an application was ever let in."""
    ends = [e.data["lease_end"] for e in stack.events.seen if e.subject == app and "lease_end" in e.data]
    return max(end for end in ends if isinstance(end, int))


async def through(stack: Stack, *apps: str, since: float = 0.0, within_s: float = 40.0) -> None:
    """Return once every application's program gets through the gateway (again, after `since`)."""
    async with asyncio.timeout(within_s):
        for app in apps or APPS:
            while not _reads(stack, app, since):  # a file tells nobody
                await asyncio.sleep(0.02)


def _reads(stack: Stack, app: str, since: float) -> bool:
    """Whether the last thing that an application's program saw is that it gets through."""
    lines = stack.status(app)[-1:]
    return any(line.get("status") == 200 and float(str(line["at"])) >= since for line in lines)


def enclave_pid(stack: Stack, id: str) -> int:
    """The process of an agent's enclave: what the simulated machine started, not who asked for it."""
    (found,) = [p for p in processes_of(stack.plan.folder) if "boot.py" in p and f"/{id}@" in p]
    return int(found.split()[0])


async def out_in_time(stack: Stack, app: str, killed: float) -> None:
    """Return once an application is refused on its open connection: at the latest when its last lease ends."""
    longest_s = stack.plan.timing.lease_s + SLACK_S
    refused = await stack.saw(app, "read flows", 403, since=killed, within_s=longest_s + 10)
    assert refused is not None and refused <= killed + longest_s


async def host_stands(stack: Stack, since: int, within_s: float = 40.0) -> None:
    """Return once the host is trusted: in a new session, or still in the one that it had."""

    def again(event: Event) -> bool:
        return (event.kind, event.subject) == ("host", HOST) and event.what in ("trusted", "rechecked")

    await stack.events.wait("host trusted or rechecked", again, since=since, within_s=within_s)


async def renewed(stack: Stack, app: str, after: float) -> None:
    """Return once an application was rechecked later than `after`, in Unix seconds."""

    def later(event: Event) -> bool:
        return (event.subject, event.what) == (app, "rechecked") and event.at > after

    await stack.events.wait(f"{app} rechecked", later)


async def restart(stack: Stack, *apps: str) -> None:
    """Start applications anew: they need not wait as long as they have learned to."""
    for app in apps:
        await stack.agent(app).stop()
    mark = stack.events.mark
    for app in apps:
        await stack.start_app(app, HOST, MACHINE)
    for app in apps:
        await stack.until("app", app, "admitted", since=mark, within_s=60)


def operator_file(stack: Stack, folder: Path, **changes: Any) -> Path:
    """The operator's file with keys of it changed."""
    table = tomllib.loads(stack.plan.settings("operator").read_text(encoding="utf-8"))
    path = folder / "operator.toml"
    path.write_text(tomli_w.dumps({**table, **changes}), encoding="utf-8")
    return path
