"""`kill -9` of each process in the middle: what must end ends at the lease's end, what should come back comes back."""

from __future__ import annotations

import os
import signal
import time
import tomllib

import pytest

from attestgate.compose.local.stack import Stack
from attestgate.schemas.enrolment import RecheckNow
from tests.support.story import (
    APPS,
    HOST,
    MACHINE,
    enclave_pid,
    host_stands,
    measurement_list,
    out_in_time,
    renewed,
    restart,
    session_of,
    through,
)
from tests.support.threats import rows, threat

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]


@threat(rows.PROCESS_GONE)
async def test_another_manager_worker_takes_over(stack: Stack) -> None:
    await through(stack, *APPS)
    sessions = [session_of(stack, app) for app in APPS]
    table = tomllib.loads(stack.plan.settings("manager").read_text(encoding="utf-8"))
    table |= {"name": "manager-2", "state_dir": str(stack.plan.folder / "state" / "manager-2")}
    stack.plan.write("manager-2", table)
    first = stack.manager
    second = await stack.children.start("manager-2", "manager", "run", "-s", str(stack.plan.settings("manager-2")))
    await stack.children.line(second, '"event": "working"', 60.0)
    killed = time.time()
    await first.kill()
    stack.manager = second
    lapsed = killed + stack.plan.timing.lease_s
    for app in APPS:
        await renewed(stack, app, lapsed)
        assert 403 not in [line.get("status") for line in stack.status(app) if float(str(line["at"])) > killed]
    assert [session_of(stack, app) for app in APPS] == sessions != [None, None]


@threat(rows.PROCESS_GONE)
async def test_nginx_started_again_lets_in_who_was_in(stack: Stack) -> None:
    await through(stack, *APPS)
    sessions = [session_of(stack, app) for app in APPS]
    mark, killed = stack.events.mark, time.time()
    await stack.nginx.kill()
    await stack.nginx.start()
    await through(stack, *APPS, since=killed)
    assert [session_of(stack, app) for app in APPS] == sessions != [None, None]
    assert "challenged" not in [event.what for event in stack.events.seen[mark:] if event.subject in APPS]


async def rechecked(stack: Stack) -> None:
    """Every session has just been asked, and has answered."""
    mark = stack.events.mark
    await stack.order(RecheckNow(kind="host", id=HOST))
    for app in APPS:
        await stack.order(RecheckNow(kind="app", id=app))
    await stack.until("host", HOST, "rechecked", since=mark)
    for app in APPS:
        await stack.until("app", app, "rechecked", since=mark)


async def test_a_gateway_worker_started_again_at_once_disturbs_nobody(stack: Stack) -> None:
    await through(stack, *APPS)
    sessions = [session_of(stack, app) for app in APPS]
    await rechecked(stack)  # whole leases: how long a process takes to be up is the machine's affair, up to their end
    killed = time.time()
    await stack.gateway.kill()
    stack.gateway = await stack.children.start("gateway-2", "gateway", "run", "-s", str(stack.plan.settings("gateway")))
    lapsed = killed + stack.plan.timing.lease_s
    for app in APPS:
        await renewed(stack, app, lapsed)
        assert [line for line in stack.status(app) if float(str(line["at"])) > killed] == []
    assert [session_of(stack, app) for app in APPS] == sessions != [None, None]


@threat(rows.PROCESS_GONE)
async def test_without_a_gateway_worker_access_ends_and_comes_back_with_it(stack: Stack) -> None:
    await through(stack, *APPS)
    killed = time.time()
    await stack.gateway.kill()
    for app in APPS:
        await out_in_time(stack, app, killed)
    back = time.time()
    stack.gateway = await stack.children.start("gateway-3", "gateway", "run", "-s", str(stack.plan.settings("gateway")))
    await through(stack, *APPS, since=back)


@threat(rows.PROCESS_GONE)
async def test_a_killed_application_is_forgotten_and_the_other_goes_on(stack: Stack) -> None:
    await through(stack, *APPS)
    mark, killed = stack.events.mark, time.time()
    launcher = stack.agent("app-2")
    os.kill(enclave_pid(stack, "app-2"), signal.SIGKILL)
    assert await launcher.process.wait() != 0
    expired = await stack.until("app", "app-2", "expired", since=mark, within_s=20)
    timing = stack.plan.timing
    assert expired.at <= killed + timing.lease_s + timing.skew_s
    assert stack.last_status("app-1") == 200
    back = time.time()
    await stack.start_app("app-2", HOST, MACHINE)
    await through(stack, *APPS[1:], since=back)


@threat(rows.HOST_SILENT)
async def test_a_killed_host_agent_takes_its_applications_with_it(stack: Stack) -> None:
    await through(stack, *APPS)
    killed = time.time()
    launcher = stack.agent(HOST)
    os.kill(enclave_pid(stack, HOST), signal.SIGKILL)
    assert await launcher.process.wait() != 0
    for app in APPS:
        await out_in_time(stack, app, killed)
    mark, back = stack.events.mark, time.time()
    await stack.start_host(HOST, MACHINE, measurement_list(stack), list(APPS))
    await stack.until("host", HOST, "trusted", since=mark)
    await restart(stack, *APPS)
    await through(stack, *APPS, since=back)


@threat(rows.WITHDRAWAL_WITHHELD, rows.PROCESS_GONE)
async def test_a_bus_that_is_gone_ends_access_and_all_comes_back_with_it(stack: Stack) -> None:
    await through(stack, *APPS)
    killed = time.time()
    os.kill(stack.server.pid, signal.SIGKILL)
    await stack.server.wait()
    for app in APPS:
        await out_in_time(stack, app, killed)
    mark, back = stack.events.mark, time.time()
    await stack.server.stop()
    await stack.server.start()
    await host_stands(stack, mark, within_s=60)
    await through(stack, *APPS, since=back, within_s=60)
