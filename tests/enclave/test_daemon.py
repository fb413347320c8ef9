"""The machine: who gets a quote, what runs inside, and what ends with what."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import dcap_qvl
import pytest

from attestgate.enclave.api import EnclaveError
from attestgate.enclave.simulated import authority, daemon, platform, signer
from attestgate.enclave.simulated.client import SimulatedEnclave
from attestgate.enclave.simulated.frames import Exited, KeyRequest, Launch, LaunchAnswer
from attestgate.enclave.simulated.launcher import launch
from attestgate.enclave.simulated.measure import measure
from attestgate.schemas.base import MAX_MESSAGE, Refusal, pack, unpack
from tests.support.enclave.probe import (
    REPOSITORY,
    Code,
    Machine,
    Machines,
    run_probe,
    start_launcher,
    switched_on,
    wait_dead,
)
from tests.support.reasons import refusal_code

pytestmark = pytest.mark.stack

REPORT_DATA = bytes(range(64))


def report(quote: str) -> dcap_qvl.SgxEnclaveReport:
    found = dcap_qvl.parse_quote(bytes.fromhex(quote)).report
    assert isinstance(found, dcap_qvl.SgxEnclaveReport)
    return found


def pids_of(running: subprocess.Popen[str]) -> list[int]:
    """The enclave's process and its child's, as the probe says them once it runs."""
    assert running.stdout is not None
    pids = json.loads(running.stdout.readline())["pids"]
    assert isinstance(pids, list)
    return pids


def test_quote_says_what_the_daemon_measured_and_who_signed(machines: Machines, code: Code) -> None:
    status, answer = run_probe(machines.one, code, "quote", REPORT_DATA.hex())
    found = report(answer["quote"])
    assert status == 0
    assert found.report_data == REPORT_DATA
    assert found.mr_enclave == measure(code.manifest, code.root, code.settings).mrenclave
    assert found.mr_signer == signer.read_mrsigner(machines.signer)
    assert bytes.fromhex(answer["quote"])[48:432][256:260] == bytes((7, 0, 3, 0))  # ISVPRODID, ISVSVN


def test_quote_of_changed_code_has_another_mrenclave(machines: Machines, code: Code) -> None:
    _, before = run_probe(machines.one, code, "quote", REPORT_DATA.hex())
    (code.root / "probe" / "late.py").write_text("VALUE = 'evil'\n")
    _, after = run_probe(machines.one, code, "quote", REPORT_DATA.hex())
    assert report(before["quote"]).mr_enclave != report(after["quote"]).mr_enclave


def test_edits_after_launch_change_nothing_inside(machines: Machines, code: Code, tmp_path: Path) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    measured = measure(code.manifest, code.root, code.settings).mrenclave
    with start_launcher(machines.one, code, "wait", str(go)) as running:
        assert running.stdout is not None
        running.stdout.readline()
        (code.root / "probe" / "late.py").write_text("VALUE = 'evil'\n")
        code.settings.write_text("manager_identity = 'bb'\n")
        go.write_text("go\n")
        inside = json.loads(running.stdout.readline())
        assert inside == {"late": "as measured", "settings": "manager_identity = 'aa'\n"}
        assert report(json.loads(running.stdout.readline())["quote"]).mr_enclave == measured
        running.kill()


def test_sealing_keys(machines: Machines, code: Code) -> None:
    _, keys = run_probe(machines.one, code, "keys")
    _, again = run_probe(machines.one, code, "keys")
    _, elsewhere = run_probe(machines.other, code, "keys")
    code.settings.write_text("manager_identity = 'bb'\n")
    _, sibling = run_probe(machines.one, code, "keys")
    assert keys == again
    assert sibling["mrsigner"] == keys["mrsigner"]
    assert len({keys["mrsigner"], keys["mrenclave"], sibling["mrenclave"], *elsewhere.values()}) == 5


def test_inside_there_is_only_what_was_measured(machines: Machines, code: Code) -> None:
    environment = {
        "PROBE_X": "yes",
        "OTHER": "no",
        "PYTHONPATH": "/evil",
        "LD_PRELOAD": "/evil.so",
        "ATTESTGATE_MEASURED": "/evil",
    }
    _, inside = run_probe(machines.one, code, "look", environment=environment)
    images = str(machines.one.folder / "images")
    assert inside["settings"] == code.settings.read_text()
    assert all(entry.startswith(images) for entry in inside["path"])
    assert inside["environment"].pop("ATTESTGATE_MEASURED").startswith(images)
    assert inside["environment"] == {"PROBE_X": "yes", "LANG": "C.UTF-8"}


@pytest.mark.parametrize(("module", "there"), [("pytest", False), ("tests", False), ("msgpack", True), ("ssl", True)])
def test_only_trusted_modules_can_be_imported(machines: Machines, code: Code, module: str, there: bool) -> None:
    _, answer = run_probe(machines.one, code, "import", module)
    assert answer["imported"] is there
    assert not there or answer["source"].startswith(str(machines.one.folder / "images"))


def test_exit_status_comes_back(machines: Machines, code: Code) -> None:
    assert run_probe(machines.one, code, "exit", "3") == (3, {})


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_launcher_gone_means_enclave_and_its_children_dead(
    machines: Machines, code: Code, tmp_path: Path, end: signal.Signals
) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    with start_launcher(machines.one, code, "wait", str(go)) as running:
        pids = pids_of(running)
        running.send_signal(end)
        for pid in pids:
            wait_dead(pid)
    assert len(pids) == 2


def test_the_launchers_sighup_reaches_the_enclave_and_ends_nothing(machines: Machines, code: Code) -> None:
    with start_launcher(machines.one, code, "reload") as running:
        (pid,) = pids_of(running)
        assert running.stdout is not None
        for _ in range(2):
            running.send_signal(signal.SIGHUP)
            assert json.loads(running.stdout.readline()) == {"reloaded": True}
        assert running.wait(30) == 0
        wait_dead(pid)


def test_enclave_that_ignores_the_request_to_end_is_ended(machines: Machines, code: Code) -> None:
    with start_launcher(machines.one, code, "stubborn") as running:
        (enclave,) = pids_of(running)
        running.kill()
        wait_dead(enclave)
    assert running.returncode == -signal.SIGKILL


def test_machine_off_means_enclaves_dead_and_images_gone(machines: Machines, code: Code, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "third", tmp_path / "third.socket")
    platform.create(machine.folder, machines.authority)
    go = tmp_path / "go"
    os.mkfifo(go)
    with switched_on(machine, machines.signer):
        running = start_launcher(machine, code, "wait", str(go))
        pids = pids_of(running)
    for pid in pids:
        wait_dead(pid)
    with running:
        assert running.wait() != 0


def test_machine_killed_means_enclave_dead_and_its_leftovers_replaced(
    machines: Machines, code: Code, tmp_path: Path
) -> None:
    machine = Machine(tmp_path / "third", tmp_path / "third.socket")
    platform.create(machine.folder, machines.authority)
    os.mkfifo(tmp_path / "go")
    script = (
        "import asyncio, sys; from pathlib import Path; from attestgate.enclave.simulated.daemon import serve;"
        "asyncio.run(serve(*map(Path, sys.argv[1:]), lambda: print('ready', flush=True)))"
    )
    command = [sys.executable, "-c", script, *map(str, (machine.folder, machine.socket, machines.signer))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "ready\n"
        with start_launcher(machine, code, "wait", str(tmp_path / "go")) as running:
            enclave, child = pids_of(running)
            killed.kill()
            wait_dead(enclave)
            os.kill(child, signal.SIGKILL)  # the probe's own, which only a living daemon ends
    left = list((machine.folder / "images").glob("code-*"))
    with switched_on(machine, machines.signer):
        assert left
        assert not any(folder.exists() for folder in left)


@pytest.mark.parametrize(
    "frame",
    [
        b"\xc1",
        b"{}",
        pack(KeyRequest(policy="mrsigner")) + b"\x00",
        pack(KeyRequest(policy="mrsigner")).replace(b"mrsigner", b"mrshiner"),
        b"\x82\xa3ask\xa5quote\xabreport_data\xc4\x20" + bytes(32),
        bytes(130 * 1024),
    ],
    ids=["no msgpack", "no map", "trailing byte", "unknown policy", "short report data", "oversize"],
)
def test_malformed_request_kills_the_enclave(machines: Machines, code: Code, tmp_path: Path, frame: bytes) -> None:
    payload = tmp_path / "frame"
    payload.write_bytes(frame)
    with pytest.raises(Refusal) as refused:
        run_probe(machines.one, code, "raw", str(payload))
    assert refusal_code(refused).startswith("message.")


@pytest.mark.parametrize("forged", [None, "", "nonsense", "-1", "9999"])
def test_process_not_launched_by_the_daemon_gets_nothing(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, forged: str | None
) -> None:
    monkeypatch.delenv("ATTESTGATE_ENCLAVE_FD", raising=False)
    if forged is not None:
        monkeypatch.setenv("ATTESTGATE_ENCLAVE_FD", forged)
    with pytest.raises(Refusal) as refused:
        SimulatedEnclave.inherited()
    assert refusal_code(refused) == "enclave.simulated"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as launchers:
        launchers.connect(str(machines.one.socket))
        with pytest.raises(EnclaveError):
            SimulatedEnclave(launchers).quote(REPORT_DATA)


def test_no_daemon_no_quote() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    inside = SimulatedEnclave(ours)
    with pytest.raises(EnclaveError):
        inside.quote(REPORT_DATA)
    inside.close()


@pytest.mark.parametrize("descriptors", [0, 1])
def test_launch_without_both_outputs_is_dropped(machines: Machines, code: Code, descriptors: int) -> None:
    request = Launch(
        manifest=str(code.manifest),
        code_root=str(code.root),
        measured=str(code.settings),
        directory="/",
        arguments=[],
        environment={},
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as launchers:
        launchers.connect(str(machines.one.socket))
        socket.send_fds(launchers, [pack(request)], [2] * descriptors)
        assert launchers.recv(1) == b""


def test_garbage_from_a_launcher_does_not_stop_the_machine(machines: Machines, code: Code) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as launchers:
        launchers.connect(str(machines.one.socket))
        launchers.sendall(b"\xc1" * 100)
        assert launchers.recv(1) == b""
    assert run_probe(machines.one, code, "exit", "0") == (0, {})


def test_more_launchers_than_it_can_serve_wait(
    machines: Machines, code: Code, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a bound they take every descriptor, and the machine goes down with all its enclaves."""
    monkeypatch.setattr(daemon, "_LAUNCHERS", 2)
    machine = Machine(tmp_path / "third", tmp_path / "third.socket")
    platform.create(machine.folder, machines.authority)
    with switched_on(machine, machines.signer), ExitStack() as closing:
        silent = [closing.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) for _ in range(3)]
        for launchers in silent:
            launchers.connect(str(machine.socket))
        silent[2].sendall(b"garbage")
        silent[2].settimeout(0.1)
        with pytest.raises(TimeoutError):
            silent[2].recv(1)
        silent[0].close()
        silent[2].settimeout(None)
        assert silent[2].recv(1) == b""


