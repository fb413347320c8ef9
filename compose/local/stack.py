"""The whole stack as child processes of this one, on loopback, on free ports, under one folder; nothing left behind."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from attestgate.bus.auth import credentials
from attestgate.bus.client.nats import NatsBus, connect
from attestgate.bus.operator import OperatorKey, order
from attestgate.bus.server.cluster import SIZE, EmbeddedCluster
from attestgate.bus.server.embedded import EmbeddedServer
from attestgate.compose.local.children import Child, Children
from attestgate.compose.local.events import EventWatch, is_event
from attestgate.compose.local.plan import GATEWAY, OPERATOR, POLICY_AUTHOR, TRUST_DOMAIN, Plan
from attestgate.compose.local.policies import LearnedPolicies
from attestgate.compose.nginx.process import Nginx, free_port
from attestgate.enclave.simulated import authority, platform, signer
from attestgate.enclave.simulated.measure import CODE_ROOT, agent_manifest, measure
from attestgate.manager.local.keyfiles import read_identity, read_secret
from attestgate.manager.pki import deployment
from attestgate.schemas.enrolment import Action, AppEnrolment, Enrol, GatewayEnrolment, HostEnrolment, Placement
from attestgate.schemas.events import Event
from attestgate.schemas.settings import OperatorFile, Timing, load_settings
from attestgate.schemas.sgx import PlatformIdentity
from attestgate.schemas.signing import Signer
from attestgate.schemas.tpm import TpmEnrolment

MACHINES = ("machine-a", "machine-b")
PROGRAM = "attestgate.app_agent.examples.flows"
CALM = Timing(certificate_s=600)
"""The default leases, longer than a cluster needs to elect a new leader."""


class Stack:
    """Bus, simulated machines, attestation service, manager, controller, nginx and gateway worker.

    `tell` is called with every event, `say` with each step. With `cluster` the bus is three servers, of which one may
    be killed. `sync_interval` is the servers' (see `bus.server.embedded.EmbeddedServer`), `controller` the command that
    runs the SDN controller.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tell: Callable[[Event], None] | None = None,
        say: Callable[[str], None] = lambda _: None,
        cluster: bool = False,
        sync_interval: str = "2m",
        controller: Sequence[str] = ("simulated", "controller"),
    ) -> None:
        self.plan = Plan(folder, timing=CALM, replicas=SIZE) if cluster else Plan(folder)
        self._sync_interval = sync_interval
        self._controller = controller
        self.events = EventWatch(tell)
        self.children = Children(folder / "logs")
        self._say = say
        self._exit = AsyncExitStack()
        self.bus: NatsBus
        self.servers: list[EmbeddedServer]
        self.nginx: Nginx
        self.manager: Child
        self.gateway: Child

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        """Stop every part. A cancellation meanwhile (a second Ctrl-C) takes effect once nothing is left running."""
        closing, cancelled = asyncio.ensure_future(self._exit.aclose()), False
        while not closing.done():
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError:
                cancelled = True
        closing.result()
        if cancelled:
            raise asyncio.CancelledError

    async def _start(self) -> None:
        plan = self.plan
        self._say("generating the deployment's keys, and a simulated root of trust with two machines")
        await asyncio.to_thread(self._make_keys)
        trust = credentials.load(plan.keys / "bus")
        await self._start_bus(trust)
        self._say(f"nats-server in operator mode with JetStream: {self.url}")
        credentials.write_context(deployment.viewer_context(plan.keys), self.url, plan.credentials("viewer", "viewer"))
        await self._exit.enter_async_context(self.children)
        for machine in MACHINES:
            await self._ready(
                machine,
                "simulated",
                "machine",
                str(plan.machine(machine)),
                "--socket",
                str(plan.socket(machine)),
                "--signer",
                str(plan.signer),
            )
        pccs = (await self._ready("pccs", "simulated", "pccs", "--authority", str(plan.authority))).split()[1]
        self._say(f"simulated SGX machines {', '.join(MACHINES)}, attestation service {pccs}")
        config = plan.nginx(free_port())
        gateway_address = f"{config.address}:{config.port}"
        plan.write_manager(self.url, pccs, gateway_address)
        plan.write_gateway(self.url, config)
        plan.write_operator(self.url)
        plan.write_measured("host")
        plan.write_measured("app", PROGRAM)
        await self.start_manager()
        self.bus = await connect([self.url], plan.credentials("operator", OPERATOR))
        self._exit.push_async_callback(self.bus.close)
        await self.events.follow(self.bus)
        await self._ready("controller", *self._controller, "--socket", str(config.controller))
        self.nginx = await self._exit.enter_async_context(Nginx(config))
        self._say(f"nginx with njs in front of the controller: https://{gateway_address}")
        await self.enrol_gateway()
        self.gateway = await self.children.start("gateway", "gateway", "run", "-s", str(plan.settings("gateway")))

    async def _start_bus(self, trust: credentials.Trust) -> None:
        folder, sync = self.plan.folder / "nats", self._sync_interval
        if self.plan.replicas == 1:
            self.servers = [await self._exit.enter_async_context(EmbeddedServer(folder, trust, sync_interval=sync))]
        else:
            cluster = EmbeddedCluster(folder, trust, sync_interval=sync)
            self.servers = (await self._exit.enter_async_context(cluster)).servers

    @property
    def url(self) -> str:
        """The bus's address, or several, comma-separated."""
        return ",".join(server.url for server in self.servers)

    @property
    def server(self) -> EmbeddedServer:
        """The bus's server, the first where there are three."""
        return self.servers[0]

    def _make_keys(self) -> None:
        plan = self.plan
        deployment.init(
            plan.keys, trust_domain=TRUST_DOMAIN, operator=OPERATOR, policy_author=POLICY_AUTHOR, gateway=GATEWAY
        )
        plan.authority.parent.mkdir(mode=0o700, parents=True)
        authority.create(plan.authority)
        signer.create(plan.signer)
        for machine in MACHINES:
            platform.create(plan.machine(machine), plan.authority)

    async def start_manager(self, name: str = "manager", settings: str = "manager") -> Child:
        """Start a manager worker, as a process of this name, and return once it works."""
        self.manager = await self.children.start(name, "manager", "run", "-s", str(self.plan.settings(settings)))
        await self.children.line(self.manager, '"event": "working"', 60.0)
        return self.manager

    async def order(self, action: Action) -> None:
        """Send an operator's command and wait until it is applied. Raises Refusal."""
        operator = load_settings(OperatorFile, self.plan.settings("operator"))
        await order(self.bus, OperatorKey.of(operator, read_identity(operator.identity)), action, 15.0)

    async def put_policy(self, learned_from: Path, *, accept_unanchored: bool = True) -> LearnedPolicies:
        """Learn a policy from a known-good host's list, sign its manifest, put it in force."""
        key = read_identity(self.plan.keys / "policy-authors" / f"{POLICY_AUTHOR}.pem")
        author = Signer(TRUST_DOMAIN, key)
        policies = LearnedPolicies.learn(learned_from, accept_unanchored=accept_unanchored)
        await self.order(policies.command(author, version=1))
        return policies

    async def enrol_gateway(self) -> None:
        """Enrol the gateway worker."""
        identity = bytes.fromhex(self.plan.public()["gateways"][GATEWAY])
        await self.order(Enrol(subject=GatewayEnrolment(id=GATEWAY, identity=identity)))

    async def enrol_host(self, id: str, machine: str, tpm: TpmEnrolment | None = None) -> None:
        """Enrol a host on one of the simulated machines, and its TPM if it has one."""
        facts = platform.read_facts(self.plan.machine(machine))
        salt = read_secret(self.plan.keys / "manager" / "salt").reveal()
        identity = PlatformIdentity.salted(salt, ppid=facts.pck.ppid, pck_leaf=b"", attestation_key=b"", qe_id=b"")
        subject = HostEnrolment(id=id, mrenclaves=[self.measurement("host")], platform=identity.ppid, tpm=tpm or "none")
        await self.order(Enrol(subject=subject))

    async def enrol_app(self, id: str, host: str, volume: int) -> None:
        """Enrol an application on a host."""
        subject = AppEnrolment(
            id=id,
            mrenclaves=[self.measurement("app")],
            placements=[Placement(host=host, volume=volume)],
            allow=["GET,POST,DELETE /switches/**"],
        )
        await self.order(Enrol(subject=subject))

    def measurement(self, kind: Literal["host", "app"]) -> str:
        """MRENCLAVE of this installation's agent with the stack's measured settings."""
        return measure(agent_manifest(kind), CODE_ROOT, self.plan.settings(f"{kind}.measured")).mrenclave.hex()

    async def start_host(
        self, id: str, machine: str, measurement_list: Path, volumes: list[str], tpm: str = ""
    ) -> Child:
        """Start a host's agent on a machine; `tpm` is the address of its TPM's service."""
        settings = self.plan.write_host(self.url, id, machine, measurement_list, volumes, tpm)
        return await self.children.start(f"{id}@{machine}", "host", "run", "-s", str(settings))

    async def start_tpm(self, tcti: str) -> str:
        """Start the service that quotes a TPM, and return its address."""
        ready = await self._ready("tpm", "tpm", "serve", "--port", "0", "--tcti", tcti)
        return str(json.loads(ready)["address"])

    async def start_app(
        self,
        id: str,
        host: str,
        machine: str,
        *,
        volume: Path | None = None,
        code: Path = CODE_ROOT,
        bus: str | None = None,
    ) -> Child:
        """Start an application on a machine; with another volume, other code or another URL of the bus if given."""
        volume = volume or self.plan.volume(id)
        settings = self.plan.write_app(bus or self.url, id, host, machine, volume, self.status_file(id))
        return await self.children.start(
            f"{id}@{machine}-{volume.name}", "app", "run", "-s", str(settings), "--code", str(code)
        )

    async def start_thief(self, machine: str, key: Path) -> Child:
        """Start another enclave of the same signer and code, which tries to open a key sealed for another instance."""
        return await self.children.start(
            "thief",
            "simulated",
            "launch",
            "--socket",
            str(self.plan.socket(machine)),
            "--manifest",
            str(CODE_ROOT / "attestgate" / "app_agent" / "examples" / "thief.toml"),
            "--measured",
            str(self.plan.settings("app.measured")),
            str(key),
        )

    def agent(self, id: str) -> Child:
        """The newest running process of an agent."""
        return self.children.newest(f"{id}@")

    def log(self, name: str) -> str:
        """What a process has logged."""
        return (self.plan.folder / "logs" / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    async def command(self, *arguments: str, operator: Path | None = None) -> tuple[int, str]:
        """Run `attestgate ARGUMENTS` as the operator, or with another operator file: its exit status and output."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "attestgate.cli",
            *arguments,
            "--operator",
            str(operator or self.plan.settings("operator")),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode(errors="replace")

    def status_file(self, app: str) -> Path:
        """The file in which an application's program records what it sees."""
        return self.plan.folder / "status" / f"{app}.jsonl"

    def status(self, app: str) -> list[dict[str, object]]:
        """What an application's program has seen so far."""
        path = self.status_file(app)
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    async def saw(
        self, app: str, what: str, status: int, *, since: float = 0.0, within_s: float = 20.0
    ) -> float | None:
        """When an application's program saw a status, in Unix seconds; None if it did not in time."""
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            for line in self.status(app):
                if line["what"] == what and line.get("status") == status and float(str(line["at"])) >= since:
                    return float(str(line["at"]))
            await asyncio.sleep(0.02)
        return None

    def last_status(self, app: str) -> object:
        """The last status that an application's program saw."""
        lines = [line["status"] for line in self.status(app) if "status" in line]
        return lines[-1] if lines else None

    async def until(self, kind: str, subject: str, what: str, *, since: int = 0, within_s: float = 60.0) -> Event:
        """Wait for an event of a subject."""
        return await self.events.wait(
            f"{kind} {subject} {what}", is_event(kind, subject, what), since=since, within_s=within_s
        )

    async def _ready(self, name: str, *arguments: str) -> str:
        """Start a child and return the line that reports it ready."""
        child = await self.children.start(name, *arguments)
        return await self.children.line(child, "ready", 60.0)
