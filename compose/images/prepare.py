"""Prepare a stack of containers in one folder before it starts: keys, settings, a simulated machine.

    python -m attestgate.compose.images.prepare FOLDER

Settings name paths as the containers see them (compose.yaml mounts them there). The root CA's key, the bus's seeds and
the operator's and policy author's keys stay out of every long-running container.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

import tomli_w

from attestgate.bus.auth import credentials
from attestgate.bus.server.embedded import configuration
from attestgate.bus.subjects import app_name
from attestgate.compose.local.plan import GATEWAY, GATEWAY_NAME, GATEWAY_SET, OPERATOR, POLICY_AUTHOR, TRUST_DOMAIN
from attestgate.compose.local.recorded import CLEAN
from attestgate.enclave.simulated import authority, platform, signer
from attestgate.manager.gateway.floors_file import create as create_floors
from attestgate.manager.local.keyfiles import read_secret, write_private
from attestgate.manager.pki import deployment
from attestgate.manager.pki.authority import load_authority
from attestgate.manager.pki.issue import issue_server
from attestgate.schemas.base import Refusal
from attestgate.schemas.nginx import NginxConfig

HOST = "host-1"
APPS = {"app-1": "attestgate.app_agent.examples.flows", "app-2": "attestgate.app_agent.examples.inventory"}
CONTAINER_USER = 10001
"""The user in the containers if root prepares the stack; otherwise it is the user who prepares it."""
ETC, SECRETS, AGENTS, VOLUMES = "/etc/attestgate", "/run/secrets", "/run/agents", "/volumes"
STATE, FLOORS, BLOCKS = "/var/lib/attestgate", "floors.sqlite", "blocks"
MACHINE, NGINX, CONTROLLER = "/run/machine/sgx.sock", "/run/nginx", "/run/controller/controller.sock"
NATS_PORT, NATS_ROUTES, NATS_MONITOR, PCCS_PORT, GATEWAY_PORT, METRICS = 4222, 6222, 8222, 8081, 8443, "0.0.0.0:9464"
BUS_PORTS = (NATS_PORT, NATS_ROUTES)
MANAGERS_SIDE = "bus.managers"
"""The name of every nats-server on the network of the managers, whose sending is not limited."""
TIMING = {"lease_s": 10, "recheck_s": 3, "evidence_window_s": 6, "skew_s": 2, "certificate_s": 600}
CLUSTER = ("nats", "nats-2", "nats-3")
STORE, ACCOUNTS = Path("/data"), Path("/data/accounts")
"""On the volume: JetStream makes /data/jetstream, beside which the accounts' JWTs are."""


def prepare(folder: Path) -> None:
    """Create everything, the file `env` last: if it exists, preparation is complete.

    Raises Refusal (`keys.exists` if the folder is not empty).
    """
    keys = folder / "keys"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    deployment.init(keys, trust_domain=TRUST_DOMAIN, operator=OPERATOR, policy_author=POLICY_AUTHOR, gateway=GATEWAY)
    for role, name in (("host", HOST), *(("app", app_name(HOST, app)) for app in APPS)):
        credentials.issue(keys / "bus", role, name, keys / "credentials" / f"{role}-{name}.creds")
    _simulated(folder / "simulated")
    _nats(folder / "nats", keys)
    _gateway(folder / "gateway", keys)
    shutil.copytree(keys / "manager" / "pki", folder / "pki", ignore=shutil.ignore_patterns("root-ca.key.pem"))
    shutil.copy(CLEAN, folder / "measurement-list")
    _settings(folder / "settings", keys)
    user, group = (CONTAINER_USER, CONTAINER_USER) if os.getuid() == 0 else (os.getuid(), os.getgid())
    if os.getuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, user, group)
    (folder / "env").write_text(f"ATTESTGATE_RUN={folder.absolute()}\nATTESTGATE_UID={user}\nATTESTGATE_GID={group}\n")


