"""What a stack of containers is given before it starts, without any container."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tomllib
from ipaddress import ip_network
from pathlib import Path

import pytest
import tomli_w
from prometheus_client import CollectorRegistry, Gauge

from attestgate.cli.config import MODELS, detect
from attestgate.compose.images import health
from attestgate.compose.images.inside import ALLOWED, network_of
from attestgate.compose.images.prepare import APPS, CLUSTER, HOST, prepare
from attestgate.manager.metrics.http import served
from attestgate.schemas.base import Refusal
from attestgate.schemas.settings import AppSettings, HostSettings, ProcessSettings, load_measured, load_settings
from tests.stack.containers import ROOT
from tests.support.enclave.gramine import rendered

NAMES = {"manager": "manager", "gateway": "gateway", "operator": "operator", HOST: "host"} | dict.fromkeys(APPS, "app")
SECRET_FILE = re.compile(r"file: \"\$\{ATTESTGATE_RUN\}/([^\"]+)\"")
GIVEN = {
    "ATTESTGATE_TPM_IMAGE": "attestgate-tpm",
    "ATTESTGATE_TPM_GROUP": "100",
    "ATTESTGATE_SGX_GROUP": "100",
    "ATTESTGATE_GRAMINE_BASE": "gramine",
    "ATTESTGATE_ENCLAVE_KEY": "/enclave-key.pem",
}
"""What the overrides ask for."""
MOUNTED = re.compile(r"- \$\{ATTESTGATE_RUN\}/([^:]+):")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("run") / "stack"
    prepare(made)
    return made


@pytest.mark.parametrize(("name", "role", "kind"), [(HOST, "host", HostSettings), ("app-1", "app", AppSettings)])
def test_settings_serve_an_enclave_after_the_changes_that_the_override_asks_for(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    role: str,
    kind: type[HostSettings | AppSettings],
) -> None:
    manifest = rendered(role)
    for variable, value in manifest["loader"]["env"].items():
        if variable.startswith("ATTESTGATE_"):
            monkeypatch.setenv(variable, value)
    table = tomllib.loads((folder / "settings" / f"{name}.toml").read_text())
    for key in ("platform", "health_file", "status_file", "measurement_list"):
        table.pop(key, None)
    table["bus"]["credentials"] = "/run/secrets/agent.creds"
    path = tmp_path / "agent.toml"
    path.write_text(tomli_w.dumps(table))
    settings = load_settings(kind, path)
    assert (settings.profile, settings.platform.kind) == ("production", "gramine")
    read = [settings.measured, settings.bus.credentials]
    read += [settings.measurement_list, *settings.volumes] if isinstance(settings, HostSettings) else [settings.volume]
    mounted = [mount["path"] for mount in manifest["fs"]["mounts"]]
    assert all(any(file.is_relative_to(there) for there in mounted) for file in read)


@pytest.mark.parametrize(("name", "process"), NAMES.items())
def test_every_settings_file_is_right(folder: Path, name: str, process: str) -> None:
    path = folder / "settings" / f"{name}.toml"
    kind = detect(path)
    model = MODELS[kind]
    assert kind == process and issubclass(model, ProcessSettings)
    assert load_settings(model, path).profile == "development"


def test_every_agent_has_measured_settings_and_the_programs_differ(folder: Path) -> None:
    programs = {name: load_measured(folder / "settings" / f"{name}.measured.toml").program for name in (HOST, *APPS)}
    assert programs == {HOST: "", **APPS}
    assert len(set(APPS.values())) == 2
    assert ALLOWED.keys() == APPS.keys() and ALLOWED["app-1"] != ALLOWED["app-2"]


@pytest.mark.parametrize("file", ["compose.yaml", "compose.cluster.yaml"])
def test_whatever_is_mounted_is_there(folder: Path, file: str) -> None:
    text = (ROOT / "compose" / file).read_text(encoding="utf-8")
    named = SECRET_FILE.findall(text) + MOUNTED.findall(text)
    assert len(named) >= 3
    assert [name for name in named if not (folder / name).exists()] == []


def test_the_root_ca_key_and_the_bus_seeds_are_in_no_container(folder: Path) -> None:
    text = "".join(
        (ROOT / "compose" / name).read_text(encoding="utf-8") for name in ("compose.yaml", "compose.cluster.yaml")
    )
    named = SECRET_FILE.findall(text) + MOUNTED.findall(text)
    given = [path for name in named for path in ((folder / name), *(folder / name).rglob("*")) if path.is_file()]
    assert given
    assert [path for path in given if path.suffix == ".seed" or path.name == "root-ca.key.pem"] == []


@pytest.mark.parametrize("name", ["single", *CLUSTER])
def test_what_a_server_is_told_of_accounts_is_on_its_volume_and_not_among_the_streams(folder: Path, name: str) -> None:
    """It outlives the container, and a backup of the streams (/data/jetstream) brings back no revoked credential."""
    table = json.loads((folder / "nats" / f"{name}.conf").read_text(encoding="utf-8"))
    assert (table["jetstream"]["store_dir"], table["resolver"]["dir"]) == ("/data", "/data/accounts")
    assert table["resolver"]["type"] == "full" and not table["resolver"]["allow_delete"]


ROUTES = """Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT
eth2\t00000000\t010015AC\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000013AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
eth1\t000014AC\t00000000\t0001\t0\t0\t0\t00F0FFFF\t0\t0\t0
"""
"""As a little-endian machine's kernel shows a default route, 172.19.0.0/16 and 172.20.0.0/20."""


