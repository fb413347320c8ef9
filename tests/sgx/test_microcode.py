"""A microcode update changes a machine's sealing keys: what was sealed before is refused, and K is delivered anew."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from attestgate.bus.crypto import envelope
from attestgate.enclave.sealing import unseal
from attestgate.enclave.simulated import platform
from attestgate.enclave.simulated.authority import CPUSVN
from attestgate.enclave.simulated.platform import Platform
from attestgate.host_agent.step6_deliver import PURPOSE, deliver, volume_file
from attestgate.manager.verification.ear import look
from attestgate.schemas.base import Refusal, Secret
from attestgate.schemas.messages import DeliverKey
from tests.support.manager.deployment import Deployment, deployed
from tests.support.manager.world import APP_ENCLAVE, HOST_ENCLAVE, Enclave, World
from tests.support.reasons import refusal_code

NEWER = bytes((CPUSVN[0] + 1, *CPUSVN[1:]))


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(World(tmp_path / "world"), tmp_path / "site") as deployment:
        yield deployment


def update(world: World) -> None:
    """Newer microcode on machine-a, and its reboot: agents that start now run on it."""
    platform.set_tcb(world.folder / "machine-a", world.authority, NEWER)
    world.machines["machine-a"] = Platform(world.folder / "machine-a")


def sealed(enclave: Enclave, k: Secret, volume: Path, session: str) -> bytes:
    _, public = envelope.generate("x25519")
    order = DeliverKey(app="a1", app_session=session, enclave_key=public, suite="x25519", t2=bytes(64), volume=0)
    assert deliver(enclave, k, [volume], order).problem is None
    return volume_file(volume, session).read_bytes()


def test_what_was_sealed_before_is_refused(tmp_path: Path) -> None:
    world, k, volume = World(tmp_path / "world"), Secret(bytes(32)), tmp_path / "volume"
    volume.mkdir()
    before = sealed(world.enclave("machine-a", HOST_ENCLAVE), k, volume, "00" * 16)
    assert unseal(world.enclave("machine-a", APP_ENCLAVE), "mrsigner", PURPOSE, before)
    update(world)
    app = world.enclave("machine-a", APP_ENCLAVE)
    with pytest.raises(Refusal) as caught:
        unseal(app, "mrsigner", PURPOSE, before)
    assert refusal_code(caught) == "seal.open"
    assert "provision it again" in caught.value.reasons[0].action
    anew = sealed(world.enclave("machine-a", HOST_ENCLAVE), k, volume, "11" * 16)
    assert unseal(app, "mrsigner", PURPOSE, anew)


async def test_a_new_session_delivers_anew(site: Deployment) -> None:
    host, app = await site.admitted()
    await app.stop()
    await host.stop()
    seen = len(site.events)
    update(site.world)
    site.clock.at += 2  # a hello a second
    await site.host()
    trusted = await site.until("host", "h1", "trusted", since=seen)
    await site.app()
    delivered = await site.until("host", "h1", "key-delivered", since=seen)
    admitted = await site.until("app", "a1", "admitted", since=seen)
    assert delivered.data["problem"] is None
    assert (delivered.session, admitted.state) == (trusted.session, "ADMITTED")
    results = [look(str(event.data["ear"])) for event in site.events if event.what == "granted" and "ear" in event.data]
    platforms = [result.submods["sgx"].evidence["platform"] for result in results]
    assert len(platforms) == 2
    assert platforms[0]["ppid"] == platforms[1]["ppid"]
    assert platforms[0]["pck_leaf"] != platforms[1]["pck_leaf"]


async def test_an_enclave_left_from_before_the_update_is_not_co_located(site: Deployment) -> None:
    """The host was attested after the update, the application's quote still names the certificate from before it."""
    before = site.world.machines["machine-a"]
    await site.enrol_host()
    await site.enrol_app()
    update(site.world)
    await site.host()
    await site.until("host", "h1", "trusted")
    site.world.machines["machine-a"] = before
    await site.app()
    rejected = await site.until("app", "a1", "evidence-rejected")
    (sgx,) = look(str(rejected.data["ear"])).submods.values()
    assert [reason.code for reason in sgx.reasons] == ["colocation.pck_leaf"]
