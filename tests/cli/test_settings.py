"""A settings file with something wrong in it: one line that names the file and the key, exit 2, nothing started."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from attestgate.app_agent import main as app_main
from attestgate.cli.config import MODELS, Process
from attestgate.compose.local.plan import Plan
from attestgate.host_agent import main as host_main
from attestgate.schemas.base import Refusal
from attestgate.schemas.settings import OperatorFile, load_measured, load_settings
from tests.support.cli.fixtures import Run
from tests.support.threats import rows, threat

FILES: dict[str, tuple[str, list[str]]] = {
    "manager": ("manager", ["manager", "run", "-s"]),
    "gateway": ("gateway", ["gateway", "run", "-s"]),
    "host": ("host-1@machine-a", ["host", "run", "-s"]),
    "app": ("app-1@machine-a-app-1", ["app", "run", "-s"]),
    "operator": ("operator", ["sessions", "-O"]),
}
REQUIRED = {
    "manager": [
        "state_dir", "identity", "storage_keys", "salt", "pki", "pki_passphrase", "trust_domain", "operators", "bus",
        "attestation", "gateways", "bus.url", "bus.credentials", "attestation.pccs_url", "attestation.root",
        "gateways.name", "gateways.address",
    ],
    "gateway": [
        "id", "gateway_set", "identity", "trust_domain", "manager_identity", "operators", "floors", "nginx_socket",
        "bus",
    ],
    "host": ["id", "measured", "volumes", "bus"],
    "app": ["id", "host", "measured", "volume", "bus"],
    "operator": ["name", "identity", "trust_domain", "manager_identity", "bus"],
}  # fmt: skip
Table = dict[str, Any]
Write = Callable[[str, Callable[[Table], object]], Path]


@pytest.fixture
def changed(deployed: Plan, tmp_path: Path) -> Write:
    """A process's settings file, with its table changed."""

    def write(kind: str, change: Callable[[Table], object]) -> Path:
        source = deployed.settings(FILES[kind][0])
        table = tomllib.loads(source.read_text(encoding="utf-8"))
        change(table)
        path = tmp_path / source.name
        path.write_text(tomli_w.dumps(table), encoding="utf-8")
        return path

    return write


def _put(key: str, value: object) -> Callable[[Table], object]:
    *tables, last = key.split(".")

    def change(table: Table) -> None:
        for name in tables:
            table = table[name]
        table[last] = value

    return change


def _drop(key: str) -> Callable[[Table], object]:
    *tables, last = key.split(".")

    def change(table: Table) -> None:
        for name in tables:
            table = table[name]
        del table[last]

    return change


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("key", ["colour", "bus.colour"])
def test_an_unknown_key_is_named(attestgate: Run, changed: Write, kind: str, key: str) -> None:
    path = changed(kind, _put(key, "blue"))
    ran = attestgate(*FILES[kind][1], path)
    assert ran.status == 2
    assert f"settings.key: {path}: {key}:" in ran.line


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, keys in REQUIRED.items() for key in keys])
def test_a_missing_key_is_named(attestgate: Run, changed: Write, kind: str, key: str) -> None:
    path = changed(kind, _drop(key))
    ran = attestgate(*FILES[kind][1], path)
    assert ran.status == 2
    assert f"settings.key: {path}: {key}:" in ran.line and "required" in ran.line


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("manager", "timing.lease_s", 1),
        ("manager", "timing.recheck_s", "often"),
        ("manager", "suite", "rot13"),
        ("manager", "operators", []),
        ("manager", "trust_domain", "Not A Domain"),
        ("gateway", "id", "Gateway One"),
        ("gateway", "manager_identity", ["abc"]),
        ("host", "platform.kind", "sgx2"),
        ("host", "volumes", "volume"),
        ("app", "host", ""),
        ("app", "retry_s", 0),
        ("operator", "answer_s", 0),
        ("operator", "profile", "demo"),
    ],
)
def test_a_value_that_does_not_fit_is_named(
    attestgate: Run, changed: Write, kind: str, key: str, value: object
) -> None:
    path = changed(kind, _put(key, value))
    ran = attestgate(*FILES[kind][1], path)
    assert ran.status == 2
    assert f"settings.key: {path}: {key}" in ran.line


@pytest.mark.parametrize("recheck_s", [6, 10])
def test_a_lease_that_no_recheck_could_renew_is_refused(attestgate: Run, changed: Write, recheck_s: int) -> None:
    path = changed("manager", lambda table: table["timing"].update(lease_s=10, recheck_s=recheck_s))
    ran = attestgate("manager", "run", "-s", path)
    assert ran.status == 2
    assert f"{path}: timing:" in ran.line and "lease_s must be at least twice recheck_s" in ran.line


@pytest.mark.parametrize("kind", FILES)
def test_a_missing_file_is_named(attestgate: Run, tmp_path: Path, kind: str) -> None:
    ran = attestgate(*FILES[kind][1], tmp_path / "nowhere.toml")
    assert ran.status == 2
    assert f"settings.read: {tmp_path / 'nowhere.toml'}:" in ran.line and "No such file" in ran.line


