"""A whole enrolment with `attestation.service = "ias"`: the same sessions, of host and application, over EPID."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from attestgate.enclave.simulated import ias as simulated
from attestgate.enclave.simulated import platform
from attestgate.enclave.simulated.quoting_enclave import EnclaveIdentity
from attestgate.manager.verification.ear import read
from attestgate.schemas.settings import AttestationSettings, IasSettings, ManagerSettings, SuiteSetting, Timing
from attestgate.schemas.sgx import PlatformIdentity
from tests.support.manager.deployment import Deployment
from tests.support.manager.wire import Clock, Wire
from tests.support.manager.world import LISTS, TIMING, Enclave, World

SPID = bytes(range(16))


@dataclass(frozen=True)
class EpidEnclave(Enclave):
    """An enclave whose machine makes EPID quotes."""

    def quote(self, report_data: bytes) -> bytes:
        return simulated.epid_quote(self.machine, self.identity, report_data, SPID)


class IasWorld(World):
    """The world of the session tests, attested by the legacy service."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.ias = folder / "ias"
        simulated.create(self.ias)
        key = folder / "subscription-key"
        key.touch(mode=0o600)
        key.write_text(simulated.read_state(self.ias).subscription_key)

    def ppid(self, machine: str) -> str:
        facts = platform.read_facts(self.folder / machine)
        name = simulated.pseudonym(self.ias, facts.pck.ppid, SPID).encode()
        return PlatformIdentity.salted(self.salt, ppid=name, pck_leaf=b"", attestation_key=b"", qe_id=b"").ppid

    def enclave(self, machine: str, identity: EnclaveIdentity) -> Enclave:
        return EpidEnclave(self.machines[machine], identity)

    def manager_settings(self, state_dir: Path, name: str, timing: Timing, suite: SuiteSetting) -> ManagerSettings:
        settings = super().manager_settings(state_dir, name, timing, suite)
        attestation = AttestationSettings(
            pccs_url="http://pccs",
            root=self.authority / "root.pem",
            allow_simulated=True,
            service="ias",
            ias=IasSettings(
                ias_url="http://ias",
                ias_crt=self.ias / "root.pem",
                spid=SPID.hex(),
                subscription_key=self.folder / "subscription-key",
            ),
        )
        return settings.model_copy(update={"attestation": attestation})


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Deployment]:
    world = IasWorld(tmp_path / "world")
    transport = httpx.ASGITransport(simulated.application(world.ias, world.authority))
    async with httpx.AsyncClient(transport=transport, trust_env=False) as http:
        clock = Clock()
        deployment = Deployment(world, tmp_path / "site", clock, Wire(clock), http, TIMING, "mlkem768-x25519")
        deployment.volume.mkdir(parents=True)
        deployment.measurement_list.write_bytes((LISTS / "clean.bin").read_bytes())
        try:
            await deployment.start(1)
            yield deployment
        finally:
            await deployment.stop()


async def test_host_and_application_are_admitted(site: Deployment) -> None:
    await site.admitted()
    granted = next(event for event in site.events if (event.kind, event.what) == ("host", "granted"))
    keys = json.loads((site.world.keys / "jwks.json").read_text())
    result = read(str(granted.data["ear"]), keys)
    evidence = result.submods["sgx"].evidence
    assert result.subject == "host/h1"
    assert (evidence["quote_status"], evidence["simulated"]) == ("OK", True)


async def test_an_application_on_another_machine_is_refused(site: Deployment) -> None:
    await site.trusted()
    await site.app(machine="machine-b")
    rejected = await site.until("app", "a1", "evidence-rejected")
    result = read(str(rejected.data["ear"]), json.loads((site.world.keys / "jwks.json").read_text()))
    assert result.subject is None
    assert "colocation.ppid" in [reason.code for reason in result.submods["sgx"].reasons]
