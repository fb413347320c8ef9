"""`attestgate doctor`: what it finds good is good, what it finds bad says what to do."""

import json
import os
import resource
import time
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
import tomli_w
from typer.testing import CliRunner

from attestgate.cli.main import app
from attestgate.manager.diagnosis import doctor
from attestgate.manager.diagnosis.doctor import Finding
from attestgate.manager.diagnosis.listening import listening
from attestgate.manager.gateway.floors_file import create
from attestgate.schemas.settings import BusSettings, GatewaySettings, OperatorSettings
from tests.support.gateway.gate import Gate, running
from tests.support.threats import rows, threat

HEADER = "  sl  local_address rem_address   st\n"


def bad(findings: list[Finding]) -> dict[str, Finding]:
    found = {finding.check: finding for finding in findings if not finding.good}
    assert all(finding.action for finding in found.values())
    return found


def test_who_listens_is_read_as_the_kernel_writes_it(tmp_path: Path) -> None:
    (tmp_path / "tcp").write_text(
        HEADER + "   0: 0100007F:1A85 00000000:0000 0A 0\n   1: 00000000:19E9 00000000:0000 0A 0\n"
        "   2: 0100007F:9999 0100007F:1A85 01 0\n"
    )
    (tmp_path / "tcp6").write_text(
        HEADER + "   0: 00000000000000000000000001000000:0050 0:0 0A 0\n"
        "   1: 0000000000000000FFFF00000100007F:0051 0:0 0A 0\n"
    )
    assert list(listening(tmp_path)) == [
        (IPv4Address("127.0.0.1"), 6789),
        (IPv4Address("0.0.0.0"), 6633),
        (IPv6Address("::1"), 80),
        (IPv4Address("127.0.0.1"), 81),
    ]


@threat(rows.ADMIN_REACHED)
@pytest.mark.parametrize(("address", "good"), [("127.0.0.1", True), ("0.0.0.0", False), ("10.0.0.1", False)])
def test_a_controller_that_the_network_reaches_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, good: bool
) -> None:
    config = Gate(tmp_path, time.time).config.model_copy(update={"controller": "127.0.0.1:8080"})
    monkeypatch.setattr(doctor, "listening", lambda: [(ip_address(address), 8080), (ip_address(address), 6653)])
    findings = bad(list(doctor.no_way_around(config)))
    assert set(findings) == (set() if good else {"port 8080", "port 6653"})


@pytest.mark.stack
async def test_a_gateway_as_it_should_be(tmp_path: Path) -> None:
    async with running(Gate(tmp_path, time.time)) as gate:
        findings = await doctor.gateway(gate.config)
        assert {"stranger", "controller", "gateway certificate"} <= {finding.check for finding in findings}
        assert bad(findings) == {}
        settings = GatewaySettings(
            bus=BusSettings(url="nats://unused", credentials=Path("unused")),
            id="g1",
            gateway_set="sdn",
            identity=Path("unused"),
            trust_domain="test.example",
            manager_identity=["00" * 32],
            operators=[OperatorSettings(name="ann", role="operator", identity="01" * 32)],
            floors=Path("unused"),
            nginx_socket=gate.config.admin,
        )
        found = await doctor.nginx(settings)
        assert bad(found) == {} and found[0].found.startswith("0 admissions")
        gate.config.admin.chmod(0o666)
        gate.config.controller.chmod(0o666)  # type: ignore[union-attr]
        assert set(bad(await doctor.nginx(settings))) == {"admin socket"}
        gate.config.rejections_socket.unlink()
        assert set(bad(await doctor.nginx(settings))) == {"admin socket", "rejections socket"}
        assert set(bad(await doctor.gateway(gate.config))) == {"controller"}
    assert set(bad(await doctor.nginx(settings))) == {"nginx"}
    assert {"stranger", "controller"} <= set(bad(await doctor.gateway(gate.config)))


def test_the_floors_of_a_gateway(tmp_path: Path) -> None:
    missing = doctor.floors(tmp_path / "floors")
    assert not missing.good and "attestgate gateway floors new" in missing.action
    create(tmp_path / "floors")
    found = doctor.floors(tmp_path / "floors")
    assert found.good and found.found.endswith("0 floors after 0 changes")


@pytest.mark.stack
async def test_open_files_of_a_running_nginx(tmp_path: Path) -> None:
    async with running(Gate(tmp_path, time.time)) as gate:
        config = gate.config
        good = doctor.open_files(config)
        assert good.good and good.found.startswith(f"a process of nginx may open {config.open_files} files")
        more = doctor.open_files(config.model_copy(update={"connections": config.connections + 1}))
        assert not more.good and f"LimitNOFILE={config.open_files + 2}" in more.action


@pytest.mark.parametrize(("limit", "good"), [(7767, False), (7768, True), (resource.RLIM_INFINITY, True)])
def test_open_files_that_nginx_would_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, good: bool
) -> None:
    """Also where the pid file of one that was killed names another process."""
    config = Gate(tmp_path, time.time).config
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, limit))
    assert doctor.open_files(config).good is good
    config.folder.mkdir()
    (config.folder / "nginx.pid").write_text(f"{os.getpid()}\n")
    assert doctor.open_files(config).good is good


async def test_what_is_not_reached_is_a_finding(tmp_path: Path) -> None:
    (finding,) = await doctor.pccs("http://127.0.0.1:1")
    assert not finding.good and "pccs_url" in finding.action
    (finding,) = await doctor.bus(BusSettings(url="nats://127.0.0.1:1", credentials=tmp_path / "none"), "gateway")
    assert not finding.good and "none" in finding.found
    assert not doctor.identity(tmp_path / "none").good


@pytest.mark.stack
def test_the_command_says_it_in_json_and_by_its_exit_status(tmp_path: Path) -> None:
    gate = Gate(tmp_path, time.time)
    keys = ("folder", "port", "certificate", "key", "client_ca", "controller")
    values = {key: getattr(gate.config, key) for key in keys}
    path = tmp_path / "nginx.toml"
    path.write_text(tomli_w.dumps({k: str(v) if isinstance(v, Path) else v for k, v in values.items()}))
    result = CliRunner().invoke(app, ["doctor", "--nginx", str(path), "--json"])
    assert result.exit_code == 1, "nothing runs there"
    found = {row["check"]: row for row in json.loads(result.output)}
    assert found["nginx -t"]["good"] and not found["stranger"]["good"]
    assert "to do" in CliRunner().invoke(app, ["doctor", "--nginx", str(path)]).output