@pytest.mark.parametrize("text", [b"id = ", b"\xff\xfe", b"[bus\nurl = 1", b"id = 1\nid = 2"])
def test_a_file_that_is_no_toml_is_named(attestgate: Run, tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(text)
    ran = attestgate("gateway", "run", "-s", path)
    assert ran.status == 2
    assert f"settings.toml: {path}:" in ran.line


@pytest.mark.parametrize("kind", FILES)
def test_several_servers_are_a_list_or_have_commas_between(deployed: Plan, changed: Write, kind: str) -> None:
    first, second = "nats://127.0.0.1:4222", "nats://127.0.0.1:4223"
    for url in ([first, second], f"{first},{second}"):
        settings = load_settings(MODELS[Process(kind)], changed(kind, _put("bus.url", url)))  # type: ignore[type-var]
        assert settings.bus.url == f"{first},{second}"  # type: ignore[union-attr]


@pytest.mark.parametrize("url", [[], [1], [["nats://127.0.0.1:4222"]], 4222], ids=str)
def test_servers_that_are_no_addresses_are_refused(deployed: Plan, changed: Write, url: object) -> None:
    with pytest.raises(Refusal, match=r"bus\.url"):
        load_settings(OperatorFile, changed("operator", _put("bus.url", url)))


def test_an_environment_variable_that_does_not_fit_is_named(
    attestgate: Run, deployed: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTESTGATE_RETRY_S", "soon")
    ran = attestgate("host", "run", "-s", deployed.settings("host-1@machine-a"))
    assert ran.status == 2 and "retry_s" in ran.line


# What only a development profile may do


@threat(rows.SIMULATED)
def test_a_manager_in_production_takes_no_simulated_evidence(attestgate: Run, changed: Write) -> None:
    path = changed("manager", _put("profile", "production"))
    ran = attestgate("manager", "run", "-s", path)
    assert ran.status == 2
    assert 'attestation.allow_simulated is refused while profile = "production"' in ran.line


@threat(rows.SIMULATED)
def test_a_profile_that_is_not_named_is_production(attestgate: Run, changed: Write) -> None:
    ran = attestgate("manager", "run", "-s", changed("manager", _drop("profile")))
    assert ran.status == 2 and 'profile = "production"' in ran.line


@threat(rows.SIMULATED)
@pytest.mark.parametrize(("kind", "main"), [("host", host_main.main), ("app", app_main.main)])
@pytest.mark.parametrize("profile", ["production", None])
def test_an_agent_in_production_refuses_a_simulated_platform(
    changed: Write,
    kind: str,
    main: Callable[[list[str]], int],
    profile: str | None,
    capsys: pytest.CaptureFixture[str],
    attestgate: Run,
) -> None:
    path = changed(kind, _put("profile", profile) if profile else _drop("profile"))
    assert main([str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("enclave.profile: platform: expected a hardware platform") and said.count("\n") == 1


@pytest.mark.parametrize(("kind", "main"), [("host", host_main.main), ("app", app_main.main)])
def test_a_simulated_platform_is_asked_for_by_name(
    attestgate: Run, changed: Write, kind: str, main: Callable[[list[str]], int]
) -> None:
    path = changed(kind, _drop("platform"))
    ran = attestgate(*FILES[kind][1], path)
    assert ran.status == 2
    assert '"simulated", with its socket' in ran.line and "gramine-sgx agent" in ran.line
    assert main([str(path)]) != 0  # no /dev/attestation here


@pytest.mark.parametrize(
    "platform", [{"kind": "simulated"}, {"kind": "gramine", "socket": "x"}, {"socket": "x"}], ids=str
)
def test_a_socket_belongs_to_a_simulated_platform(attestgate: Run, changed: Write, platform: Table) -> None:
    ran = attestgate("host", "run", "-s", changed("host", _put("platform", platform)))
    assert ran.status == 2 and "platform" in ran.line and "socket is required with" in ran.line


# The measured settings


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (_put("colour", "blue"), "colour"),
        (_drop("manager_identity"), "manager_identity"),
        (_put("manager_identity", []), "manager_identity"),
        (_drop("suites"), "suites"),
        (_put("suites", ["rot13"]), "suites"),
        (_put("sealing", "mrenclave-or-so"), "sealing"),
    ],
    ids=["unknown", "no manager", "nobody", "no suites", "unknown suite", "unknown sealing"],
)
def test_measured_settings_that_do_not_fit_are_named(
    deployed: Plan,
    tmp_path: Path,
    changed: Write,
    capsys: pytest.CaptureFixture[str],
    attestgate: Run,
    change: Callable[[Table], object],
    key: str,
) -> None:
    table = tomllib.loads(deployed.settings("host.measured").read_text(encoding="utf-8"))
    change(table)
    measured = tmp_path / "measured.toml"
    measured.write_text(tomli_w.dumps(table), encoding="utf-8")
    assert host_main.main([str(changed("host", _put("measured", str(measured))))]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"settings.key: {measured}: {key}") and said.count("\n") == 1


def test_the_environment_cannot_override_what_is_measured(
    deployed: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = load_measured(deployed.settings("host.measured"))
    for name in ("MANAGER_IDENTITY", "SUITES", "GATEWAY_CA", "GATEWAY_NAME", "SEALING", "PROGRAM"):
        monkeypatch.setenv(f"ATTESTGATE_{name}", "[]")
        monkeypatch.setenv(f"ATTESTGATE_MEASURED__{name}", "[]")
    assert load_measured(deployed.settings("host.measured")) == before