def _simulated(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    authority.create(folder / "authority")
    signer.create(folder / "signer.pem")
    platform.create(folder / "machine", folder / "authority")


def _nats(folder: Path, keys: Path) -> None:
    """nats-server's configuration: of the one server, and of each in the cluster of three."""
    trust = credentials.load(keys / "bus")
    ports = {"port": NATS_PORT, "http": f"127.0.0.1:{NATS_MONITOR}"}
    password = token_urlsafe(32)
    cluster = {
        "name": "attestgate",
        "listen": f"0.0.0.0:{NATS_ROUTES}",
        "authorization": {"user": "route", "password": password},
        "routes": [f"nats-route://route:{password}@{name}.managers:{NATS_ROUTES}" for name in CLUSTER],
    }
    folder.mkdir(mode=0o700)
    single = ports | configuration(trust, "nats", STORE, ACCOUNTS, "always")
    write_private(folder / "single.conf", json.dumps(single, indent=2).encode())
    for name in CLUSTER:
        table = ports | configuration(trust, name, STORE, ACCOUNTS, "2m") | {"cluster": cluster}
        write_private(folder / f"{name}.conf", json.dumps(table, indent=2).encode())


def _gateway(folder: Path, keys: Path) -> None:
    folder.mkdir(mode=0o700)
    issuer = load_authority(keys / "manager" / "pki", read_secret(keys / "manager" / "pki-passphrase"))
    server = issue_server(issuer, names=[GATEWAY_NAME], lifetime_s=30 * 86400, at=int(time.time()))
    (folder / "server.pem").write_text(server.chain, encoding="ascii")
    write_private(folder / "server.key", server.key.reveal())
    create_floors(folder / "state" / FLOORS)
    (folder / "state" / BLOCKS).mkdir(mode=0o700)
    config = NginxConfig(
        folder=Path(NGINX),
        address="0.0.0.0",  # noqa: S104  the container's own
        port=GATEWAY_PORT,
        certificate=Path(f"{ETC}/server.pem"),
        key=Path(f"{SECRETS}/gateway_server_key"),
        client_ca=Path(f"{ETC}/pki/client-ca.pem"),
        controller=Path(CONTROLLER),
    )
    (folder / "nginx.json").write_text(config.model_dump_json(indent=2), encoding="utf-8")


def _settings(folder: Path, keys: Path) -> None:
    public: dict[str, Any] = json.loads((keys / "public.json").read_text(encoding="utf-8"))
    root_ca = (keys / "manager" / "pki" / "root-ca.pem").read_text(encoding="ascii")
    folder.mkdir(mode=0o700)

    def write(name: str, table: dict[str, Any]) -> None:
        (folder / f"{name}.toml").write_text(tomli_w.dumps(table, multiline_strings=True), encoding="utf-8")

    write("manager", _manager(public))
    write("gateway", _gateway_worker(public))
    operator = {"name": OPERATOR, "identity": f"{SECRETS}/operator_identity", **_managers(public)}
    write("operator", operator | _ground("operator_creds"))
    for name, program in {HOST: "", **APPS}.items():
        measured = {
            **_managers(public),
            "suites": ["mlkem768-x25519"],
            "gateway_ca": root_ca,
            "gateway_name": GATEWAY_NAME,
            "program": program,
        }
        write(f"{name}.measured", measured)
    volumes = {"measurement_list": f"{ETC}/measurement-list", "volumes": [f"{VOLUMES}/{app}" for app in APPS]}
    write(HOST, _agent(HOST) | volumes)
    for app in APPS:
        own = {"host": HOST, "volume": f"{VOLUMES}/{app}", "status_file": f"{AGENTS}/{app}.jsonl"}
        write(app, _agent(app) | own)


def _ground(credential: str) -> dict[str, Any]:
    bus = {"url": f"nats://nats:{NATS_PORT}", "credentials": f"{SECRETS}/{credential}"}
    return {"profile": "development", "bus": bus}


def _managers(public: dict[str, Any]) -> dict[str, Any]:
    return {"trust_domain": public["trust_domain"], "manager_identity": [public["manager_identity"]]}


def _operators(keys: dict[str, str], role: str) -> list[dict[str, str]]:
    return [{"name": name, "role": role, "identity": key} for name, key in keys.items()]


def _manager(public: dict[str, Any]) -> dict[str, Any]:
    authors = _operators(public["policy_authors"], "policy-author")
    return {
        "name": "manager",
        "state_dir": STATE,
        "identity": f"{SECRETS}/manager_identity",
        "storage_keys": f"{SECRETS}/storage_keys",
        "salt": f"{SECRETS}/salt",
        "pki": f"{ETC}/pki",
        "pki_passphrase": f"{SECRETS}/pki_passphrase",
        "trust_domain": public["trust_domain"],
        "operators": _operators(public["operators"], "operator") + authors,
        "attestation": {
            "pccs_url": f"http://pccs:{PCCS_PORT}",
            "root": f"{ETC}/attestation-root.pem",
            "allow_simulated": True,
        },
        "gateways": {"name": GATEWAY_SET, "address": f"nginx:{GATEWAY_PORT}"},
        "timing": TIMING,
        "metrics": METRICS,
        **_ground("manager_creds"),
    }


def _gateway_worker(public: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": GATEWAY,
        "gateway_set": GATEWAY_SET,
        "identity": f"{SECRETS}/gateway_identity",
        **_managers(public),
        "operators": _operators(public["operators"], "operator"),
        "floors": f"{STATE}/{FLOORS}",
        "block_folder": f"{STATE}/{BLOCKS}",
        "nginx_socket": f"{NGINX}/admin.sock",
        "metrics": METRICS,
        **_ground("gateway_creds"),
    }


def _agent(name: str) -> dict[str, Any]:
    return {
        "id": name,
        "measured": f"{ETC}/{name}.measured.toml",
        "retry_s": 1,
        "health_file": f"{AGENTS}/{name}.lease",
        "platform": {"kind": "simulated", "socket": MACHINE},
        **_ground(f"{name}_creds"),
    }


if __name__ == "__main__":
    try:
        prepare(Path(sys.argv[1]))
    except (Refusal, IndexError) as error:
        sys.exit(str(error) if isinstance(error, Refusal) else "give one argument: FOLDER")
