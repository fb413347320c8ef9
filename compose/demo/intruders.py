"""The demo's adversaries: each tries one thing, and must be refused for the right reason."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import time
from pathlib import Path

import httpx

from attestgate.app_agent.step5_evidence import TlsKey
from attestgate.app_agent.step7_certificate import ssl_context
from attestgate.app_agent.step8_open import client
from attestgate.bus import subjects
from attestgate.bus.client.nats import connect
from attestgate.compose.demo.narrator import Narrator
from attestgate.compose.demo.wiretap import Wiretap
from attestgate.compose.local.recorded import CLEAN, DRIFT
from attestgate.compose.local.stack import Stack
from attestgate.enclave.simulated.measure import CODE_ROOT
from attestgate.manager.pki.authority import create_ca, load_authority
from attestgate.manager.pki.issue import issue
from attestgate.schemas.base import Secret
from attestgate.schemas.events import reasons_of
from attestgate.schemas.settings import Measured, load_measured

PACKAGES = ("schemas", "bus", "enclave", "app_agent")


async def outsiders(stack: Stack, narrator: Narrator) -> None:
    """A client without a certificate, and one with a certificate from another CA."""
    narrator.scene("At the gateway: without a certificate, and with one from another CA")
    measured = load_measured(stack.plan.settings("app.measured"))
    nothing = ssl.create_default_context(cadata=measured.gateway_ca)
    status = await _knock(stack, measured, nothing)
    narrator.check("without a certificate: refused", status in (400, 403), found=status)
    foreign = await asyncio.to_thread(_foreign_context, stack.plan.folder / "foreign", measured)
    status = await _knock(stack, measured, foreign)
    narrator.check("with a certificate from another CA: refused", status in (400, 403), found=status)


async def changed_code(stack: Stack, narrator: Narrator) -> None:
    """Valid credentials, changed code."""
    narrator.scene("An application whose code was changed, with app-1's own credentials")
    code = stack.plan.folder / "changed"
    program = await asyncio.to_thread(copy_code, code) / "app_agent" / "examples" / "flows.py"
    program.write_text(
        program.read_text(encoding="utf-8").replace('"priority": 100', '"priority": 1'), encoding="utf-8"
    )
    mark = stack.events.mark
    child = await stack.start_app("app-1", "host-1", "machine-a", volume=_empty(stack, "changed-code"), code=code)
    rejected = await stack.until("app", "app-1", "evidence-rejected", since=mark)
    narrator.refused("the changed application", reasons_of(rejected), "sgx.mrenclave")
    await child.stop()
    await _stands(stack, narrator, "app", "app-1")


async def drifted_host(stack: Stack, narrator: Narrator) -> None:
    """A genuine enclave on a host that ran something unknown."""
    narrator.scene("A host with an unknown program in its measurement list")
    await stack.enrol_host("host-2", "machine-b")
    drifted = stack.plan.folder / "drifted-list"
    shutil.copy(DRIFT, drifted)
    child = await stack.start_host("host-2", "machine-b", drifted, [])
    refused = await stack.until("host", "host-2", "refused")
    narrator.refused("host-2", reasons_of(refused), "ima.")
    await child.stop()


async def other_platform(stack: Stack, narrator: Narrator) -> None:
    """The right code on the wrong machine, with a copy of the data volume."""
    narrator.scene("The application on another machine, with a copy of the volume")
    copied = stack.plan.folder / "volumes" / "app-1-copied"
    shutil.copytree(stack.plan.volume("app-1"), copied)
    mark = stack.events.mark
    child = await stack.start_app("app-1", "host-1", "machine-b", volume=copied)
    rejected = await stack.until("app", "app-1", "evidence-rejected", since=mark)
    narrator.refused("the application on machine-b", reasons_of(rejected), "colocation.")
    await child.stop()
    await _stands(stack, narrator, "app", "app-1")


async def second_instance(stack: Stack, narrator: Narrator) -> None:
    """A key for one instance, read by another of the same code, signer and machine."""
    narrator.scene("A second instance of the application reads the first one's key")
    await stack.enrol_app("app-3", "host-1", 0)
    mark = stack.events.mark
    first = await stack.start_app("app-3", "host-1", "machine-a", volume=_empty(stack, "not-mounted"))
    delivered = await stack.until("host", "host-1", "key-delivered", since=mark)
    narrator.line("the first instance has no volume mounted; its key stays behind in the host's volume")
    await stack.children.line(first, "volume.read", 20.0)
    narrator.check("without its volume it says what is missing", "mount the same data volume" in stack.log(first.name))
    await first.stop()
    key = stack.plan.volume("app-1") / f"{delivered.data['app_session']}.key"
    narrator.check("the key left behind is there", key.is_file())
    second = await stack.start_thief("machine-a", key)
    await stack.children.line(second, "inner layer", 20.0)
    said = stack.log(second.name)
    narrator.check(
        "the same signer on the same machine opens the outer layer", "outer layer: opened" in said, found=said
    )
    narrator.check("the inner layer does not open: refused", "inner layer: refused: envelope.open" in said, found=said)
    await second.stop()


async def claimed_host(stack: Stack, narrator: Narrator, tpm: str = "") -> None:
    """Stolen credentials of host-1, used on another machine; `tpm` is the address of host-1's own TPM service."""
    narrator.scene("Another machine claims host-1's id, with host-1's stolen credentials")
    if tpm:
        narrator.line("even quotes of host-1's own TPM are relayed to it")
    listed = stack.plan.folder / "claimed-list"
    shutil.copy(CLEAN, listed)
    mark = stack.events.mark
    child = await stack.start_host("host-1", "machine-b", listed, [], tpm)
    rejected = await stack.until("host", "host-1", "evidence-rejected", since=mark)
    narrator.refused("machine-b as host-1", reasons_of(rejected), "host.platform")
    await child.stop()
    await _stands(stack, narrator, "host", "host-1")


