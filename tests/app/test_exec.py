"""`attestgate app exec` on the running stack: any program gets through, marked as one, and is stopped with a reason."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import tomli_w
from typer.testing import CliRunner

from attestgate.app_agent.proxy import unix_socket
from attestgate.cli.exec import Exec
from attestgate.cli.main import app
from attestgate.compose.local.plan import TRUST_DOMAIN
from attestgate.compose.local.recorded import CLEAN
from attestgate.compose.local.stack import Stack
from attestgate.compose.nginx.process import free_port
from attestgate.enclave.simulated.measure import CODE_ROOT, agent_manifest, measure
from attestgate.manager.local.keyfiles import read_identity
from attestgate.schemas.base import Refusal, unpack
from attestgate.schemas.enrolment import (
    MANIFEST,
    MANIFESTS,
    AppEnrolment,
    Enrol,
    Placement,
    PolicyManifest,
    PutPolicy,
    Revoke,
)
from attestgate.schemas.signing import Signer
from tests.support.gateway.gate import until

COMMAND = """
import httpx, json, os, sys, time
unix = httpx.Client(transport=httpx.HTTPTransport(uds=os.environ["ATTESTGATE_SOCKET"]), base_url="http://controller")
loopback = httpx.Client(base_url="http://controller.example")
flow = {"priority": 7, "match": {"in_port": "1"}, "actions": ["output:2"]}
answers = [
    unix.get("/switches"), unix.post("/switches/s1/flows", json=flow), loopback.get("/switches/s1/flows?x=%3A"),
    unix.put("/switches/s1"),
]
print(json.dumps([[a.status_code, a.text] for a in answers]), flush=True)
time.sleep(600)
"""


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """A trusted host, and a policy that takes proxies."""
    listed = tmp_path / "list"
    shutil.copy(CLEAN, listed)
    async with Stack(tmp_path / "s") as stack:
        policies = await stack.put_policy(listed)
        author = Signer(TRUST_DOMAIN, read_identity(next((stack.plan.keys / "policy-authors").iterdir())))
        command = policies.command(author, version=2)
        manifest = unpack(PolicyManifest, command.manifest.payload).model_copy(update={"allow_proxy": True})
        signed = author.sign(MANIFEST, MANIFESTS, manifest)
        await stack.order(PutPolicy(manifest=signed, documents=command.documents))
        await stack.enrol_host("host-1", "machine-a")
        await stack.start_host("host-1", "machine-a", listed, ["app-1"])
        await stack.until("host", "host-1", "trusted")
        yield stack


async def settings(stack: Stack) -> Path:
    """Settings of app-1 as a proxy, enrolled with its measurement."""
    plan = stack.plan
    measured = plan.write_measured("proxy", "attestgate.app_agent.proxy")
    mrenclave = measure(agent_manifest("app"), CODE_ROOT, measured).mrenclave.hex()
    subject = AppEnrolment(
        id="app-1",
        mrenclaves=[mrenclave],
        placements=[Placement(host="host-1", volume=0)],
        allow=["GET,POST /switches/**"],
    )
    await stack.order(Enrol(subject=subject))
    written = plan.write_app(
        stack.server.url, "app-1", "host-1", "machine-a", plan.volume("app-1"), stack.status_file("app-1")
    )
    text = written.read_text()
    assert "app.measured" in text
    more = {"proxy_socket": str(plan.folder / "p.sock"), "proxy_port": free_port()}
    written.write_text(tomli_w.dumps(more) + text.replace("app.measured", "proxy.measured"))
    return written


@pytest.mark.stack
async def test_a_program_gets_through_and_is_stopped_with_a_reason(stack: Stack) -> None:
    path = await settings(stack)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "attestgate.cli", "app", "exec", "-s", str(path), "--", sys.executable, "-c", COMMAND),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    async with asyncio.timeout(90):
        listed, added, read, forbidden = json.loads(await process.stdout.readline())
    assert listed[0] == 200
    assert added[0] == 201
    assert read[0] == 200 and json.loads(read[1])[0]["priority"] == 7
    assert forbidden == [403, "refused\n"]

    async def refusals() -> list[bytes]:
        return [m.data async for m in stack.bus.history("attest.v1.events.gateway.gateway-1.request-refused")]

    (told,) = await until(refusals, bool)
    assert b"no rule allows it: GET,POST /switches/**" in told
    controller = stack.log("controller")
    assert "/app/app-1" in controller
    await stack.order(Revoke(kind="app", id="app-1", reason="a test of stopping"))
    async with asyncio.timeout(60):
        errors = (await process.stderr.read()).decode()
    assert await process.wait() == 1
    for words in (
        "challenged by the manager for evidence",
        "admitted at the gateway",
        "not admitted",
        "a test of stopping",
    ):
        assert words in errors, errors
    assert not (stack.plan.folder / "p.sock").exists()


def test_it_is_off_unless_asked_for(tmp_path: Path) -> None:
    measured = {
        "trust_domain": "test.example",
        "manager_identity": ["00" * 32],
        "suites": ["x25519"],
        "program": "attestgate.app_agent.examples.flows",
    }
    (tmp_path / "measured.toml").write_text(tomli_w.dumps(measured))
    values = {
        "id": "a1",
        "host": "h1",
        "measured": "measured.toml",
        "volume": "v",
        "bus": {"url": "nats://127.0.0.1:1", "credentials": "c"},
    }
    path = tmp_path / "app.toml"
    path.write_text(tomli_w.dumps(values))
    result = CliRunner().invoke(app, ["app", "exec", "-s", str(path), "--", "true"])
    assert isinstance(result.exception, Refusal)
    assert result.exception.reasons[0].code == "settings.program"
    (tmp_path / "measured.toml").write_text(tomli_w.dumps({**measured, "program": "attestgate.app_agent.proxy"}))
    result = CliRunner().invoke(app, ["app", "exec", "-s", str(path), "--", "true"])
    assert isinstance(result.exception, Refusal)
    assert result.exception.reasons[0].code == "settings.proxy"


@pytest.mark.stack
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_told_to_end_it_says_by_what(tmp_path: Path, number: signal.Signals) -> None:
    ready = ["sh", "-c", """echo '{"event": "ready"}' >&2; exec sleep 600"""]
    runs = tmp_path / "runs"
    running = asyncio.create_task(Exec(ready, ["sh", "-c", f"touch {runs}; exec sleep 600"], dict(os.environ)).run())
    while not runs.exists():
        await asyncio.sleep(0.02)
    os.kill(os.getpid(), number)
    assert await running == 128 + number


def test_a_file_that_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text("a key")
    with pytest.raises(OSError, match="in use"):
        unix_socket(path)
    assert path.read_text() == "a key"
