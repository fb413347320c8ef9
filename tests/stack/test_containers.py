"""The stack in containers, for real: the whole story inside, checks from outside, parts restarted."""

from __future__ import annotations

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from attestgate.bus.server.firewall import TABLE
from attestgate.compose.images.prepare import APPS
from attestgate.compose.local.recorded import CLEAN, DRIFT
from tests.stack.containers import Containers, up
from tests.stack.engine import Engine

# The story


def test_both_applications_get_through_to_what_they_may_do(stack: Containers) -> None:
    stack.until_status("app-1", 200)
    stack.until_status("app-2", 200)
    assert 201 in [line["status"] for line in stack.seen("app-1") if line["what"] == "add flow"]
    assert {line["what"] for line in stack.seen("app-2")} == {"read switches"}


def test_the_applications_flow_is_in_the_switch_and_nothing_else(stack: Containers) -> None:
    (flow,) = stack.flows()
    assert "priority=100,in_port=1 actions=output:2" in flow
    trace = ("ovs-appctl", "-t", "/run/openvswitch/v.ctl", "ofproto/trace", "br0")
    assert "Datapath actions: 2" in stack.done("exec", "-T", "switch", *trace, "in_port=1")
    assert "Datapath actions: drop" in stack.done("exec", "-T", "switch", *trace, "in_port=2")


def test_from_outside_nobody_gets_in(stack: Containers) -> None:
    lines = (
        "import http.client, ssl",
        "context = ssl._create_unverified_context()",
        f"connection = http.client.HTTPSConnection('127.0.0.1', {stack.gateway_port}, context=context)",
        "connection.request('GET', '/switches')",
        "answer = connection.getresponse()",
        "print(answer.status, answer.read())",
    )
    asked = stack.python("\n".join(lines))
    assert asked.stdout == "403 b'refused\\n'\n", asked.stderr


def test_containers_have_no_more_rights_than_they_need(stack: Containers) -> None:
    around = ("nats", "pccs", "controller", "switch", "nginx", "prometheus")
    services = (*around, "manager", "gateway", "machine", "host-1", "app-1", "app-2")
    identifiers = [identifier for service in services for identifier in stack.ids(service)]
    found = json.loads(stack.engine.run("docker", "inspect", *identifiers).stdout)
    assert len(found) == len(services)
    for container in found:
        host = container["HostConfig"]
        name = container["Name"]
        begins_as_root = container["Config"]["Image"] == "attestgate/nats:local"
        assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"], name
        assert bool(host["CapAdd"]) == begins_as_root, name
        assert any(option.startswith("no-new-privileges") for option in host["SecurityOpt"]), name
        assert host["Memory"] and host["PidsLimit"] and not host["Privileged"], name
        assert (container["Config"]["User"] in ("", "0", "0:0", "root")) == begins_as_root, name
        published = [binding["HostIp"] for ports in (host["PortBindings"] or {}).values() for binding in ports]
        assert set(published) <= {"127.0.0.1"}, name


