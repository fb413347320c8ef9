"""The demo: what must work works, what must fail fails, and what drifts is cut off. Every check can fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from attestgate.compose.demo import hostile_bus, intruders
from attestgate.compose.demo.kernel import Kernel, enrolled
from attestgate.compose.demo.narrator import Narrator
from attestgate.compose.demo.software_tpm import SoftwareTpm, missing
from attestgate.compose.local.events import is_event
from attestgate.compose.local.recorded import CLEAN_ENTRIES
from attestgate.compose.local.stack import Stack
from attestgate.schemas.base import Refusal
from attestgate.schemas.enrolment import Revoke
from attestgate.schemas.events import Event, reasons_of

HOST, APPS = "host-1", ("app-1", "app-2")


async def tell_story(folder: Path, say: Callable[[str], None]) -> int:
    """Run the demo in a folder. Exit code: 0 if every check held."""
    narrator = Narrator(say)
    try:
        await _tell(folder, narrator)
    except Refusal as refusal:
        for reason in refusal.reasons:
            narrator.check(reason.sentence(), held=False)
    held = narrator.summary()
    return 0 if held else 1


async def _tell(folder: Path, narrator: Narrator) -> None:
    narrator.scene("The stack starts: every process on loopback, everything under one temporary folder")
    stacked = Stack(folder, tell=narrator.event, say=narrator.line)
    async with booted(folder, narrator) as kernel, stacked as stack:
        if kernel.tpm is not None:
            kernel.tpm_service = await stack.start_tpm(kernel.tpm.tcti)
        await enrol(stack, narrator, kernel)
        await attest_host(stack, narrator, kernel)
        await admit_applications(stack, narrator)
        await intruders.outsiders(stack, narrator)
        await intruders.changed_code(stack, narrator)
        await intruders.drifted_host(stack, narrator)
        await intruders.other_platform(stack, narrator)
        await intruders.second_instance(stack, narrator)
        await intruders.claimed_host(stack, narrator, kernel.tpm_service)
        await intruders.replayed_proof(stack, narrator)
        await revoke_one(stack, narrator)
        await host_drifts(stack, narrator, kernel)
        await explain(stack, narrator)
        await manager_dies(stack, narrator)
    narrator.check("nothing is left running", not stack.children.running())


@asynccontextmanager
async def booted(folder: Path, narrator: Narrator) -> AsyncIterator[Kernel]:
    """The host's kernel, with a software TPM if one is available."""
    measurement_list = folder / "measurement-list"
    if lacking := missing():
        narrator.line(
            f"no TPM: {', '.join(lacking)} not found; `make demo-tpm` installs them, and runs the demo with a TPM"
        )
        kernel = Kernel(measurement_list)
        await kernel.boot()
        yield kernel
        return
    (folder / "tpm").mkdir()
    tpm = await asyncio.to_thread(SoftwareTpm.made, folder / "tpm")
    try:
        kernel = Kernel(measurement_list, tpm)
        await kernel.boot()
        narrator.line("software TPM (swtpm): its PCR 10 holds the recorded list, whose entry 0, boot_aggregate, is")
        narrator.line("recomputed for this TPM's PCR 0-9; everything else on the list is as a real kernel wrote it")
        yield kernel
    finally:
        tpm.stop()


async def enrol(stack: Stack, narrator: Narrator, kernel: Kernel) -> None:
    """The operator enrols host and applications, and puts policies in force."""
    narrator.scene("The operator puts a signed policy in force and enrols host and applications")
    await stack.put_policy(kernel.measurement_list, accept_unanchored=kernel.tpm is None)
    without = "accepted" if kernel.tpm is None else "refused"
    narrator.line(
        f"policy: everything on the recorded list of a known-good host is allowed; a list without a TPM is {without}"
    )
    if kernel.tpm is None:
        await stack.enrol_host(HOST, "machine-a")
    else:
        await stack.enrol_host(HOST, "machine-a", await asyncio.to_thread(enrolled, kernel.tpm))
        narrator.line("host-1's TPM: its EK chains to the vendor's root, and activated a credential for its AK")
    for index, app in enumerate(APPS):
        await stack.enrol_app(app, HOST, index)
    narrator.line(f"host agent MRENCLAVE  {stack.measurement('host')}")
    narrator.line(f"application MRENCLAVE {stack.measurement('app')}")


async def attest_host(stack: Stack, narrator: Narrator, kernel: Kernel) -> None:
    """Steps 1 to 4."""
    narrator.scene("Steps 1-4: the host's enclave is attested, its measurement list appraised, K granted and proven")
    await start_host(stack, kernel)
    granted = await stack.until("host", HOST, "granted")
    trusted = await stack.until("host", HOST, "trusted")
    outcome = trusted.data["outcome"]
    if not isinstance(outcome, dict):
        raise AssertionError("an outcome is an object")
    narrator.check("the host is trusted", trusted.state == "TRUSTED", found=trusted.state)
    narrator.check("its whole list was appraised", granted.data.get("entries") == CLEAN_ENTRIES, found=granted.data)
    if kernel.tpm is None:
        narrator.check("the verdict says that no TPM anchors it", outcome["integrity"] == "unanchored", found=outcome)
    else:
        narrator.check("its TPM anchors it, in a golden boot", outcome["integrity"] == "anchored", found=outcome)
    narrator.check("the verdict says that the platform is simulated", outcome["simulated"] is True, found=outcome)