async def replayed_proof(stack: Stack, narrator: Narrator) -> None:
    """A proof recorded on the wire and replayed with the application's stolen credentials."""
    narrator.scene("A co-location proof recorded off the wire is replayed, with the application's stolen credentials")
    await stack.enrol_app("app-4", "host-1", 1)
    name = subjects.app_name("host-1", "app-4")
    async with Wiretap(stack.server.url) as tap:
        mark = stack.events.mark
        child = await stack.start_app("app-4", "host-1", "machine-a", volume=stack.plan.volume("app-2"), bus=tap.url)
        await stack.until("app", "app-4", "admitted", since=mark)
        await child.stop()
        subject = subjects.inbound("app", name, "colocation_proof")
        recorded = tap.published(subject)
    narrator.check("the proof was recorded", len(recorded) == 1, found=len(recorded))
    mark = stack.events.mark
    thief = await connect([stack.server.url], stack.plan.credentials("app", name))
    try:
        for proof in recorded:
            await thief.publish(subject, proof)
    finally:
        await thief.close()
    dropped = await stack.until("app", "app-4", "dropped", since=mark)
    narrator.refused("the replayed proof", reasons_of(dropped), "session.move")


async def _stands(stack: Stack, narrator: Narrator, kind: str, id: str) -> None:
    """The genuine agent's session goes on: its next recheck passes."""
    await stack.until(kind, id, "rechecked", since=stack.events.mark)
    narrator.check(f"the honest {id} was not disturbed", True)


async def _knock(stack: Stack, measured: Measured, context: ssl.SSLContext) -> int:
    """The gateway's status code; 0 if there is no HTTP answer."""
    config = stack.nginx.config
    async with client(lambda: context, f"{config.address}:{config.port}", measured) as http:
        try:
            return (await http.get("/switches")).status_code
        except httpx.HTTPError:
            return 0


def _foreign_context(folder: Path, measured: Measured) -> ssl.SSLContext:
    passphrase, now = Secret(b"of no value"), int(time.time())
    create_ca(folder, "attestgate.test", passphrase, now)
    key = TlsKey.generate()
    issued = issue(
        load_authority(folder, passphrase), key.request(), host="host-1", app="app-1", lifetime_s=600, at=now
    )
    return ssl_context(key, issued.chain, measured.gateway_ca)


def copy_code(folder: Path) -> Path:
    """A code root of an application's own, to be changed: the copy's package `attestgate`."""
    own = folder / "attestgate"
    for package in PACKAGES:
        shutil.copytree(CODE_ROOT / "attestgate" / package, own / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CODE_ROOT / "attestgate" / "__init__.py", own)
    return own


def _empty(stack: Stack, name: str) -> Path:
    folder = stack.plan.folder / "volumes" / name
    folder.mkdir()
    return folder