def test_nats_server_is_behind_the_kernels_limits_and_has_no_rights_itself(stack: Containers) -> None:
    status = stack.done("exec", "-T", "nats", "sh", "-c", "cat /proc/$(pidof nats-server)/status")
    said = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert "0" not in said["Uid"].split() and "0" not in said["Gid"].split()
    assert said["Groups"].strip() == ""
    assert {said[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert said["NoNewPrivs"] == "1"
    counted = stack.done("exec", "-T", "nats", "/usr/sbin/nft", "list", "set", "inet", TABLE, "sent4")
    addresses = {service: _addresses(stack, service) for service in ("machine", "gateway", "manager")}
    assert all(addresses.values())
    for service, own in addresses.items():
        assert any(f"{address} " in counted for address in own) == (service != "manager"), service


def test_an_unknown_program_on_the_host_shuts_both_out_until_it_is_rebooted_clean(stack: Containers) -> None:
    assert DRIFT.read_bytes().startswith(CLEAN.read_bytes())
    stack.drift()
    for app in APPS:
        stack.until_status(app, 403)
    stack.until(
        lambda: [line.get("status") for line in stack.seen("app-1")][-2:] == [403, 403], "app-1 tries to add a flow"
    )
    assert len(stack.flows()) == 1
    stack.reboot_clean()
    for app in APPS:
        stack.until_status(app, 200)


def test_a_revoked_application_is_out_and_the_other_goes_on(stack: Containers) -> None:
    revoked = stack.attestgate("revoke", "app", "app-2", "--reason", "just trying")
    assert revoked.returncode == 0, revoked.stdout + revoked.stderr
    stack.until_status("app-2", 403)
    assert stack.last_status("app-1") == 200
    stack.done("run", "--rm", "-T", "--no-deps", "enrol")
    stack.until_status("app-2", 200, within_s=120)


# From outside, with the stock command


def test_the_nats_command_sees_every_session(stack: Containers) -> None:
    if shutil.which("nats") is None:
        pytest.skip("no nats command: go install github.com/nats-io/natscli/nats@latest")
    listed = _nats(stack, "stream", "info", "ATTEST_EVENTS", "--json")
    assert json.loads(listed.stdout)["state"]["messages"] > 10, listed.stderr
    heard = _nats(stack, "sub", "attest.v1.events.>", "--count", "1", "--raw")
    assert json.loads(heard.stdout)["kind"] in ("host", "app", "gateway", "manager", "op")


def test_every_container_logs_json_with_the_session_on_each_line(stack: Containers) -> None:
    for service in ("host-1", "app-1"):
        [identifier] = stack.ids(service)
        ran = stack.engine.run("docker", "logs", "--tail", "20", identifier)
        lines = [json.loads(line) for line in (ran.stdout + ran.stderr).splitlines()]
        rechecked = [line for line in lines if line["event"] in ("rechecked", "accepted", "lease renewed")]
        assert rechecked and all(len(line["session"]) == 32 for line in rechecked), service


# Parts that come and go


def test_managers_are_scaled_to_three_and_back_while_applications_enrol(stack: Containers) -> None:
    with ThreadPoolExecutor(1) as pool:
        scaled = pool.submit(stack.scale, "manager", 3)
        stack.done("restart", "app-1")
        scaled.result()
    assert len(stack.ids("manager")) == 3
    stack.until_healthy("manager", "app-1")
    with ThreadPoolExecutor(1) as pool:
        scaled = pool.submit(stack.scale, "manager", 1)
        stack.done("restart", "app-1")
        scaled.result()
    assert len(stack.ids("manager")) == 1
    stack.until_healthy("manager", "app-1")
    stack.until_status("app-1", 200)


@pytest.mark.parametrize("part", ["manager", "gateway", "nginx", "nats", "pccs", "controller", "switch"])
def test_a_part_that_is_restarted_comes_back_and_so_does_access(stack: Containers, part: str) -> None:
    stack.done("restart", "--timeout", "5", part)
    stack.until_healthy(part, "manager", "gateway", "host-1", "app-1")
    stack.until_status("app-1", 200)


# Three servers as one bus


def test_a_cluster_loses_any_one_server_and_access_goes_on(
    docker: Engine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cluster") / "stack"
    with up(docker, folder, "attestgate-three", ("compose.cluster.yaml",)) as containers:
        for node in ("nats", "nats-2", "nats-3"):
            containers.until_status("app-1", 200)
            containers.done("kill", node)
            containers.done("restart", "--timeout", "5", "app-2")
            containers.until_healthy("app-1", "app-2", within_s=180)
            containers.until_status("app-1", 200)
            containers.done("start", node)
            containers.until_healthy(node)
    assert containers.left() == ""


def _addresses(stack: Containers, service: str) -> list[str]:
    """The addresses of a service's one container."""
    (found,) = json.loads(stack.engine.run("docker", "inspect", *stack.ids(service)).stdout)
    return [network["IPAddress"] for network in found["NetworkSettings"]["Networks"].values()]


def _nats(stack: Containers, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The stock command, by the viewer's context that `keys init` wrote."""
    server = f"nats://127.0.0.1:{stack.nats_port}"
    viewer = str(stack.folder / "keys" / "viewer")
    ran = stack.engine.reach(
        "nats", "--server", server, *arguments, timeout_s=60, XDG_CONFIG_HOME=viewer, NATS_CONTEXT="attestgate"
    )
    assert ran.returncode == 0, ran.stderr
    return ran
