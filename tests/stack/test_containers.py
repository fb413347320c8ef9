"""The stack in containers, for real: `make test-stack`. The whole story inside, checks from outside, parts restarted.

The tests run in their order, on one stack; each leaves it as it found it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from compose.vectors import CLEAN, DRIFT
from tests.stack.containers import ROOT, Containers, base_image, up
from tests.stack.engine import Engine, NoEngine, engine

WANTED = "ATTESTGATE_TEST_STACK"
APPS = ("app-1", "app-2")

pytestmark = pytest.mark.skipif(WANTED not in os.environ, reason="takes minutes and a Docker engine: make test-stack")


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine with a base image, and wheels to build from."""
    if not list((ROOT / "build" / "wheels").glob("attestgate-*.whl")):
        pytest.skip("no wheels in build/: make test-stack makes them")
    try:
        with engine(tmp_path_factory.mktemp("docker")) as found:
            assert found.compose
            if problem := base_image(found):
                pytest.skip(f"no base image: {problem}")
            yield found
    except NoEngine as none:
        pytest.skip(str(none))


@pytest.fixture(scope="module")
def stack(docker: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """The stack; what is left of it at the end is checked."""
    with up(docker, tmp_path_factory.mktemp("run") / "stack", "attestgate-test") as containers:
        yield containers
    assert containers.left() == ""


# The story


def test_both_applications_get_through_to_what_they_may_do(stack: Containers) -> None:
    stack.until_status("app-1", 200)
    stack.until_status("app-2", 200)
    assert [line["status"] for line in stack.seen("app-1") if line["what"] == "add flow"] == [201]


def test_from_outside_nobody_gets_in(stack: Containers) -> None:
    asked = _python(
        stack,
        "import http.client, ssl",
        "context = ssl._create_unverified_context()",
        f"connection = http.client.HTTPSConnection('127.0.0.1', {stack.gateway_port}, context=context)",
        "connection.request('GET', '/switches')",
        "answer = connection.getresponse()",
        "print(answer.status, answer.read())",
    )
    assert asked.stdout == "403 b'refused\\n'\n", asked.stderr


def test_containers_have_no_more_rights_than_they_need(stack: Containers) -> None:
    services = ("nats", "pccs", "machine", "manager", "controller", "nginx", "gateway", "host-1", "app-1", "app-2")
    identifiers = [identifier for service in services for identifier in stack.ids(service)]
    found = json.loads(stack.engine.run("docker", "inspect", *identifiers).stdout)
    assert len(found) == len(services)
    for container in found:
        host = container["HostConfig"]
        name = container["Name"]
        assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and not host["CapAdd"], name
        assert any(option.startswith("no-new-privileges") for option in host["SecurityOpt"]), name
        assert host["Memory"] and host["PidsLimit"] and not host["Privileged"], name
        assert container["Config"]["User"] not in ("", "0", "root"), name
        published = [binding["HostIp"] for ports in (host["PortBindings"] or {}).values() for binding in ports]
        assert set(published) <= {"127.0.0.1"}, name


def test_an_unknown_program_on_the_host_shuts_both_out_until_it_is_rebooted_clean(stack: Containers) -> None:
    measurement_list = stack.folder / "measurement-list"
    grown = DRIFT.read_bytes()
    assert grown.startswith(CLEAN.read_bytes())
    with measurement_list.open("ab") as file:
        file.write(grown[len(CLEAN.read_bytes()) :])
    for app in APPS:
        stack.until_status(app, 403)
    os.truncate(measurement_list, len(CLEAN.read_bytes()))
    stack.done("restart", "host-1")
    stack.until_healthy("host-1", *APPS)
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


@pytest.mark.parametrize("part", ["manager", "gateway", "nginx", "nats", "pccs"])
def test_a_part_that_is_restarted_comes_back_and_so_does_access(stack: Containers, part: str) -> None:
    stack.done("restart", "--timeout", "5", part)
    stack.until_healthy(part, "manager", "gateway", "host-1", "app-1")
    stack.until_status("app-1", 200)


# What is wrong is said in one line of the right container's log


@pytest.mark.parametrize(
    ("service", "variable", "value", "said"),
    [
        ("manager", "ATTESTGATE_IDENTITY", "/run/secrets/none", "/run/secrets/none"),
        ("manager", "ATTESTGATE_TIMING__LEASE_S", "1", "timing.lease_s"),
        ("gateway", "ATTESTGATE_RECONCILE_S", "often", "reconcile_s"),
        ("gateway", "ATTESTGATE_METRICS", "127.0.0.1:99999", "metrics"),
    ],
)
def test_a_wrong_setting_is_one_line(stack: Containers, service: str, variable: str, value: str, said: str) -> None:
    environment = ("-e", f"{variable}={value}")
    ran = stack.compose("run", "--rm", "-T", "--no-deps", *environment, service, timeout_s=60)
    lines = [line for line in (ran.stdout + ran.stderr).splitlines() if line.startswith("attestgate: ")]
    assert ran.returncode != 0
    assert len(lines) == 1 and said in lines[0], ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("service", "variable", "value", "code", "again"),
    [
        ("app-2", "ATTESTGATE_VOLUME", "/volumes/none", "volume.read", None),
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

        def said() -> list[dict[str, object]]:
            ran = stack.engine.run("docker", "logs", name)
            lines = (json.loads(line) for line in (ran.stdout + ran.stderr).splitlines())
            return [line for line in lines if line.get("code") == code]

        stack.until(said, f"{service} says {code}", within_s=120)
        assert str(said()[0]["found"]) and str(said()[0]["action"])
        assert set(stack.health("manager")) == set(stack.health("gateway")) == {"healthy"}
    stack.until_healthy("host-1", *APPS, within_s=180)


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


def _nats(stack: Containers, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The stock command, by the viewer's context that `keys init` wrote."""
    server = f"nats://127.0.0.1:{stack.nats_port}"
    viewer = str(stack.folder / "keys" / "viewer")
    ran = stack.engine.reach(
        "nats", "--server", server, *arguments, timeout_s=60, XDG_CONFIG_HOME=viewer, NATS_CONTEXT="attestgate"
    )
    assert ran.returncode == 0, ran.stderr
    return ran


def _python(stack: Containers, *lines: str) -> subprocess.CompletedProcess[str]:
    return stack.engine.reach(sys.executable, "-c", "\n".join(lines), timeout_s=60)