@pytest.mark.skipif(sys.byteorder != "little", reason="recorded on a little-endian machine")
def test_the_managers_network_is_found_by_a_servers_own_address_there() -> None:
    assert network_of("172.20.0.3", ROUTES) == ip_network("172.20.0.0/20")
    assert network_of("172.19.7.7", ROUTES) == ip_network("172.19.0.0/16")
    with pytest.raises(ValueError, match=r"192\.168\.1\.1: no route to a network of its own"):
        network_of("192.168.1.1", ROUTES)


def test_nobody_else_can_read_a_secret(folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    open_to_others = [
        path
        for name in SECRET_FILE.findall((ROOT / "compose" / "compose.yaml").read_text(encoding="utf-8"))
        if stat.S_IMODE((path := folder / name).stat().st_mode) & 0o077
    ]
    assert open_to_others == []


def test_keys_that_are_there_are_not_overwritten(folder: Path) -> None:
    with pytest.raises(Refusal, match=r"keys\.exists"):
        prepare(folder)


@pytest.mark.parametrize("override", [None, "compose.cluster.yaml", "compose.tpm.yaml", "compose.sgx.yaml"])
@pytest.mark.parametrize("command", [("docker", "compose"), ("docker-compose",)], ids=" ".join)
@pytest.mark.stack
def test_the_files_load_in_the_compose_that_is_here(
    folder: Path, command: tuple[str, ...], override: str | None
) -> None:
    if shutil.which(command[0]) is None or subprocess.run([*command, "version"], capture_output=True).returncode != 0:
        pytest.skip(f"no {' '.join(command)}")
    if command == ("docker-compose",) and override == "compose.sgx.yaml":
        pytest.skip("it is for docker compose v2.24 or newer")
    files = [
        argument for name in ("compose.yaml", override) if name for argument in ("-f", str(ROOT / "compose" / name))
    ]
    ran = subprocess.run(
        [*command, "--env-file", str(folder / "env"), *files, "config", "--services"],
        env={**os.environ, **GIVEN}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    services = set(ran.stdout.split())
    assert {"nats", "manager", "gateway", "nginx", "controller", "switch", HOST, "app-1"} <= services
    assert {"pccs", "machine", "app-2"} <= services or override == "compose.sgx.yaml"
    assert ("nats-3" in services) == (override == "compose.cluster.yaml")
    assert ("tpm" in services) == (override == "compose.tpm.yaml")


def test_the_alert_rules_name_metrics_that_there_are() -> None:
    metrics = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rules = (ROOT / "compose" / "prometheus" / "alerts.yaml").read_text(encoding="utf-8")
    named = {re.sub(r"_(bucket|count|sum)$", "", name) for name in re.findall(r"\battestgate_\w+", rules)}
    assert len(named) >= 8
    assert [name for name in named if f"`{name}`" not in metrics] == []


# Health checks


def test_a_lease_decides_an_agents_health(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lease"
    assert health.main(["leased", str(path)]) == 1
    path.write_text("4000000000\n", encoding="ascii")
    assert health.main(["leased", str(path)]) == 0
    path.write_text("1000000000\n", encoding="ascii")
    assert health.main(["leased", str(path)]) == 1
    path.write_text("soon\n", encoding="ascii")
    assert health.main(["leased", str(path)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_a_socket_that_nobody_listens_on_is_not_healthy(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        assert health.main(["listens", str(path)]) == 1
        listener.listen()
        assert health.main(["listens", str(path)]) == 0
    assert health.main(["listens", str(path)]) == 1


def test_a_worker_is_healthy_while_its_metric_is_recent() -> None:
    registry = CollectorRegistry()
    gauge = Gauge("attestgate_bus_answered_timestamp_seconds", "test", registry=registry)
    with served("127.0.0.1:0", registry) as url:
        assert url is not None
        assert health.main(["recent", url, "attestgate_bus_answered_timestamp_seconds"]) == 1
        gauge.set_to_current_time()
        assert health.main(["recent", url, "attestgate_bus_answered_timestamp_seconds"]) == 0
        assert health.main(["recent", url, "attestgate_nothing"]) == 1
        assert health.main(["answers", url]) == 0
    assert health.main(["answers", url]) == 1