def test_refused_launches_say_why(machines: Machines, code: Code, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refusal) as refused:
        launch(machines.one.socket, code.manifest, code.root, None)
    assert refusal_code(refused) == "measure.settings"
    with pytest.raises(Refusal) as refused:
        launch(machines.one.socket, code.root / "none.toml", code.root, code.settings)
    assert refusal_code(refused) == "file.read"
    with pytest.raises(Refusal) as refused:
        launch(machines.one.socket, code.manifest, code.root, code.settings, ["a\0b"])
    assert refusal_code(refused) == "daemon.start"


def test_no_daemon_is_said(code: Code, tmp_path: Path) -> None:
    with pytest.raises(EnclaveError, match="start its daemon"):
        launch(tmp_path / "none.socket", code.manifest, code.root, code.settings)


def test_one_daemon_a_machine_and_one_listener_a_path(machines: Machines, tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refused, switched_on(Machine(machines.one.folder, tmp_path / "s"), machines.signer):
        pass
    assert refusal_code(refused) == "daemon.running"
    platform.create(tmp_path / "third", machines.authority)
    with (
        pytest.raises(Refusal) as refused,
        switched_on(Machine(tmp_path / "third", machines.one.socket), machines.signer),
    ):
        pass
    assert refusal_code(refused) == "daemon.socket"
    long = tmp_path / ("x" * 120)
    with pytest.raises(Refusal) as refused, switched_on(Machine(tmp_path / "third", long), machines.signer):
        pass
    assert refusal_code(refused) == "daemon.socket"


def test_socket_left_by_a_killed_daemon_is_replaced(machines: Machines, code: Code, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "third", tmp_path / "third.socket")
    platform.create(machine.folder, machines.authority)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(machine.socket))
    with switched_on(machine, machines.signer):
        assert machine.socket.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("missing", ["platform.json", "pck.key", "attestation.key", "pck_chain.pem", "signer"])
def test_broken_machine_does_not_start(machines: Machines, tmp_path: Path, missing: str) -> None:
    platform.create(tmp_path / "third", machines.authority)
    broken = tmp_path / "third" / missing
    broken.write_text("garbage")
    signer_key = broken if missing == "signer" else machines.signer
    with pytest.raises(Refusal) as refused, switched_on(Machine(tmp_path / "third", tmp_path / "s"), signer_key):
        pass
    assert refusal_code(refused).startswith("file.")


def test_folders_are_not_overwritten(machines: Machines) -> None:
    with pytest.raises(Refusal) as refused:
        authority.create(machines.authority)
    assert refusal_code(refused) == "simulated.exists"
    with pytest.raises(Refusal) as refused:
        platform.create(machines.one.folder, machines.authority)
    assert refusal_code(refused) == "simulated.exists"


def test_messages_fit_a_frame() -> None:
    assert unpack(LaunchAnswer, pack(LaunchAnswer())).identity is None
    assert unpack(Exited, pack(Exited(status=-9)), limit=MAX_MESSAGE).status == -9
