"""docs/operations.md rehearsed: each section's commands as they are written there, and what the page says comes of it.

On a stack of child processes, since what is restarted, lost or late is named more easily there. Minutes long: runs with
`make test-stack`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import tomli_w

from attestgate.bus.api import BusError
from attestgate.bus.auth import credentials
from attestgate.bus.client.nats import connect
from attestgate.bus.server.embedded import EmbeddedServer
from attestgate.compose.local.children import Child
from attestgate.compose.local.plan import GATEWAY, GATEWAY_NAME, OPERATOR, POLICY_AUTHOR, TRUST_DOMAIN, Plan
from attestgate.compose.local.stack import Stack
from attestgate.compose.local.up import one_of_each
from attestgate.compose.nginx.process import Nginx
from attestgate.schemas.events import reasons_of
from attestgate.schemas.settings import Timing
from tests.stack.containers import WANTED
from tests.support.commands import commands, run_all
from tests.support.story import ENDS

pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(WANTED not in os.environ, reason="takes minutes: make test-stack"),
]
PAGE = "operations.md"
UNHURRIED = Timing(lease_s=20, recheck_s=4, evidence_window_s=10, skew_s=4, certificate_s=600)
"""A lease that outlives a restart on a busy machine."""
PATIENCE_S = 120.0


class OperatedStack:
    """A stack with host-1 and app-1, and the operator's desk: a folder in which the page's commands are typed."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.plan = stack.plan
        self.desk = stack.plan.settings("manager").parent
        for name in ("keys", "nats", "gateway"):
            (self.desk / name).symlink_to(self.plan.folder / name)

    @property
    def listed(self) -> Path:
        """The measurement list of host-1."""
        return self.plan.folder / "measurement-list"

    async def type(self, *lines: str, section: str = "", **environment: str) -> str:
        """Type these lines, or a section's; what they print."""
        ran = await asyncio.to_thread(
            run_all,
            list(lines) or commands(PAGE, section),
            self.desk,
            **{"ATTESTGATE_OPERATOR": str(self.plan.settings("operator")), **environment},
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    async def fresh_keys(self) -> Path:
        """What a second `keys init` makes."""
        await self.type("attestgate keys init next --trust-domain attestgate.test")
        return self.desk / "next"

    async def enrol(self, subject: str) -> None:
        """Enrol host-1 or app-1 as at first, by its name."""
        if subject == "host-1":
            await self.stack.enrol_host("host-1", "machine-a")
        else:
            await self.stack.enrol_app("app-1", "host-1", 0)

    async def enrolled(self) -> dict[str, str]:
        """What is enrolled, under the names that the page has for it."""
        machine = self.plan.machine("machine-a")
        platform = await self.type(f"attestgate simulated ppid {machine} --salt keys/manager/salt")
        measured = {"OLD": self.stack.measurement("host"), "OLD_APP": self.stack.measurement("app")}
        return {**measured, "PLATFORM": platform.strip()}

    def dismiss(self, name: str) -> None:
        """Take an operator or a policy author out of the manager's settings."""
        path = self.plan.settings("manager")
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        table["operators"] = [one for one in table["operators"] if one["name"] != name]
        path.write_text(tomli_w.dumps(table), encoding="utf-8")

    async def start(self, *ids: str) -> None:
        """Start the agents named."""
        for id in ids:
            if id == "host-1":
                await self.stack.start_host("host-1", "machine-a", self.listed, ["app-1"])
            else:
                await self.stack.start_app("app-1", "host-1", "machine-a")

    async def restart_agents(self) -> None:
        """Both agents end, and start again."""
        for id in ("app-1", "host-1"):
            await self.stack.agent(id).stop()
        await self.start("host-1", "app-1")

    async def restart_manager(self) -> None:
        """The worker that there is ends, and starts again with its settings."""
        await self.stack.manager.stop()
        self.stack.manager.log.rename(self.stack.manager.log.with_suffix(f".{time.monotonic_ns()}"))
        await self.stack.start_manager()

    async def restart_gateway(self) -> Child:
        """The gateway worker likewise."""
        await self.stack.gateway.stop()
        self.stack.gateway = await self.stack.children.start(
            "gateway", "gateway", "run", "-s", str(self.plan.settings("gateway"))
        )
        return self.stack.gateway

    async def reload_nginx(self) -> None:
        """`nginx -s reload`."""
        assert self.stack.nginx.pid is not None
        os.kill(self.stack.nginx.pid, 1)

    async def through(self, after: float | None = None, within_s: float = PATIENCE_S) -> None:
        """Return once app-1 gets through, at a connection opened after `after`."""
        assert await self.stack.saw("app-1", "read flows", 200, since=after or 0, within_s=within_s) is not None

    async def renewed(self) -> None:
        """app-1's agent ends and starts again, and it gets through at a new connection."""
        await self.stack.agent("app-1").stop()
        again = time.time()
        await self.start("app-1")
        await self.through(again)

    def undisturbed(self, mark: int) -> bool:
        """Nobody's session ended since, and app-1's program saw nothing but 200."""
        ended = [event for event in self.stack.events.seen[mark:] if event.what in ENDS]
        return ended == [] and self.stack.last_status("app-1") == 200

    async def rechecked(self, since: int, times: int = 2) -> None:
        """Return once host and application were rechecked so often."""
        for _ in range(times):
            for kind, id in (("host", "host-1"), ("app", "app-1")):
                await self.stack.until(kind, id, "rechecked", since=since, within_s=PATIENCE_S)
            since = self.stack.events.mark


@pytest.fixture
async def operated(tmp_path: Path) -> AsyncIterator[OperatedStack]:
    stack = Stack(tmp_path / "s")
    stack.plan = Plan(tmp_path / "s", timing=UNHURRIED)
    async with stack:
        operated = OperatedStack(stack)
        await one_of_each(stack, PATIENCE_S)
        await operated.through()
        yield operated


# Backup and restore


async def test_a_restored_bus_is_not_believed_about_who_was_revoked(operated: OperatedStack) -> None:
    stack = operated.stack
    await stack.server.stop()
    await operated.type(section="Back up")
    await stack.server.start()
    await operated.rechecked(stack.events.mark)
    await operated.type("attestgate revoke app app-1 --reason lost")
    await stack.until("app", "app-1", "revoked")
    await stack.manager.stop()
    await stack.server.stop()
    await operated.type(section="Restore")
    await stack.server.start()
    seen = stack.plan.folder / "state" / "manager" / "decision-log.json"
    seen.rename(seen.with_suffix(".before-restore"))
    mark = stack.events.mark
    await operated.restart_manager()
    await stack.until("host", "host-1", "trusted", since=mark, within_s=PATIENCE_S)

    def refused() -> bool:
        codes = {r.code for e in stack.events.seen[mark:] if e.subject == "app-1" for r in reasons_of(e)}
        return "enrolment.revoked" in codes

    await wait(refused, "app-1 refused as revoked")
    assert any(event.what == "rolled-back" for event in stack.events.seen[mark:])
    again = time.time()
    await operated.enrol("app-1")
    await stack.until("app", "app-1", "admitted", since=mark, within_s=PATIENCE_S)
    await operated.through(again)


# Keys


async def test_storage_keys_are_rotated_and_nobody_notices(operated: OperatedStack) -> None:
    mark = operated.stack.events.mark
    said = await operated.type(section="Rotate the storage keys")
    assert "destroyed epochs [1]" in said
    await operated.rechecked(operated.stack.events.mark)
    assert operated.undisturbed(mark)


async def test_the_issuing_ca_is_replaced_and_nobody_notices(operated: OperatedStack) -> None:
    mark = operated.stack.events.mark
    await operated.type(section="Rotate the issuing CA")
    await operated.restart_manager()
    await operated.reload_nginx()
    await operated.rechecked(operated.stack.events.mark)
    assert operated.undisturbed(mark)
    await operated.renewed()
    with pytest.raises(AssertionError, match=r"pki\.in_use"):
        await operated.type("attestgate keys rotate-ca -s manager.toml --finish")


async def test_a_server_certificate_is_replaced_and_nobody_notices(operated: OperatedStack) -> None:
    mark, old = operated.stack.events.mark, operated.stack.nginx.config.certificate.read_text(encoding="ascii")
    await operated.type(section="Replace a gateway's server certificate", GATEWAY_NAME=GATEWAY_NAME)
    assert operated.stack.nginx.config.certificate.read_text(encoding="ascii") != old
    await operated.reload_nginx()
    await operated.rechecked(operated.stack.events.mark)
    assert operated.undisturbed(mark)
    await operated.renewed()


async def test_a_gateways_identity_is_replaced(operated: OperatedStack) -> None:
    mark = operated.stack.events.mark
    await operated.fresh_keys()
    await operated.type(section="Replace a gateway's identity")
    await operated.restart_gateway()
    await operated.rechecked(operated.stack.events.mark)
    assert operated.undisturbed(mark)
    await operated.renewed()


async def test_the_root_ca_is_replaced(operated: OperatedStack) -> None:
    stack = operated.stack
    await operated.fresh_keys()
    lines = commands(PAGE, "Rotate the root CA")
    old, root = await operated.enrolled(), (operated.desk / "keys/manager/pki/root-ca.pem").read_text(encoding="ascii")
    await operated.type(*lines[:5], **old)
    assert stack.measurement("host") != old["OLD"]
    again = time.time()
    await operated.restart_agents()
    await operated.through(again)
    mark = stack.events.mark
    await operated.type(*lines[5:-1], GATEWAY_NAME=GATEWAY_NAME)
    await operated.reload_nginx()
    await operated.restart_manager()
    await operated.rechecked(stack.events.mark)
    assert operated.undisturbed(mark)
    await operated.renewed()
    await operated.type(lines[-1])
    await operated.reload_nginx()
    for name in ("host", "app"):
        path = operated.plan.settings(f"{name}.measured")
        path.write_text(path.read_text(encoding="utf-8").replace(root, ""), encoding="utf-8")
    await operated.enrol("host-1")
    await operated.enrol("app-1")
    again = time.time()
    await operated.restart_agents()
    await operated.through(again)


async def test_the_managers_identity_is_replaced(operated: OperatedStack) -> None:
    stack = operated.stack
    await operated.fresh_keys()
    lines, old = commands(PAGE, "Rotate the manager's identity"), await operated.enrolled()
    await operated.type(*lines[:-1], **old)
    assert stack.measurement("host") != old["OLD"]
    await operated.restart_gateway()
    again = time.time()
    await operated.restart_agents()
    await operated.through(again)
    await operated.type(lines[-1])
    again = time.time()
    await operated.restart_manager()
    await operated.restart_agents()
    await operated.through(again)


async def test_an_operator_is_replaced(operated: OperatedStack) -> None:
    stack = operated.stack
    await operated.fresh_keys()
    lines = commands(PAGE, "Replace an operator")
    await operated.type(*lines[:-1], BUS=stack.url)
    await operated.restart_manager()
    await operated.restart_gateway()
    assert {f"{subject}: signed" for subject in ("host.host-1", "app.app-1", f"gateway.{GATEWAY}")} <= set(
        (await operated.type(lines[-1])).splitlines()
    )
    olga = {"ATTESTGATE_OPERATOR": "olga.toml"}
    said = await operated.type("attestgate hosts", "attestgate revoke app app-1 --reason trial", **olga)
    assert "host-1" in said and "revoke: applied" in said
    mark, enclaves = stack.events.mark, await operated.enrolled()
    await operated.type(
        "attestgate enrol app app-1 --mrenclave \"$OLD_APP\" --host host-1:0 --allow 'GET,POST,DELETE /switches/**'",
        **olga,
        **enclaves,
    )
    await stack.until("app", "app-1", "admitted", since=mark, within_s=PATIENCE_S)
    operated.dismiss(OPERATOR)
    await operated.restart_manager()
    mark = stack.events.mark
    await operated.rechecked(mark)
    assert operated.undisturbed(mark)
    with pytest.raises(AssertionError, match=r"command\.subject"):
        await operated.type("attestgate revoke app app-1 --reason trial")


async def test_a_policy_author_is_replaced(operated: OperatedStack) -> None:
    stack = operated.stack
    await operated.fresh_keys()
    (operated.desk / "list.bin").symlink_to(operated.listed)
    lines = commands("getting-started.md")
    wanted = [line for line in lines if "policy learn" in line or ("printf" in line and ".json" in line)]
    await operated.type(*(line.replace("sdn.example.org", TRUST_DOMAIN) for line in wanted))
    lines = commands(PAGE, "Replace a policy author")
    await operated.type(*lines[:2])
    await operated.restart_manager()
    mark = stack.events.mark
    await operated.type(*lines[2:])
    operated.dismiss(POLICY_AUTHOR)
    await operated.restart_manager()
    await operated.rechecked(stack.events.mark)
    assert operated.undisturbed(mark)


async def test_a_credential_is_replaced(operated: OperatedStack) -> None:
    await operated.type(section="Replace a bus credential")
    await operated.stack.agent("host-1").stop()
    mark, again = operated.stack.events.mark, time.time()
    await operated.start("host-1")
    await operated.stack.until("host", "host-1", "trusted", since=mark, within_s=PATIENCE_S)
    await operated.stack.until("app", "app-1", "admitted", since=mark, within_s=PATIENCE_S)
    await operated.through(again)


async def test_a_stolen_credential_is_revoked_and_the_host_gets_another(operated: OperatedStack) -> None:
    stack = operated.stack
    stolen = operated.desk / "stolen.creds"
    shutil.copy(operated.plan.credentials("host", "host-1"), stolen)
    thief = await connect([stack.url], stolen)
    said = await operated.type(section="A stolen credential", BUS=stack.url)
    assert f"1 of host host-1\n{stack.url} knows\n" in said
    async with asyncio.timeout(PATIENCE_S):
        while not thief.client.is_closed:
            await asyncio.sleep(0.1)
    with pytest.raises(BusError, match="rejects the credential"):
        await connect([stack.url], stolen)
    await stack.agent("host-1").stop()
    mark, again = stack.events.mark, time.time()
    await operated.start("host-1")
    await stack.until("host", "host-1", "trusted", since=mark, within_s=PATIENCE_S)
    await operated.through(again)


async def test_the_accounts_are_upgraded_and_nobody_notices(operated: OperatedStack) -> None:
    stack, mark = operated.stack, operated.stack.events.mark
    said = await operated.type(section="After an upgrade", BUS=stack.url)
    assert said.startswith("nothing to do: ") and f"{stack.url} knows\n" in said
    await operated.rechecked(stack.events.mark)
    assert operated.undisturbed(mark)


async def test_the_buss_seeds_are_replaced_and_everything_is_put_again(operated: OperatedStack) -> None:
    stack = operated.stack
    await operated.fresh_keys()
    for id in ("app-1", "host-1"):
        await stack.agent(id).stop()
    await stack.gateway.stop()
    await stack.manager.stop()
    await stack.bus.close()
    await stack.server.stop()
    await operated.type(section="Replace the bus's seeds")
    port = int(stack.url.rsplit(":", 1)[1])
    trust = credentials.load(operated.plan.keys / "bus")
    async with EmbeddedServer(operated.plan.folder / "nats", trust, port=port):
        await operated.restart_manager()
        stack.bus = await connect([stack.url], operated.plan.credentials("operator", OPERATOR))
        await stack.events.follow(stack.bus)
        mark, again = stack.events.mark, time.time()
        await stack.enrol_gateway()
        await stack.put_policy(operated.listed)
        await operated.enrol("host-1")
        await operated.enrol("app-1")
        await operated.restart_gateway()
        await operated.start("host-1", "app-1")
        await stack.until("app", "app-1", "admitted", since=mark, within_s=PATIENCE_S)
        await operated.through(again)
        for id in ("app-1", "host-1"):
            await stack.agent(id).stop()
        await stack.gateway.stop()
        await stack.manager.stop()


# Upgrades


async def test_workers_are_replaced_one_by_one_and_nobody_notices(operated: OperatedStack) -> None:
    stack, mark = operated.stack, operated.stack.events.mark
    old = stack.manager
    await stack.start_manager("manager-2")
    await old.stop()
    await operated.rechecked(stack.events.mark)
    await operated.restart_gateway()
    await operated.rechecked(stack.events.mark)
    assert operated.undisturbed(mark)
    assert await operated.type("attestgate quarantine list") == "nothing in quarantine\n"


# Losses


async def test_a_host_that_is_lost_is_revoked_and_its_applications_are_out(operated: OperatedStack) -> None:
    before = time.time()
    await operated.type("attestgate revoke host host-1 --reason stolen")
    event = await operated.stack.until("host", "host-1", "revoked")
    refused = await operated.stack.saw("app-1", "read flows", 403, since=before)
    assert refused is not None and refused < event.at + operated.plan.timing.lease_s


async def test_a_gateway_that_is_lost_is_replaced_by_another(operated: OperatedStack) -> None:
    stack = operated.stack
    await stack.gateway.kill()
    config = stack.nginx.config
    await stack.nginx.stop()
    shutil.rmtree(config.folder)
    await operated.type("attestgate keys init next --trust-domain attestgate.test --gateway gateway-2")
    key = '"$(python3 -c \'import json; print(json.load(open("next/public.json"))["gateways"]["gateway-2"])\')"'
    await operated.type(f"attestgate enrol gateway gateway-2 --identity {key}")
    await operated.type("attestgate keys credentials keys gateway gateway-2 --output gateway-2.creds")
    text = operated.plan.settings("gateway").read_text(encoding="utf-8")
    text = text.replace(f'id = "{GATEWAY}"', 'id = "gateway-2"')
    text = text.replace(
        str(operated.plan.keys / "gateways" / f"{GATEWAY}.pem"), str(operated.desk / "next/gateways/gateway-2.pem")
    )
    text = text.replace(str(operated.plan.credentials("gateway", GATEWAY)), str(operated.desk / "gateway-2.creds"))
    operated.plan.settings("gateway").write_text(text, encoding="utf-8")
    again = time.time()
    async with Nginx(config):
        await operated.restart_gateway()
        await operated.through(again)
        await stack.gateway.stop()


async def test_a_gateway_whose_clock_is_behind_refuses_leases_until_it_is_set(operated: OperatedStack) -> None:
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        pytest.skip("no libfaketime: apt-get install faketime")
    stack, mark, before = operated.stack, operated.stack.events.mark, time.time()
    await stack.gateway.stop()
    settings = ("gateway", "run", "-s", str(operated.plan.settings("gateway")))
    slow = {"LD_PRELOAD": str(library), "FAKETIME": "-60s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    stack.gateway = await stack.children.start("gateway", *settings, environment=slow)
    event = await stack.until("gateway", GATEWAY, "refused", since=mark)
    assert isinstance(event.data["reason"], dict) and event.data["reason"]["code"] == "admission.future"
    assert await stack.saw("app-1", "read flows", 403, since=before, within_s=PATIENCE_S) is not None
    again = time.time()
    await operated.restart_gateway()
    await operated.through(again)


@pytest.mark.parametrize("when_down", ["cache", "refuse"])
async def test_without_the_attestation_service_nothing_is_noticed_within_the_hour(
    operated: OperatedStack, when_down: str
) -> None:
    """What `refuse` does after that hour is tested with a clock of its own, in tests/sgx."""
    stack, settings = operated.stack, operated.plan.settings("manager")
    await stack.children.named("pccs").stop()
    text = settings.read_text(encoding="utf-8").replace(
        "[attestation]\n", f'[attestation]\nwhen_down = "{when_down}"\n'
    )
    settings.write_text(text, encoding="utf-8")
    mark = stack.events.mark
    await operated.restart_manager()
    await operated.rechecked(stack.events.mark)
    assert operated.undisturbed(mark)
    await operated.renewed()


# Reloading


async def test_log_level_and_policies_are_taken_up_without_a_restart(operated: OperatedStack) -> None:
    stack = operated.stack
    for child, name in ((stack.manager, "manager"), (stack.gateway, "gateway")):
        path = operated.plan.settings(name)
        path.write_text(path.read_text(encoding="utf-8") + '\n[log]\nlevel = "warning"\n', encoding="utf-8")
        child.process.send_signal(1)
        line = await stack.children.line(child, '"event": "log level"', 20.0)
        assert '"level": "warning"' in line
    mark = stack.events.mark
    (operated.desk / "list.bin").symlink_to(operated.listed)
    lines = [line for line in commands("getting-started.md") if "policy" in line or "sgx.json" in line]
    assert "policy learn" in lines[0] and "policy sign" in lines[-1]
    newer = {'{"version": 1, "trust_domain"': '{"version": 2, "trust_domain"', "sdn.example.org": TRUST_DOMAIN}
    for before, after in newer.items():
        lines = [line.replace(before, after) for line in lines]
    lines.append("attestgate policy put set.signed")
    await operated.type(*lines)
    await operated.rechecked(mark)
    assert operated.undisturbed(mark)
    assert stack.manager.running and stack.gateway.running


async def wait(holds: object, what: str, within_s: float = PATIENCE_S) -> None:
    """Return once `holds()` is true."""
    assert callable(holds)
    until = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < until, what
        await asyncio.sleep(0.05)