async def admit_applications(stack: Stack, narrator: Narrator) -> None:
    """Steps 5 to 8."""
    narrator.scene("Steps 5-8: two applications are attested, proven on the same machine, certified, admitted")
    for app in APPS:
        await stack.start_app(app, HOST, "machine-a")
        await stack.until("app", app, "admitted")
    for app in APPS:
        added = await stack.saw(app, "add flow", 201)
        read = await stack.saw(app, "read flows", 200)
        narrator.check(f"{app} changed something at the controller, through nginx", added is not None)
        narrator.check(f"{app} read it back", read is not None)
    identity = f"spiffe://attestgate.test/host/{HOST}/app/{APPS[0]}"
    narrator.check("the controller saw who sent the request", identity in stack.log("controller"))


async def revoke_one(stack: Stack, narrator: Narrator) -> None:
    """An operator revokes one application, and the bus tries to bring it back."""
    narrator.scene("The operator revokes app-1: its open connection gets 403, app-2 goes on")
    admitted = [event for event in stack.events.seen if is_event("app", APPS[0], "admitted")(event)][-1]
    kept = await hostile_bus.keep(stack, admitted)
    mark, ordered = stack.events.mark, time.time()
    await stack.order(Revoke(kind="app", id=APPS[0], reason="demonstration"))
    refused = await stack.saw(APPS[0], "read flows", 403, since=ordered)
    narrator.check("app-1's open connection got 403", refused is not None)
    if refused is not None:
        narrator.figure("revoke ordered -> 403 on the open connection", refused - ordered)
    narrator.check("app-2 was not touched", stack.last_status(APPS[1]) == 200, found=stack.last_status(APPS[1]))
    again = await stack.until("app", APPS[0], "dropped", since=mark)
    narrator.refused("app-1's new hello", reasons_of(again), "enrolment.revoked")
    await hostile_bus.old_record(stack, narrator, kept)
    await hostile_bus.hidden_revocation(stack, narrator, kept)
    passed = await stack.saw(APPS[0], "read flows", 200, since=refused or ordered, within_s=0.1)
    narrator.check("app-1 has not passed once since it was cut off", passed is None, found=passed)
    narrator.scene("The operator enrols app-1 again")
    mark = stack.events.mark
    await stack.enrol_app(APPS[0], HOST, 0)
    await stack.until("app", APPS[0], "admitted", since=mark, within_s=60)
    narrator.check(
        "enrolled again, app-1 is readmitted automatically", await stack.saw(APPS[0], "read flows", 200) is not None
    )


async def start_host(stack: Stack, kernel: Kernel) -> None:
    """Start host-1's agent, with its TPM if there is one."""
    await stack.start_host(HOST, "machine-a", kernel.measurement_list, list(APPS), kernel.tpm_service)


async def host_drifts(stack: Stack, narrator: Narrator, kernel: Kernel) -> None:
    """An unknown program runs on the host; then the host is rebooted."""
    narrator.scene(
        "An unknown program runs on host-1: the next recheck finds it, both applications are cut off at once"
    )
    mark, drifted = stack.events.mark, time.time()
    await kernel.drift()
    untrusted = await stack.until("host", HOST, "untrusted", since=mark)
    narrator.refused("host-1's recheck", reasons_of(untrusted), "ima.")
    verdict = stack.events.heard_at[untrusted.id]
    for app in APPS:
        refused = await stack.saw(app, "read flows", 403, since=drifted)
        narrator.check(f"{app}'s open connection got 403", refused is not None)
        if refused is not None:
            narrator.figure(f"host drifted -> 403 for {app} (rechecks are 2 s apart)", refused - drifted)
            narrator.figure(f"host's verdict published -> 403 for {app}", max(refused - verdict, 0.0))
    narrator.scene("host-1 is rebooted clean: a new session, and its applications follow automatically")
    mark = stack.events.mark
    await stack.agent(HOST).stop()
    await kernel.boot()
    await start_host(stack, kernel)
    await stack.until("host", HOST, "trusted", since=mark)
    for app in APPS:
        await stack.until("app", app, "admitted", since=mark, within_s=60)
        narrator.check(f"{app} is through again", await stack.saw(app, "read flows", 200) is not None)


async def explain(stack: Stack, narrator: Narrator) -> None:
    """What an operator sees afterwards."""
    narrator.scene("attestgate explain, for the session of the host that drifted")
    drifted = [event for event in stack.events.seen if (event.kind, event.what) == ("host", "untrusted")]
    session = drifted[-1].session
    status, output = await stack.command("explain", str(session))
    head, *entries = output.rstrip().split("\n\n")
    told = [entry.splitlines() for entry in entries]
    for line in [*head.splitlines(), *(lines[0] for lines in told if " recheck" not in lines[0])]:
        narrator.line(line)
    end = next((lines for lines in told if " untrusted " in lines[0]), [])
    for line in end[1:]:
        narrator.line(line)
    expected_and_found = any("found" in line for line in end)
    narrator.check("explain shows the session's end", status == 0 and expected_and_found, found=output[-300:])


async def manager_dies(stack: Stack, narrator: Narrator) -> None:
    """Without a manager no lease is renewed."""
    narrator.scene("The manager is killed: no lease is renewed, access expires")
    killed = time.time()
    await stack.manager.kill()
    lease_end = max(_lease_ends(stack.events.seen), default=0)
    for app in APPS:
        refused = await stack.saw(app, "read flows", 403, since=killed, within_s=15)
        in_time = refused is not None and refused <= lease_end + 1
        narrator.check(f"{app} was out by the end of its lease", in_time, found=(refused, lease_end))
        if refused is not None:
            narrator.figure(f"manager killed -> 403 for {app} (leases are 6 s)", refused - killed)


def _lease_ends(events: list[Event]) -> list[int]:
    return [end for event in events if isinstance(end := event.data.get("lease_end"), int)]
