"""What must work, works: the host trusted, the applications through the gateway, known by their own names."""

from __future__ import annotations

import pytest

from attestgate.compose.local.events import is_event
from attestgate.compose.local.recorded import CLEAN_ENTRIES
from attestgate.compose.local.stack import Stack
from attestgate.schemas.events import Event
from tests.support.story import APPS, HOST, through

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="session")]

HOST_PATH = ["challenged", "granted", "trusted"]
APP_PATH = ["challenged", "waiting-for-key", "granted", "proven", "certified", "admitted"]


async def test_the_host_took_every_step_once(stack: Stack) -> None:
    first = await stack.until("host", HOST, "trusted")
    steps = [e.what for e in stack.events.seen if e.session == first.session and e.what in HOST_PATH]
    assert steps == HOST_PATH
    moves = [(e.before, e.state) for e in stack.events.seen if e.session == first.session and e.what in HOST_PATH]
    assert moves == [("NEW", "CHALLENGED"), ("CHALLENGED", "GRANTED"), ("GRANTED", "TRUSTED")]


async def test_its_list_was_judged_whole(stack: Stack) -> None:
    granted = await stack.until("host", HOST, "granted")
    assert (granted.data["entries"], granted.data["unknown"]) == (CLEAN_ENTRIES, [])


async def test_its_verdict_hides_nothing(stack: Stack) -> None:
    trusted = await stack.until("host", HOST, "trusted")
    outcome = trusted.data["outcome"]
    assert isinstance(outcome, dict)
    assert outcome["simulated"] is True
    assert outcome["integrity"] == "unanchored"
    assert outcome["mrenclave"] == stack.measurement("host")
    assert outcome["tcb_status"] == "UpToDate"


@pytest.mark.parametrize("app", APPS)
async def test_each_application_took_every_step_once(stack: Stack, app: str) -> None:
    first = await stack.until("app", app, "admitted")
    steps = [e.what for e in stack.events.seen if e.session == first.session and e.what in APP_PATH]
    assert steps == APP_PATH


@pytest.mark.parametrize("app", APPS)
async def test_each_application_changed_the_controller_and_read_it_back(stack: Stack, app: str) -> None:
    await through(stack, app)
    added = next(line for line in stack.status(app) if line["what"] == "add flow")
    read = next(line for line in stack.status(app) if line["what"] == "read flows")
    assert (added["status"], read["status"]) == (201, 200)
    assert str(added["answer"]).rstrip("}") in str(read["answer"])


@pytest.mark.parametrize("app", APPS)
async def test_the_controller_was_told_who_came(stack: Stack, app: str) -> None:
    await through(stack, app)
    identity = f"spiffe://attestgate.test/host/{HOST}/app/{app}"
    assert f'"identity": "{identity}", "method": "POST"' in stack.log("controller")


async def test_leases_are_renewed_while_all_is_well(stack: Stack) -> None:
    first = await stack.until("app", APPS[0], "rechecked")
    rechecked = is_event("app", APPS[0], "rechecked")
    before = int(str(first.data["lease_end"]))

    def longer(event: Event) -> bool:  # an application's lease does not outlive its host's, which may come in between
        return rechecked(event) and int(str(event.data["lease_end"])) > before

    second = await stack.events.wait("a later lease", longer, since=stack.events.seen.index(first) + 1)
    assert first.session == second.session
