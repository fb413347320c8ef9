"""What runs in a container of the stack beside `attestgate` itself: nginx, and the first enrolment.

python -m attestgate.compose.images.inside nats CONFIG USER:GROUP   nats-server behind the kernel's limits
python -m attestgate.compose.images.inside nginx CONFIG     nginx in front of the controller, until it is stopped
python -m attestgate.compose.images.inside enrol OPERATOR   policy, gateway, host and applications, enrolled once
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Literal, NoReturn

from attestgate.bus.api import BusError
from attestgate.bus.client.nats import join
from attestgate.bus.operator import OperatorKey, order
from attestgate.bus.server.embedded import find_binary
from attestgate.bus.server.firewall import rules
from attestgate.compose.images.prepare import APPS, BUS_PORTS, ETC, HOST, MANAGERS_SIDE
from attestgate.compose.local.plan import GATEWAY
from attestgate.compose.local.policies import LearnedPolicies
from attestgate.compose.nginx.process import Nginx
from attestgate.enclave.simulated import platform
from attestgate.enclave.simulated.measure import CODE_ROOT, agent_manifest, measure
from attestgate.manager.local.keyfiles import read_identity, read_secret
from attestgate.schemas.base import Refusal, read_json
from attestgate.schemas.enrolment import Action, AppEnrolment, Enrol, GatewayEnrolment, HostEnrolment, Placement
from attestgate.schemas.nginx import NginxConfig
from attestgate.schemas.settings import OperatorFile, load_settings
from attestgate.schemas.sgx import PlatformIdentity
from attestgate.schemas.signing import Signer

ALLOWED = {"app-1": ["GET,POST,DELETE /switches/**"], "app-2": ["GET /switches"]}
"""What each application may do at the controller."""


def run_nats(config: Path, user: int, group: int) -> NoReturn:
    """Have the kernel limit what a machine may send, then become nats-server, without any right. Raises Refusal.

    nft needs CAP_NET_ADMIN in this container's own network, which is new at each start: hence here, as root.
    """
    network = network_of(socket.gethostbyname(MANAGERS_SIDE), Path("/proc/net/route").read_text(encoding="ascii"))
    loaded = subprocess.run(
        ["/usr/sbin/nft", "-f", "-"], input=rules(BUS_PORTS, [network]), capture_output=True, text=True, check=False
    )
    if loaded.returncode != 0:
        raise Refusal.because(
            "bus.firewall",
            "nftables",
            expected="a kernel that takes the rules of attestgate.bus.server.firewall",
            found=(loaded.stderr.splitlines() or [f"exit status {loaded.returncode}"])[0],
            action="give this container NET_ADMIN, and its machine's kernel nf_tables with conntrack and limits",
        )
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)
    binary = str(find_binary())
    os.execv(binary, [binary, "-c", str(config)])  # noqa: S606  what this container is for


def network_of(address: str, routes: str) -> IPv4Network:
    """The network that an address of this machine belongs to, from the kernel's routes (/proc/net/route).

    Raises ValueError if there is none.
    """
    for line in routes.splitlines()[1:]:
        destination, mask = (IPv4Address(int(line.split()[column], 16).to_bytes(4, sys.byteorder)) for column in (1, 7))
        if int(mask) and IPv4Address(address) in IPv4Network((destination, str(mask))):
            return IPv4Network((destination, str(mask)))
    raise ValueError(f"{address}: no route to a network of its own in /proc/net/route")


async def run_nginx(path: Path) -> None:
    """Run nginx until SIGTERM, or until it exits. Raises Refusal."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Nginx(read_json(NginxConfig, path)) as nginx:
        sys.stdout.write("nginx is ready\n")
        sys.stdout.flush()
        while not stop.is_set() and nginx.pid is not None:
            try:
                async with asyncio.timeout(1.0):
                    await stop.wait()
            except TimeoutError:
                continue
        if not stop.is_set():
            raise Refusal.because(
                "nginx.ended", str(path), expected="nginx running", found="nginx exited", action="check its error.log"
            )


async def enrol(path: Path) -> None:
    """Put a policy learned from the recorded list in force, and enrol everything. Raises Refusal, BusError."""
    settings = load_settings(OperatorFile, path)
    operator = OperatorKey.of(settings, read_identity(settings.identity))
    facts = platform.read_facts(Path("/machine"))
    salt = read_secret(Path("/run/secrets/salt")).reveal()
    identity = PlatformIdentity.salted(salt, ppid=facts.pck.ppid, pck_leaf=b"", attestation_key=b"", qe_id=b"")
    public = json.loads(Path(f"{ETC}/public.json").read_text(encoding="utf-8"))
    policies = LearnedPolicies.learn(Path(f"{ETC}/measurement-list"))
    author = Signer(settings.trust_domain, read_identity(Path("/run/secrets/policy_author_identity")))
    actions: list[Action] = [
        policies.command(author, version=1),
        Enrol(subject=GatewayEnrolment(id=GATEWAY, identity=bytes.fromhex(public["gateways"][GATEWAY]))),
        Enrol(subject=HostEnrolment(id=HOST, mrenclaves=[_measured("host", HOST)], platform=identity.ppid)),
    ]
    for index, app in enumerate(APPS):
        placement, mrenclave = Placement(host=HOST, volume=index), _measured("app", app)
        subject = AppEnrolment(id=app, mrenclaves=[mrenclave], placements=[placement], allow=ALLOWED[app])
        actions.append(Enrol(subject=subject))
    async with await join(settings.bus) as bus:
        for action in actions:
            await order(bus, operator, action, settings.answer_s)
            sys.stdout.write(f"{action.do}: applied\n")


def _measured(kind: Literal["host", "app"], name: str) -> str:
    return measure(agent_manifest(kind), CODE_ROOT, Path(f"{ETC}/{name}.measured.toml")).mrenclave.hex()


def main(arguments: list[str]) -> int:
    """Exit codes: 0 done; 1 with one line on standard error."""
    what, *rest = arguments
    try:
        match what:
            case "nats":
                run_nats(Path(rest[0]), *map(int, rest[1].split(":")))
            case "nginx":
                asyncio.run(run_nginx(Path(rest[0])))
            case "enrol":
                asyncio.run(enrol(Path(rest[0])))
            case _:
                raise ValueError(f"{what}: none of nats, nginx and enrol")
    except (Refusal, BusError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
