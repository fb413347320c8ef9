"""The settings files of a stack on one machine: its processes, their addresses and files."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from attestgate.bus.auth import credentials
from attestgate.bus.subjects import app_name
from attestgate.compose.nginx.process import free_port
from attestgate.manager.gateway.floors_file import create as create_floors
from attestgate.manager.local.keyfiles import read_secret, write_private
from attestgate.manager.pki.authority import load_authority
from attestgate.manager.pki.issue import issue_server
from attestgate.schemas.nginx import NginxConfig
from attestgate.schemas.settings import Timing

GATEWAY, GATEWAY_SET, GATEWAY_NAME = "gateway-1", "gateways", "gateway.attestgate.test"
OPERATOR, POLICY_AUTHOR, TRUST_DOMAIN = "operator", "policy-author", "attestgate.test"


@dataclass(frozen=True)
class Plan:
    """The paths of one stack. `timing` is the manager's, `replicas` the number of the bus's servers."""

    folder: Path
    timing: Timing = field(
        default_factory=lambda: Timing(lease_s=6, recheck_s=2, evidence_window_s=4, skew_s=2, certificate_s=600)
    )
    replicas: int = 1

    @property
    def keys(self) -> Path:
        """The folder that `attestgate keys init` created."""
        return self.folder / "keys"

    @property
    def authority(self) -> Path:
        """The simulated root of trust."""
        return self.folder / "simulated" / "authority"

    @property
    def signer(self) -> Path:
        """The key that signs enclaves."""
        return self.folder / "simulated" / "signer.pem"

    def machine(self, name: str) -> Path:
        """A simulated machine's folder."""
        return self.folder / "simulated" / name

    def socket(self, name: str) -> Path:
        """A simulated machine's socket."""
        return self.folder / "simulated" / f"{name}.sock"

    def volume(self, app: str) -> Path:
        """An application's data volume."""
        return self.folder / "volumes" / app

    @property
    def gateway_state(self) -> Path:
        """What the gateway worker keeps."""
        return self.folder / "state" / "gateway"

    def settings(self, name: str) -> Path:
        """A process's settings file."""
        return self.folder / "settings" / f"{name}.toml"

    def public(self) -> dict[str, Any]:
        """The public halves of the keys."""
        public: dict[str, Any] = json.loads((self.keys / "public.json").read_text(encoding="utf-8"))
        return public

    def write(self, name: str, table: dict[str, Any]) -> Path:
        """Write a settings file."""
        path = self.settings(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(tomli_w.dumps(table, multiline_strings=True), encoding="utf-8")
        return path

    def credentials(self, role: str, name: str) -> Path:
        """A credentials file, created if missing."""
        path = self.keys / "credentials" / f"{role}-{name}.creds"
        if not path.exists():
            credentials.issue(self.keys / "bus", role, name, path)
        return path

    def write_manager(self, bus: str, pccs: str, gateway: str, name: str = "manager") -> Path:
        """A manager worker's settings."""
        public, keys = self.public(), self.keys / "manager"
        authors = [{"name": n, "role": "policy-author", "identity": k} for n, k in public["policy_authors"].items()]
        return self.write(
            name,
            {
                "profile": "development",
                "name": name,
                "state_dir": str(self.folder / "state" / name),
                "identity": str(keys / "identity.pem"),
                "storage_keys": str(keys / "storage-keys.json"),
                "salt": str(keys / "salt"),
                "pki": str(keys / "pki"),
                "pki_passphrase": str(keys / "pki-passphrase"),
                "trust_domain": public["trust_domain"],
                "operators": self._operators() + authors,
                "bus": {**self._bus(bus, "manager", "manager"), "replicas": self.replicas},
                "attestation": {
                    "pccs_url": pccs,
                    "root": str(self.authority / "root.pem"),
                    "allow_simulated": True,
                },
                "gateways": {"name": GATEWAY_SET, "address": gateway},
                "timing": self.timing.model_dump(),
            },
        )

    def _operators(self) -> list[dict[str, str]]:
        public = self.public()
        return [{"name": n, "role": "operator", "identity": k} for n, k in public["operators"].items()]

    def _managers(self) -> dict[str, Any]:
        """Whose statements are believed."""
        public = self.public()
        return {"trust_domain": public["trust_domain"], "manager_identity": [public["manager_identity"]]}

    def write_gateway(self, bus: str, nginx: NginxConfig) -> Path:
        """The gateway worker's settings, and its floors, which are empty."""
        create_floors(self.gateway_state / "floors.sqlite")
        return self.write(
            "gateway",
            {
                "profile": "development",
                "id": GATEWAY,
                "gateway_set": GATEWAY_SET,
                "identity": str(self.keys / "gateways" / f"{GATEWAY}.pem"),
                **self._managers(),
                "operators": self._operators(),
                "floors": str(self.gateway_state / "floors.sqlite"),
                "block_folder": str(self.gateway_state / "blocks"),
                "nginx_socket": str(nginx.admin),
                "nginx_public": str(nginx.public),
                "bus": self._bus(bus, "gateway", GATEWAY),
            },
        )

    def write_operator(self, bus: str) -> Path:
        """The operator's file."""
        return self.write(
            "operator",
            {
                "profile": "development",
                "name": OPERATOR,
                "identity": str(self.keys / "operators" / f"{OPERATOR}.pem"),
                **self._managers(),
                "bus": self._bus(bus, "operator", OPERATOR),
            },
        )

    def write_measured(self, name: str, program: str = "") -> Path:
        """An agent's measured settings."""
        return self.write(
            f"{name}.measured",
            {
                **self._managers(),
                "suites": ["mlkem768-x25519"],
                "gateway_ca": (self.keys / "manager" / "pki" / "root-ca.pem").read_text(encoding="ascii"),
                "gateway_name": GATEWAY_NAME,
                "program": program,
            },
        )

    def write_host(
        self, bus: str, id: str, machine: str, measurement_list: Path, volumes: list[str], tpm: str = ""
    ) -> Path:
        """A host agent's settings; the index of a volume is its place in `volumes`, `tpm` its TPM service."""
        for app in volumes:
            self.volume(app).mkdir(parents=True, exist_ok=True)
        return self.write(
            f"{id}@{machine}",
            {
                "profile": "development",
                "id": id,
                "measured": str(self.settings("host.measured")),
                "measurement_list": str(measurement_list),
                "volumes": [str(self.volume(app)) for app in volumes],
                **({"tpm": tpm} if tpm else {}),
                "retry_s": 1,
                "bus": self._bus(bus, "host", id),
                "platform": {"kind": "simulated", "socket": str(self.socket(machine))},
            },
        )

    def write_app(self, bus: str, id: str, host: str, machine: str, volume: Path, status: Path) -> Path:
        """An application agent's settings."""
        status.parent.mkdir(parents=True, exist_ok=True)
        return self.write(
            f"{id}@{machine}-{volume.name}",
            {
                "profile": "development",
                "id": id,
                "host": host,
                "measured": str(self.settings("app.measured")),
                "volume": str(volume),
                "status_file": str(status),
                "retry_s": 1,
                "bus": self._bus(bus, "app", app_name(host, id)),
                "platform": {"kind": "simulated", "socket": str(self.socket(machine))},
            },
        )

    def nginx(self, port: int) -> NginxConfig:
        """nginx's configuration, with a new server certificate."""
        folder = self.folder / "gateway"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        pki = self.keys / "manager"
        authority = load_authority(pki / "pki", read_secret(pki / "pki-passphrase"))
        server = issue_server(authority, names=[GATEWAY_NAME], lifetime_s=86400, at=int(time.time()))
        (folder / "server.pem").write_text(server.chain, encoding="ascii")
        write_private(folder / "server.key", server.key.reveal())
        return NginxConfig(
            folder=folder / "nginx",
            port=port,
            certificate=folder / "server.pem",
            key=folder / "server.key",
            client_ca=pki / "pki" / "client-ca.pem",
            controller=self.folder / "controller.sock",
            public_port=free_port(),
        )

    def _bus(self, url: str, role: str, name: str) -> dict[str, str]:
        return {"url": url, "credentials": str(self.credentials(role, name))}
