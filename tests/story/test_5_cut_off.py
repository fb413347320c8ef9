"""Who is no longer trusted is out: revoked by an operator, on a host that drifted, or when nobody renews his lease."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from attestgate.compose.local.events import is_event
from attestgate.compose.local.recorded import CLEAN, DRIFT
from attestgate.compose.local.stack import Stack
from attestgate.schemas.events import Event, reasons_of
from tests.support.story import (
    APPS,
    HOST,
    MACHINE,
    REVOKED,
    host_stands,
    measurement_list,
    operator_file,
    out_in_time,
    replace_list,
    restart,
    through,
)
from tests.support.threats import rows, threat

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]


@threat(rows.REVOCATION_HIDDEN)
async def test_a_revoked_application_is_out_and_stays_out(stack: Stack) -> None:
    await through(stack, *APPS)
    mark, ordered = stack.events.mark, time.time()
    status, output = await stack.command("revoke", "app", "app-1", "--reason", "left the project")
    assert status == 0 and re.fullmatch(REVOKED, output), output
    assert await stack.saw("app-1", "read flows", 403, since=ordered) is not None
    revoked = await stack.until("app", "app-1", "revoked", since=mark)
    assert (revoked.state, [reason.code for reason in reasons_of(revoked)]) == ("REVOKED", ["operator.revoked"])
    assert "left the project" in reasons_of(revoked)[0].found
    await stack.events.wait("app-1 refused as revoked", _refused_as_revoked, since=mark)
    dropped = filter(is_event("app", "app-1", "dropped"), stack.events.seen[mark:])
    codes = {reasons_of(event)[0].code for event in dropped}
    assert codes <= {"session.move", "enrolment.revoked"}, "an answer on its way when the session ended, or a new hello"
    assert stack.last_status("app-2") == 200
    mark = stack.events.mark
    await stack.enrol_app("app-1", HOST, 0)
    await stack.until("app", "app-1", "admitted", since=mark, within_s=60)
    await through(stack, *APPS)


def _refused_as_revoked(event: Event) -> bool:
    return is_event("app", "app-1", "dropped")(event) and reasons_of(event)[0].code == "enrolment.revoked"


@threat(rows.REVOCATION_HIDDEN)
async def test_a_revocation_that_a_gateway_does_not_confirm_says_so_and_what_to_do(
    stack: Stack, tmp_path: Path
) -> None:
    await stack.enrol_app("app-9", HOST, 1)
    there = {"id": "gateway-1", "identity": stack.plan.public()["gateways"]["gateway-1"]}
    asks = operator_file(stack, tmp_path, gateways=[there, {"id": "gateway-9", "identity": "ab" * 32}])
    status, output = await stack.command("revoke", "app", "app-9", "--reason", "not needed", operator=asks)
    confirmed, said = output.split("gateway-9: no confirmation in 5 s\n")
    assert status == 1
    assert re.fullmatch(REVOKED, confirmed), output
    assert said.startswith("attestgate: revoke.unconfirmed: gateway-9: ") and said.count("\n") == 1
    assert "attestgate gateway block app app-9" in said


async def test_a_revocation_that_no_gateway_is_asked_about_says_so(stack: Stack, tmp_path: Path) -> None:
    await stack.enrol_app("app-9", HOST, 1)
    asks = operator_file(stack, tmp_path, gateways=[])
    status, output = await stack.command("revoke", "app", "app-9", "--reason", "not needed", operator=asks)
    assert status == 0 and output.startswith("revoke: applied\nattestgate: nobody confirms that access has ended: ")


@threat(rows.LIST_DRIFTED)
async def test_a_drifted_host_takes_all_its_applications_with_it(stack: Stack) -> None:
    await through(stack, *APPS)
    mark, drifted = stack.events.mark, time.time()
    replace_list(stack, DRIFT)
    untrusted = await stack.until("host", HOST, "untrusted", since=mark)
    assert {reason.code for reason in reasons_of(untrusted)} == {"ima.unknown", "ima.violation"}
    for app in APPS:
        assert await stack.saw(app, "read flows", 403, since=drifted) is not None
        ended = await stack.until("app", app, "untrusted", since=mark)
        assert [reason.code for reason in reasons_of(ended)][:1] == [reasons_of(untrusted)[0].code]
    status, output = await stack.command("explain", str(untrusted.session))
    assert status == 0
    assert "RECHECKING -> UNTRUSTED" in output and "/usr/bin/chmod" in output

    mark = stack.events.mark
    await stack.agent(HOST).stop()
    replace_list(stack, CLEAN)
    await stack.start_host(HOST, MACHINE, measurement_list(stack), list(APPS))
    await stack.until("host", HOST, "trusted", since=mark)
    await restart(stack, *APPS)
    await through(stack, *APPS)


@threat(rows.PROCESS_GONE)
async def test_without_a_manager_access_ends_and_with_the_next_one_it_comes_back(stack: Stack, tmp_path: Path) -> None:
    await through(stack, *APPS)
    killed = time.time()
    await stack.manager.kill()
    impatient = operator_file(stack, tmp_path, answer_s=1)
    status, output = await stack.command("recheck", "app", "app-1", operator=impatient)
    assert status == 1
    assert output.startswith("attestgate: command.unanswered: recheck:") and output.count("\n") == 1
    for app in APPS:
        await out_in_time(stack, app, killed)
    mark, started = stack.events.mark, time.time()
    await stack.start_manager("manager-after")
    await host_stands(stack, mark)
    await restart(stack, *APPS)
    await through(stack, *APPS, since=started)
