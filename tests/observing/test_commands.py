"""`attestgate sessions|hosts|apps|explain` against a real server: tables, lines, empty states, exit codes."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from attestgate.bus import subjects
from attestgate.bus.auth import credentials
from attestgate.bus.client.nats import NatsBus, connect
from attestgate.bus.client.setup import ensure
from attestgate.bus.server.embedded import EmbeddedServer
from attestgate.schemas.base import Reason
from attestgate.schemas.events import Event
from attestgate.schemas.summary import Summary

pytestmark = pytest.mark.stack

HOST, APP = "a1" * 16, "b2" * 16
AT = 1_700_000_000
REASON = Reason(
    code="ima.unknown", field="list: entry 448", expected="a known file", found="/usr/bin/rogue", action="-"
)
OUTCOME = {
    "simulated": True,
    "integrity": "unanchored",
    "observe_only": False,
    "quote_id": "c3" * 32,
    "mrenclave": "d4" * 32,
    "tcb_status": "UpToDate",
    "policy": {"sgx": "e5" * 32},
}


@dataclass
class Observed:
    """A bus, the manager's connection to it, and an operator's file."""

    bus: NatsBus
    operator: Path

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        """`attestgate ARGUMENTS`: exit status, standard output, standard error."""
        process = await self.start(*arguments)
        output, errors = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode(), errors.decode()

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "attestgate.cli",
            *arguments,
            "--operator",
            str(self.operator),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def put(self, summary: Summary) -> None:
        await self.bus.bucket("summaries").put(f"{summary.role}.{summary.id}.{summary.session}", summary.body())

    async def tell(self, kind: str, id: str, what: str, at: int, **fields: object) -> None:
        place = {"host": "h1"} if kind == "app" else {}
        common = {"id": f"{kind}-{what}-{at}", "kind": kind, "subject": id, "what": what, "at": at, "source": "t"}
        event = Event.model_validate(common | place | fields)
        await self.bus.publish(subjects.event(kind, event.name, what), event.body(), headers=event.headers())


@pytest.fixture
async def observed(tmp_path: Path) -> AsyncIterator[Observed]:
    keys = tmp_path / "keys"
    trust = credentials.create(keys)
    for role in ("manager", "operator"):
        credentials.issue(keys, role, role, tmp_path / f"{role}.creds")
    key = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "operator.pem").write_bytes(key)
    (tmp_path / "operator.pem").chmod(0o600)
    async with EmbeddedServer(tmp_path / "server", trust) as server:
        settings = {
            "name": "operator",
            "identity": "operator.pem",
            "trust_domain": "test.example",
            "manager_identity": ["00" * 32],
            "bus": {"url": server.url, "credentials": "operator.creds"},
        }
        (tmp_path / "operator.toml").write_text(tomli_w.dumps(settings))
        bus = await connect([server.url], tmp_path / "manager.creds")
        try:
            await ensure(bus)
            yield Observed(bus, tmp_path / "operator.toml")
        finally:
            await bus.close()


def host(**changes: object) -> Summary:
    fields = {"role": "host", "id": "h1", "host": "h1", "session": HOST, "state": "TRUSTED", "created_at": AT}
    return Summary.model_validate({**fields, **changes})


def app(**changes: object) -> Summary:
    return host(**{"role": "app", "id": "app-1", "session": APP, "state": "ADMITTED", **changes})


async def test_nothing_yet(observed: Observed) -> None:
    assert await observed.run("sessions") == (0, "no sessions\n", "")
    assert await observed.run("hosts", "--json") == (0, "[]\n", "")
    status, output, errors = await observed.run("explain", HOST)
    assert (status, output) == (1, "")
    assert errors.startswith("attestgate: session.unknown") and "attestgate sessions" in errors


async def test_a_table_and_json(observed: Observed) -> None:
    await observed.put(app())
    await observed.put(host(lease_end=AT + 30, simulated=True, integrity="anchored"))
    status, output, _ = await observed.run("sessions")
    lines = output.splitlines()
    assert status == 0 and lines[0].split()[:4] == ["role", "id", "host", "state"]
    assert lines[1].split() == ["host", "h1", "h1", "TRUSTED", "anchored", "True", "22:13:50", HOST]
    assert lines[2].split()[:4] == ["app", "app-1", "h1", "ADMITTED"]
    _, output, _ = await observed.run("apps", "--json")
    assert [Summary.model_validate(row) for row in json.loads(output)] == [app()]


async def test_watching_says_each_change_once_and_ends_on_ctrl_c(observed: Observed) -> None:
    await observed.put(host())
    process = await observed.start("hosts", "--watch", "--json")
    assert process.stdout is not None
    async with asyncio.timeout(20):
        assert json.loads(await process.stdout.readline())["state"] == "TRUSTED"
        await observed.put(app())  # not a host
        await observed.put(host())  # no change
        await observed.put(host(state="RECHECKING"))
        assert json.loads(await process.stdout.readline())["state"] == "RECHECKING"
        await observed.bus.bucket("summaries").delete(f"host.h1.{HOST}")
        assert json.loads(await process.stdout.readline()) == {"deleted": f"host.h1.{HOST}"}
        process.send_signal(2)
        output, errors = await process.communicate()
    assert (process.returncode, output, errors) == (130, b"", b"")


async def test_watching_a_pipe_without_json_gives_lines(observed: Observed) -> None:
    process = await observed.start("sessions", "-w")
    assert process.stdout is not None and process.stderr is not None
    async with asyncio.timeout(20):
        assert await process.stderr.readline() == b"no sessions yet\n"
        await observed.put(host())
        assert (await process.stdout.readline()).split()[:4] == [b"host", b"h1", b"h1", b"TRUSTED"]
        process.terminate()
        await process.communicate()


async def test_a_session_is_explained_step_by_step(observed: Observed) -> None:
    await observed.put(app(state="REFUSED", reasons=[REASON], serial="0a"))
    same = {"session": APP, "simulated": True}
    await observed.tell("app", "app-1", "challenged", AT, state="CHALLENGED", before="NEW", session=APP)
    await observed.tell(
        "app", "app-1", "waiting-for-key", AT + 1, data={"outcome": OUTCOME, "host_session": HOST}, **same
    )
    await observed.tell("app", "app-1", "certified", AT + 2, data={"serial": "0a", "not_after": AT + 9}, **same)
    await observed.tell("gateway", "g1", "withdrawn", AT + 4, data={"key": "cert.0a", "reason": "ima.unknown"})
    await observed.tell("gateway", "g1", "withdrawn", AT + 4, data={"key": "cert.0b", "reason": "another's"})
    reasons = {"step": "recheck", "reasons": [REASON.model_dump()]}
    await observed.tell("app", "app-1", "refused", AT + 3, data=reasons, state="REFUSED", before="CERTIFIED", **same)
    await observed.tell("app", "app-1", "challenged", AT + 5, session="00" * 16)
    await observed.bus.publish(subjects.event("gateway", "g1", "withdrawn"), b"no event")
    status, output, _ = await observed.run("explain", APP[:5])
    assert status == 0
    told = [line for line in output.splitlines() if line.startswith("22:13:")]
    assert [line.split()[-1] if "->" not in line else line for line in told[:1]] == [
        "22:13:20  step 5  app app-1 challenged  NEW -> CHALLENGED"
    ]
    assert [line[:8] for line in told] == ["22:13:20", "22:13:21", "22:13:22", "22:13:23", "22:13:24"]
    for wanted in (
        "quote: SHA-256 " + "c3" * 32,
        "MRENCLAVE: " + "d4" * 32,
        "sgx policy: SHA-256 " + "e5" * 32,
        "expected a known file",
        "found    /usr/bin/rogue",
        "gateway g1 withdrawn",
        "[simulated]",
    ):
        assert wanted in output, wanted
    assert "another's" not in output
    _, output, _ = await observed.run("explain", APP, "--json")
    document = json.loads(output)
    assert document["summary"]["session"] == APP and len(document["events"]) == 5


async def test_a_beginning_that_fits_two_sessions_is_refused(observed: Observed) -> None:
    await observed.put(host())
    await observed.put(host(session="a2" * 16))
    status, _, errors = await observed.run("explain", "a")
    assert status == 1 and "session.ambiguous" in errors and "a prefix of 2" in errors
