"""What is wrong is said in one line of the right container's log and in an event, and the rest of the stack goes on."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest

from attestgate.compose.images.prepare import APPS
from attestgate.enclave.simulated import platform
from tests.stack.containers import Containers


def complaints(ran: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines with which a process of attestgate says why it ends."""
    return [line for line in (ran.stdout + ran.stderr).splitlines() if line.startswith("attestgate: ")]


def goes_on(stack: Containers) -> bool:
    """Everybody but who was given something wrong is well."""
    return all(
        set(stack.health(service)) == {"healthy"} for service in ("manager", "gateway", "nginx", "host-1", "app-1")
    )


def said(stack: Containers, name: str, code: str) -> list[dict[str, Any]]:
    """The lines of a container's log that have a reason's code."""
    ran = stack.engine.run("docker", "logs", name)
    lines = (json.loads(line) for line in (ran.stdout + ran.stderr).splitlines())
    return [line for line in lines if line.get("code") == code]


@pytest.mark.parametrize(
    ("service", "variable", "value", "named", "code"),
    [
        ("manager", "ATTESTGATE_IDENTITY", "/run/secrets/none", "/run/secrets/none", "keys.file"),
        ("manager", "ATTESTGATE_PKI", "/root", "/root", "pki.load"),
        ("manager", "ATTESTGATE_STATE_DIR", "/root", "/root", "high-water.file"),
        ("manager", "ATTESTGATE_TIMING__LEASE_S", "1", "timing.lease_s", None),
        ("gateway", "ATTESTGATE_IDENTITY", "/run/secrets/none", "/run/secrets/none", "keys.file"),
        ("gateway", "ATTESTGATE_METRICS", "192.0.2.1:9464", "192.0.2.1:9464", "metrics.address"),
        ("gateway", "ATTESTGATE_RECONCILE_S", "often", "reconcile_s", None),
    ],
)
def test_a_worker_that_cannot_begin_says_so_in_one_line_and_in_an_event(
    stack: Containers, service: str, variable: str, value: str, named: str, code: str | None
) -> None:
    """Wrong settings have no event: the credential for the bus is one of them."""
    ran = stack.compose("run", "--rm", "-T", "--no-deps", "-e", f"{variable}={value}", service, timeout_s=60)
    lines = complaints(ran)
    assert ran.returncode != 0
    assert len(lines) == 1 and named in lines[0], ran.stdout + ran.stderr
    if code is not None:
        failed = stack.last_event(service, "gateway-1" if service == "gateway" else service, "failed")
        assert failed is not None and named in failed["data"]["reasons"][0]["field"]
        assert failed["data"]["reasons"][0]["code"] == code and code in lines[0]
    assert goes_on(stack)


def test_a_wrong_key_in_a_settings_file_is_named(stack: Containers) -> None:
    path, right = stack.folder / "settings" / "wrong.toml", stack.folder / "settings" / "gateway.toml"
    path.write_text('colour = "blue"\n' + right.read_text(encoding="utf-8"), encoding="utf-8")
    mounted = ("-v", f"{path}:/etc/attestgate/wrong.toml:ro")
    ran = stack.compose("run", "--rm", "-T", "--no-deps", *mounted, "gateway", "-s", "/etc/attestgate/wrong.toml")
    lines = complaints(ran)
    assert ran.returncode != 0
    assert len(lines) == 1 and "settings.key: /etc/attestgate/wrong.toml: colour" in lines[0], ran.stdout + ran.stderr
    assert goes_on(stack)


def test_a_port_that_is_in_use_is_named(stack: Containers) -> None:
    """Within a container: a second worker in the network of the first."""
    (worker,) = stack.ids("gateway")
    owner = stack.folder.stat()
    user = ("--user", f"{owner.st_uid}:{owner.st_gid}")
    command = ("docker", "run", "--rm", "--network", f"container:{worker}", "--volumes-from", worker, *user)
    ran = stack.engine.run(*command, "--read-only", "attestgate/gateway:local")
    lines = complaints(ran)
    assert ran.returncode != 0
    assert len(lines) == 1 and "metrics.address" in lines[0] and "Address already in use" in lines[0]
    failed = stack.last_event("gateway", "gateway-1", "failed")
    assert failed["data"]["reasons"][0]["code"] == "metrics.address"
    assert failed["data"]["reasons"][0]["found"] == "Address already in use"
    assert goes_on(stack)


def test_a_published_port_that_is_in_use_is_dockers_to_name(stack: Containers) -> None:
    published = f"127.0.0.1:{stack.gateway_port}:8443"
    ran = stack.compose("run", "--rm", "-T", "--no-deps", "-p", published, "nginx", timeout_s=60)
    assert ran.returncode != 0
    assert "port is already allocated" in ran.stdout + ran.stderr
    assert goes_on(stack)


@pytest.mark.parametrize(
    ("service", "variable", "value", "code", "again"),
    [
        ("app-2", "ATTESTGATE_VOLUME", "/volumes/none", "volume.read", None),
        ("app-2", "ATTESTGATE_VOLUME", "/root", "volume.read", None),
        ("host-1", "ATTESTGATE_VOLUMES", '["/nowhere", "/nowhere"]', "host.volume", "app-2"),
        ("host-1", "ATTESTGATE_MEASUREMENT_LIST", "/nowhere", "host.list", None),
    ],
)
def test_an_agent_that_cannot_go_on_says_why_and_the_rest_goes_on(
    stack: Containers, service: str, variable: str, value: str, code: str, again: str | None
) -> None:
    with stack.instead(service, variable, value) as name:
        if again is not None:
            stack.done("restart", "--timeout", "5", again)
        stack.until(lambda: said(stack, name, code), f"{service} says {code}", within_s=120)
        line = said(stack, name, code)[0]
        assert str(line["found"]) and str(line["action"])
        assert set(stack.health("manager")) == set(stack.health("gateway")) == {"healthy"}
    stack.until_healthy("host-1", *APPS, within_s=180)


def test_an_application_without_its_volume_and_a_silent_host_are_events(stack: Containers) -> None:
    """What the tests before this one did is on the bus."""
    assert stack.last_event("host", "host-1", "key-delivered") is not None
    assert stack.last_event("app", "app-2", "expired") is not None
    assert stack.last_event("host", "host-1", "expired") is not None


def test_of_two_hosts_with_one_id_the_enrolled_one_stays_and_the_other_is_told(stack: Containers) -> None:
    machine = stack.folder / "machine-2"
    platform.create(machine, stack.folder / "simulated" / "authority")
    owner = stack.folder.stat()
    for path in (machine, *machine.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)
    session = stack.last_event("host", "host-1", "trusted")["session"]
    stack.done("up", "-d", "--no-deps", "machine-2")
    stack.until_healthy("machine-2")
    try:
        stack.done("up", "-d", "--no-deps", "host-2")
        (other,) = stack.ids("host-2")
        stack.until(lambda: said(stack, other, "host.platform"), "host-2 is told")
        rejected = stack.last_event("host", "host-1", "evidence-rejected")
        assert [reason["code"] for reason in rejected["data"]["reasons"]] == ["host.platform"]
        assert stack.last_event("host", "host-1", "trusted")["session"] == session
        assert goes_on(stack)
    finally:
        stack.done("rm", "--force", "--stop", "host-2", "machine-2")
