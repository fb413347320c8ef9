"""What runs in a container of the stack beside `attestgate` itself: nginx, and the first enrolment.

python -m attestgate.compose.images.inside nginx CONFIG     nginx in front of the controller, until it is stopped
python -m attestgate.compose.images.inside enrol OPERATOR   policy, gateway, host and applications, enrolled once
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Literal

from attestgate.bus.api import BusError
from attestgate.bus.client.nats import join
from attestgate.bus.operator import order
from attestgate.compose.images.prepare import APPS, ETC, HOST
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

ALLOWED = {"app-1": ["GET,POST,DELETE /switches/**"], "app-2": ["GET /switches"]}
"""What each application may do at the controller."""


async def run_nginx(path: Path) -> None:
    """nginx until SIGTERM, or until it ends by itself. Raises Refusal."""
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
                "nginx.ended", str(path), expected="nginx running", found="it ended", action="see its error.log"
            )


async def enrol(path: Path) -> None:
    """Put a policy learned from the recorded list in force, and enrol everybody. Raises Refusal, BusError."""
    settings = load_settings(OperatorFile, path)
    key = read_identity(settings.identity)
    facts = platform.read_facts(Path("/machine"))
    salt = read_secret(Path("/run/secrets/salt")).reveal()
    identity = PlatformIdentity.salted(salt, ppid=facts.pck.ppid, pck_leaf=b"", attestation_key=b"", qe_id=b"")
    public = json.loads(Path(f"{ETC}/public.json").read_text(encoding="utf-8"))
    policies = LearnedPolicies.learn(Path(f"{ETC}/measurement-list"))
    actions: list[Action] = [
        policies.command(read_identity(Path("/run/secrets/policy_author_identity")), version=1),
        Enrol(subject=GatewayEnrolment(id=GATEWAY, identity=bytes.fromhex(public["gateways"][GATEWAY]))),
        Enrol(subject=HostEnrolment(id=HOST, mrenclaves=[_measured("host", HOST)], platform=identity.ppid)),
    ]
    for index, app in enumerate(APPS):
        placement, mrenclave = Placement(host=HOST, volume=index), _measured("app", app)
        subject = AppEnrolment(id=app, mrenclaves=[mrenclave], placements=[placement], allow=ALLOWED[app])
        actions.append(Enrol(subject=subject))
    async with await join(settings.bus) as bus:
        for action in actions:
            event = await order(bus, settings.name, key, action, settings.answer_s)
            sys.stdout.write(f"{action.do}: {event.what}\n")


def _measured(kind: Literal["host", "app"], name: str) -> str:
    return measure(agent_manifest(kind), CODE_ROOT, Path(f"{ETC}/{name}.measured.toml")).mrenclave.hex()


def main(arguments: list[str]) -> int:
    """Exit codes: 0 done; 1 with one line on standard error."""
    what, *rest = arguments
    try:
        match what:
            case "nginx":
                asyncio.run(run_nginx(Path(rest[0])))
            case "enrol":
                asyncio.run(enrol(Path(rest[0])))
            case _:
                raise ValueError(f"{what}: neither nginx nor enrol")
    except (Refusal, BusError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
