"""What must fail, fails, each for its own reason; and the honest ones beside it are not disturbed."""

from __future__ import annotations

import pytest

from attestgate.compose.demo import intruders
from attestgate.compose.local.stack import Stack
from attestgate.schemas.base import Reason
from tests.support.story import APPS, HOST, refusals, scene, session_of, through
from tests.support.threats import rows, threat

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]


def reason_codes(reasons: list[Reason]) -> list[str]:
    """The codes of reasons, in order."""
    return [reason.code for reason in reasons]


@threat(rows.OTHER_CODE)
async def test_an_application_whose_code_was_changed(stack: Stack) -> None:
    before = session_of(stack, "app-1")
    events = await scene(stack, intruders.changed_code)
    reasons = refusals(events, "app", "app-1", "evidence-rejected")
    assert reason_codes(reasons) == ["sgx.mrenclave"]
    assert reasons[0].expected == stack.measurement("app") != reasons[0].found
    assert session_of(stack, "app-1") == before is not None


async def test_a_host_with_an_unknown_program_in_its_list(stack: Stack) -> None:
    reasons = refusals(await scene(stack, intruders.drifted_host), "host", "host-2", "refused")
    assert set(reason_codes(reasons)) == {"ima.unknown", "ima.violation"}
    unknown = next(reason for reason in reasons if reason.code == "ima.unknown")
    assert "/usr/bin/chmod" in unknown.found and "448" in unknown.field


@threat(rows.TWO_MACHINES)
async def test_an_application_on_another_platform_with_a_copy_of_the_volume(stack: Stack) -> None:
    before = session_of(stack, "app-1")
    reasons = refusals(await scene(stack, intruders.other_platform), "app", "app-1", "evidence-rejected")
    assert reason_codes(reasons) == [f"colocation.{part}" for part in ("ppid", "pck_leaf", "attestation_key", "qe_id")]
    assert session_of(stack, "app-1") == before is not None


@threat(rows.SIBLING)
async def test_a_second_instance_that_reads_the_first_ones_key(stack: Stack) -> None:
    events = await scene(stack, intruders.second_instance)
    assert "proven" not in [event.what for event in events if event.subject == "app-3"]
    log = stack.log("thief")
    assert "outer layer: opened" in log and "inner layer: refused: envelope.open" in log


@threat(rows.ID_CLAIMED)
async def test_another_hosts_id_claimed(stack: Stack) -> None:
    reasons = refusals(await scene(stack, intruders.claimed_host), "host", HOST, "evidence-rejected")
    assert reason_codes(reasons) == ["host.platform"]


@threat(rows.PROOF_REPLAYED)
async def test_a_replayed_proof(stack: Stack) -> None:
    events = await scene(stack, intruders.replayed_proof)
    dropped = [e for e in events if (e.subject, e.what) == ("app-4", "dropped")]
    assert [e.data["step"] for e in dropped] == ["colocation_proof"]
    assert reason_codes(refusals(events, "app", "app-4", "dropped")) == ["session.move"]
    assert len([e for e in events if (e.subject, e.what) == ("app-4", "proven")]) == 1


@threat(rows.APP_CLAIMED)
async def test_an_application_that_nobody_enrolled(stack: Stack) -> None:
    volume = stack.plan.folder / "volumes" / "stranger"
    volume.mkdir()
    mark = stack.events.mark
    child = await stack.start_app("stranger", HOST, "machine-a", volume=volume)
    await stack.until("app", "stranger", "dropped", since=mark)
    await child.stop()
    events = [event for event in stack.events.seen[mark:] if event.subject == "stranger"]
    assert {event.what for event in events} == {"dropped"}
    assert reason_codes(refusals(events[:1], "app", "stranger", "dropped")) == ["enrolment.unknown"]


async def test_a_host_whose_list_is_missing_says_so(stack: Stack) -> None:
    missing = stack.plan.folder / "no-such-list"
    child = await stack.start_host("host-2", "machine-b", missing, [])
    line = await stack.children.line(child, "cannot prove", 20.0)
    assert str(missing) in line and "No such file" in line
    assert child.running
    await child.stop()


async def test_the_honest_ones_are_still_there(stack: Stack) -> None:
    await through(stack, *APPS)
    for app in APPS:
        assert 403 not in [line.get("status") for line in stack.status(app)]
