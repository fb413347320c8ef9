"""Time from the verdict on a drifted host to its applications' 403 at two gateways: python -m bench.drift [--rounds N]

The whole stack as child processes, with a second nginx and gateway worker and a load balancer in front of both, which
sends each new connection to the next gateway. Two applications on one host, each on one kept-alive connection to
another gateway, send a request every 20 ms. A round replaces the host's measurement list with a drifted one. The
verdict counts from when the session's record with it is stored; the total time from the change of the list is printed
as well, most of which is the wait for the next recheck.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
import tomllib
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from attestgate.bus.api import Message
from attestgate.bus.client.nats import connect
from attestgate.bus.layout import SESSIONS, SUMMARIES
from attestgate.compose.local.plan import Plan
from attestgate.compose.local.recorded import CLEAN, DRIFT
from attestgate.compose.local.stack import Stack
from attestgate.compose.nginx.process import Nginx, free_port
from attestgate.manager.gateway.floors_file import create as create_floors
from attestgate.manager.local.keyfiles import write_private
from attestgate.schemas.enrolment import Enrol, GatewayEnrolment
from attestgate.schemas.nginx import NginxConfig
from bench.gateway import spread
from tests.support.story import APPS, HOST, MACHINE, measurement_list, replace_list, restart, through

SECOND = "gateway-2"


class Balancer:
    """Each new connection goes to the next gateway."""

    def __init__(self, ports: list[int]) -> None:
        self._ports = ports
        self._next = 0

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side ends it."""
        port = self._ports[self._next % len(self._ports)]
        self._next += 1
        onward = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_one_way(reader, onward[1]), _one_way(onward[0], writer))


async def _one_way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()


@dataclass(frozen=True)
class BalancedPlan(Plan):
    """The plan of a stack whose applications get the balancer's address."""

    balancer: str = ""

    def write_manager(self, bus: str, pccs: str, gateway: str, name: str = "manager") -> Path:
        """A manager worker's settings."""
        return super().write_manager(bus, pccs, self.balancer, name)


@asynccontextmanager
async def second_gateway(stack: Stack) -> AsyncIterator[NginxConfig]:
    """Another nginx of the same set, with a worker of its own, enrolled."""
    first, plan = stack.nginx.config, stack.plan
    changes = {"folder": first.folder.with_name("nginx-2"), "port": free_port(), "public_port": None}
    async with Nginx(first.model_copy(update=changes)) as nginx:
        key = Ed25519PrivateKey.generate()
        path = plan.keys / "gateways" / f"{SECOND}.pem"
        write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        await stack.order(Enrol(subject=GatewayEnrolment(id=SECOND, identity=key.public_key().public_bytes_raw())))
        table = tomllib.loads(plan.settings("gateway").read_text(encoding="utf-8"))
        config = nginx.config
        table |= {"id": SECOND, "identity": str(path), "nginx_socket": str(config.admin)}
        table |= {"nginx_public": str(config.public), "floors": str(plan.gateway_state / "floors-2.sqlite")}
        create_floors(Path(table["floors"]))
        table["bus"]["credentials"] = str(plan.credentials("gateway", SECOND))
        worker = await stack.children.start(SECOND, "gateway", "run", "-s", str(plan.write(SECOND, table)))
        try:
            yield config
        finally:
            await worker.stop()


class Verdicts:
    """When a host's session record was last stored before it was reported untrusted, in Unix seconds."""

    def __init__(self) -> None:
        self._stored: dict[str, float] = defaultdict(float)
        self.untrusted: asyncio.Queue[float] = asyncio.Queue()

    async def record(self, message: Message) -> None:
        """A record of some session was stored."""
        self._stored[message.subject.rsplit(".", 1)[1]] = time.time()

    async def summary(self, message: Message) -> None:
        """A session's new state; arrives after its record, on the same connection."""
        told = json.loads(message.data) if message.data else {}
        if (told.get("role"), told.get("state")) == ("host", "UNTRUSTED"):
            self.untrusted.put_nowait(self._stored[told["session"]])


@asynccontextmanager
async def balanced(folder: Path) -> AsyncIterator[tuple[Stack, list[NginxConfig], Verdicts]]:
    """Everything running, both applications admitted, each at another gateway."""
    async with AsyncExitStack() as exit:
        address = f"127.0.0.1:{free_port()}"
        stack = Stack(folder)
        stack.plan = BalancedPlan(folder, balancer=address)
        await exit.enter_async_context(stack)
        gateways = [stack.nginx.config, await exit.enter_async_context(second_gateway(stack))]
        balancer = Balancer([gateway.port for gateway in gateways])
        server = await asyncio.start_server(balancer.carry, "127.0.0.1", int(address.rpartition(":")[2]))
        exit.callback(server.close)
        verdicts = Verdicts()
        manager = await connect([stack.url], stack.plan.credentials("manager", "bench"))
        exit.push_async_callback(manager.close)
        await manager.listen(SESSIONS.subject("host.>"), verdicts.record)
        await manager.listen(SUMMARIES.subject("host.>"), verdicts.summary)
        await manager.flush()
        await stack.put_policy(CLEAN)
        await stack.enrol_host(HOST, MACHINE)
        for index, app in enumerate(APPS):
            await stack.enrol_app(app, HOST, index)
        replace_list(stack, CLEAN)
        await stack.start_host(HOST, MACHINE, measurement_list(stack), list(APPS))
        await stack.until("host", HOST, "trusted")
        for app in APPS:
            await stack.start_app(app, HOST, MACHINE)
        await through(stack)
        yield stack, gateways, verdicts


def refused_at(config: NginxConfig) -> set[str]:
    """The serials of the certificates that a gateway has refused."""
    lines = map(json.loads, (config.folder / "access.log").read_text(encoding="utf-8").splitlines())
    return {line["serial"] for line in lines if line["status"] == "403"}


async def drift(folder: Path, rounds: int) -> None:
    """Drift, wait until both are refused, and bring the host and its applications back."""
    after_verdict, whole = [], []
    async with balanced(folder) as (stack, gateways, verdicts):
        for _ in range(rounds):
            for config in gateways:
                (config.folder / "access.log").write_text("")
            drifted = time.time()
            replace_list(stack, DRIFT)
            async with asyncio.timeout(60):
                verdict = await verdicts.untrusted.get()
            out = [await stack.saw(app, "read flows", 403, since=drifted) for app in APPS]
            assert None not in out
            assert [len(refused_at(config)) for config in gateways] == [1, 1], "each at another gateway"
            last = max(at for at in out if at is not None)
            after_verdict.append(last - verdict)
            whole.append(last - drifted)
            replace_list(stack, CLEAN)
            mark = stack.events.mark
            await stack.agent(HOST).stop()
            await stack.start_host(HOST, MACHINE, measurement_list(stack), list(APPS))
            await stack.until("host", HOST, "trusted", since=mark, within_s=60)
            back = time.time()
            await restart(stack, *APPS)
            await through(stack, since=back)
    recheck_s = stack.plan.timing.recheck_s
    print(f"host drift, two gateways, {rounds} rounds, the later of two applications' first 403, in ms")
    print(f"  from the verdict stored: {spread([s * 1000 for s in after_verdict], ' ms', 0)}")
    print(f"  from the changed list (recheck every {recheck_s} s): {spread([s * 1000 for s in whole], ' ms', 0)}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="attestgate-bench-") as folder:
        asyncio.run(drift(Path(folder), rounds))


if __name__ == "__main__":
    main()
