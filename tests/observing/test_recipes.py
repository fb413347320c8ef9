"""docs/observing.md: every recipe for the nats CLI, run as it is written, with the viewer's credential."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import shlex
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from attestgate.bus import layout, subjects
from attestgate.bus.auth import credentials
from attestgate.bus.client.nats import NatsBus, connect
from attestgate.bus.client.setup import ensure
from attestgate.bus.server.embedded import EmbeddedServer
from attestgate.manager.pki import deployment
from attestgate.schemas.event_data import EVENTS
from attestgate.schemas.events import Event
from attestgate.schemas.summary import Summary
from tests.support.threats import rows, threat

PAGE = (Path(__file__).parents[2] / "docs" / "observing.md").read_text(encoding="utf-8")
RECIPES = [
    line.removeprefix("$ ") for block in re.findall(r"```console\n(.*?)```", PAGE, re.S) for line in block.splitlines()
]
GO = Path(os.environ.get("GOBIN") or Path(os.environ.get("GOPATH") or Path.home() / "go") / "bin")
CLI = shutil.which("nats") or shutil.which(str(GO / "nats"))
HOST, APP = "a1" * 16, "b2" * 16
FOLLOWS = re.compile(r"nats (sub (?!--stream)|kv watch|stream view)")
"""What goes on until it is stopped."""
PATIENCE_S = 20

SHOWS = {
    "nats sub 'attest.v1.events.>'": ["attest.v1.events.app.host-1.app-1.admitted", "ce-id: ", '"what":"untrusted"'],
    "nats sub 'attest.v1.events.host.host-1.*'": ["attest.v1.events.host.host-1.untrusted"],
    "nats sub 'attest.v1.events.app.host-1.>'": ["attest.v1.events.app.host-1.app-1.admitted"],
    "nats sub 'attest.v1.events.host.*.untrusted'": ["attest.v1.events.host.host-1.untrusted"],
    "nats sub 'attest.v1.events.app.*.*.untrusted'": ["attest.v1.events.app.host-1.app-1.untrusted"],
    "nats stream ls": ["ATTEST_EVENTS", "ATTEST_ALARMS"],
    "nats stream info ATTEST_EVENTS": [r"Messages: \d", "Discard Policy: Old"],
    "nats stream subjects ATTEST_EVENTS": ["attest.v1.events.host.host-1.trusted"],
    "nats sub --stream ATTEST_EVENTS --all --terminate-at-end 'attest.v1.events.app.host-1.app-1.*'": [
        '"what":"admitted"'
    ],
    "nats stream get ATTEST_EVENTS --last-for attest.v1.events.host.host-1.trusted": ['"what":"trusted"'],
    "nats stream view ATTEST_EVENTS": ['"what":"trusted"', '"what":"admitted"'],
    "nats stream view ATTEST_ALARMS": ['"what":"revoked"'],
    "nats consumer ls ATTEST_EVENTS": ["[Cc]onsumers"],
    "nats kv ls": ["summaries", "admissions"],
    "nats kv ls summaries": [f"host.host-1.{HOST}", f"app.app-1.{APP}"],
    f"nats kv get summaries host.host-1.{HOST} --raw": ['"state":"TRUSTED"'],
    f"nats kv history summaries host.host-1.{HOST}": ["PUT"],
    "nats kv watch summaries": ['"state":"TRUSTED"', '"state":"ADMITTED"'],
    "nats kv watch summaries 'app.>'": ['"state":"ADMITTED"'],
    "nats kv ls admissions": ["cert.0a"],
    "nats --js-domain attest stream ls": ["ATTEST_HOST", "ATTEST_LISTS", "ATTEST_WORK"],
    "nats --js-domain attest stream info ATTEST_HOST": ["Retention: WorkQueue"],
    "nats --js-domain attest stream info ATTEST_WORK": ["Allows Schedules: true"],
    "nats --js-domain attest consumer ls ATTEST_HOST": ["host-rechecks", "host-hellos"],
    "nats --js-domain attest consumer info ATTEST_HOST host-hellos": ["Outstanding Acks", "Unprocessed Messages: 1"],
    "nats --js-domain attest consumer info ATTEST_WORK workers": ["Unprocessed Messages: 0"],
}
"""What each recipe has to show, as regular expressions."""

needs_cli = pytest.mark.skipif(CLI is None, reason="the nats CLI is not here: make test-nats builds it")


def test_every_recipe_of_the_page_is_tried() -> None:
    assert set(RECIPES) == set(SHOWS)


def test_the_page_lists_every_event() -> None:
    for told in EVENTS:
        assert f"| `{told.what}` | {', '.join(told.kinds)} | {told.means} |" in PAGE


def test_the_page_names_what_is_an_alarm() -> None:
    named = {"untrusted", "revoked", "failed"}
    assert all(f"`{what}`" in PAGE.split("ATTEST_ALARMS` has", 1)[1].split(";", 1)[0] for what in named)
    for told in EVENTS:
        assert told.alarm is (told.what in named or told.means.startswith("ALARM:")), told


@dataclass
class Viewed:
    """A bus with something on it, and the environment of a viewer."""

    manager: NatsBus
    environment: dict[str, str]

    async def tell(self, kind: str, id: str, what: str, session: str) -> None:
        host = "host-1" if kind == "app" else None
        event = Event(
            id=f"{id}-{what}",
            kind=kind,
            subject=id,
            host=host,
            what=what,
            at=1_700_000_000,
            session=session,
            source="t",
        )
        await self.manager.publish(subjects.event(kind, event.name, what), event.body(), headers=event.headers())


async def furnish(viewed: Viewed) -> None:
    await viewed.tell("host", "host-1", "trusted", HOST)
    await viewed.tell("app", "app-1", "admitted", APP)
    await viewed.tell("host", "host-1", "revoked", HOST)
    host = Summary(role="host", id="host-1", host="host-1", session=HOST, state="TRUSTED", created_at=1)
    app = Summary(role="app", id="app-1", host="host-1", session=APP, state="ADMITTED", created_at=1)
    for line in (host, app):
        await viewed.manager.bucket("summaries").put(f"{line.role}.{line.id}.{line.session}", line.body())
    await viewed.manager.bucket("admissions").put("cert.0a", b"signed")


@pytest.fixture
async def viewed(tmp_path: Path) -> AsyncIterator[Viewed]:
    keys = tmp_path / "keys"
    names = {"operator": "operator", "policy_author": "author", "gateway": "gateway-1"}
    await asyncio.to_thread(deployment.init, keys, trust_domain="test.example", **names)
    async with EmbeddedServer(tmp_path / "server", credentials.load(keys / "bus")) as server:
        context = deployment.viewer_context(keys)
        context.write_text(context.read_text().replace("nats://127.0.0.1:4222", server.url))
        manager = await connect([server.url], keys / "credentials" / "manager-manager.creds")
        credentials.issue(keys / "bus", "host", "host-1", tmp_path / "host.creds")
        host = await connect([server.url], tmp_path / "host.creds")
        try:
            await ensure(manager)
            environment = {"XDG_CONFIG_HOME": str(keys / "viewer"), "NATS_CONTEXT": "attestgate", "HOME": str(tmp_path)}
            viewed = Viewed(manager, {"PATH": os.environ["PATH"], "TERM": "dumb", **environment})
            await furnish(viewed)
            await host.publish(subjects.inbound("host", "host-1", "hello"), b"waits for a worker")
            yield viewed
        finally:
            await host.close()
            await manager.close()


class Terminal:
    """A pseudo-terminal, and what was shown on it. The nats CLI pages only in a terminal."""

    def __init__(self) -> None:
        self._ours, self.theirs = pty.openpty()
        os.set_blocking(self._ours, False)
        self._shown = bytearray()
        self.more = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._ours, self._read)

    @property
    def text(self) -> str:
        return self._shown.decode(errors="replace")

    def has(self, wanted: list[str]) -> bool:
        return all(re.search(pattern, self.text) for pattern in wanted)

    def _read(self) -> None:
        try:
            data = os.read(self._ours, 65536)
        except (BlockingIOError, OSError):  # nothing more, or nobody has the other end any more
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._ours)
        self._shown.extend(data)
        self.more.set()

    def close(self) -> None:
        self._read()
        asyncio.get_running_loop().remove_reader(self._ours)
        os.close(self._ours)


async def run(viewed: Viewed, recipe: str, wanted: list[str]) -> tuple[int | None, str]:
    """Run one command until it ends, or, if it goes on for ever, until it has shown what is wanted (status None)."""
    assert CLI is not None
    terminal = Terminal()
    ends = terminal.theirs
    process = await asyncio.create_subprocess_exec(
        CLI, *shlex.split(recipe)[1:], stdin=ends, stdout=ends, stderr=ends, env=viewed.environment
    )
    os.close(ends)
    watching = asyncio.create_task(_watch(viewed, terminal, wanted))
    ended = asyncio.create_task(process.wait())
    waited_for = {ended, watching} if FOLLOWS.match(recipe) else {ended}
    await asyncio.wait(waited_for, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
    status = process.returncode
    if status is None:
        process.kill()
    await ended
    watching.cancel()
    await asyncio.wait({watching})
    terminal.close()
    return status, terminal.text


async def _watch(viewed: Viewed, terminal: Terminal, wanted: list[str]) -> None:
    """Return once everything wanted has been shown. Who listens is told something."""
    told = False
    while not terminal.has(wanted):
        await terminal.more.wait()
        terminal.more.clear()
        if "Subscribing" in terminal.text and not told:
            told = True
            await viewed.tell("host", "host-1", "untrusted", HOST)
            await viewed.tell("app", "app-1", "untrusted", APP)
            await viewed.tell("app", "app-1", "admitted", APP)


@pytest.mark.stack
@needs_cli
async def test_each_recipe_shows_what_it_is_for(viewed: Viewed) -> None:
    """One server for all of them; several at a time. A viewer's copies follow their originals a moment later."""
    room = asyncio.Semaphore(4)
    until = asyncio.get_running_loop().time() + PATIENCE_S

    async def tried(recipe: str) -> str:
        while True:
            async with room:
                status, shown = await run(viewed, recipe, SHOWS[recipe])
            if status in (0, None) and all(re.search(pattern, shown) for pattern in SHOWS[recipe]):
                return ""
            if asyncio.get_running_loop().time() > until:
                return f"$ {recipe}\n(status {status})\n{shown}"

    problems = [problem for problem in await asyncio.gather(*map(tried, RECIPES)) if problem]
    assert not problems, "\n\n".join(problems)


@threat(rows.VIEWER_CHANGES)
@pytest.mark.stack
@needs_cli
@pytest.mark.parametrize(
    "command",
    [
        "nats kv put summaries x y",
        "nats kv del summaries x --force",
        "nats pub attest.v1.events.host.host-1.trusted forged",
        "nats stream purge ATTEST_EVENTS --force",
        "nats stream rm KV_admissions --force",
        "nats --js-domain attest consumer rm ATTEST_HOST host-hellos --force",
        "nats --js-domain attest stream rmm ATTEST_HOST 1 --force",
        "nats stream add MINE --subjects mine --defaults",
    ],
)
async def test_what_changes_anything_is_refused(viewed: Viewed, command: str) -> None:
    before = await counts(viewed)
    _, shown = await run(viewed, f"{command} --timeout 500ms", ["ermissions [Vv]iolation"])
    assert re.search("ermissions [Vv]iolation", shown), shown
    assert await counts(viewed) == before


async def counts(viewed: Viewed) -> dict[str, int]:
    streams = [*layout.STREAMS, *(bucket.stream for bucket in layout.BUCKETS.values())]
    return {stream: (await viewed.manager.jetstream.stream_info(stream)).state.messages for stream in streams}
