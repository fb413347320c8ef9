"""What every test may share and none changes: keys, CA, two machines under one authority, policies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from attestgate.bus.operator import OperatorKey
from attestgate.compose.local.policies import LearnedPolicies
from attestgate.compose.local.recorded import FOLDER
from attestgate.enclave.api import KeyPolicy
from attestgate.enclave.simulated import authority, platform
from attestgate.enclave.simulated.platform import Platform
from attestgate.enclave.simulated.quoting_enclave import EnclaveIdentity
from attestgate.manager.local.keyfiles import read_identity, read_secret
from attestgate.manager.pki import deployment
from attestgate.manager.records.record_cipher import RecordCipher
from attestgate.manager.records.storage_keys import StorageKeyFile
from attestgate.schemas.base import Secret
from attestgate.schemas.settings import (
    AttestationSettings,
    BusSettings,
    GatewaySet,
    ManagerSettings,
    Measured,
    OperatorSettings,
    SuiteSetting,
    Timing,
)
from attestgate.schemas.sgx import PlatformIdentity
from attestgate.schemas.signing import Signer, TrustedKeys

LISTS = FOLDER
MRSIGNER = b"\x22" * 32
HOST_ENCLAVE = EnclaveIdentity(mrenclave=b"\x11" * 32, mrsigner=MRSIGNER, isv_prod_id=1, isv_svn=1, debug=False)
APP_ENCLAVE = EnclaveIdentity(mrenclave=b"\x33" * 32, mrsigner=MRSIGNER, isv_prod_id=1, isv_svn=1, debug=False)
OTHER_ENCLAVE = EnclaveIdentity(mrenclave=b"\x44" * 32, mrsigner=MRSIGNER, isv_prod_id=1, isv_svn=1, debug=False)
TIMING = Timing(lease_s=30, recheck_s=10, evidence_window_s=10, skew_s=5, certificate_s=3600)
LONG = Timing(lease_s=3600, recheck_s=1800, evidence_window_s=600, skew_s=5, certificate_s=86400)
"""Windows so long that a redelivery after the consumer's 30 s still falls within them."""
GATEWAY, OPERATOR, AUTHOR = "gateway-1", "operator", "policy-author"
TRUST_DOMAIN = "test.example"


@dataclass(frozen=True)
class Enclave:
    """An enclave that runs on a simulated machine: its quotes are what the machine's daemon would make."""

    machine: Platform
    identity: EnclaveIdentity
    simulated: bool = True

    def quote(self, report_data: bytes) -> bytes:
        return self.machine.quote(self.identity, report_data)

    def sealing_key(self, policy: KeyPolicy) -> Secret:
        return self.machine.sealing_key(self.identity, policy)


class World:
    """What every test may share and none changes: keys, CA, two machines under one authority, policies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = folder / "keys"
        deployment.init(self.keys, trust_domain=TRUST_DOMAIN, operator=OPERATOR, policy_author=AUTHOR, gateway=GATEWAY)
        self.authority = folder / "authority"
        authority.create(self.authority)
        self.machines = {}
        for name in ("machine-a", "machine-b"):
            platform.create(folder / name, self.authority)
            self.machines[name] = Platform(folder / name)
        self.policies = LearnedPolicies.learn(LISTS / "clean.bin")
        self.salt = read_secret(self.keys / "manager" / "salt").reveal()
        self.public = json.loads((self.keys / "public.json").read_text())
        self.operator = self._signer(self.keys / "operators" / f"{OPERATOR}.pem")
        self.author = self._signer(self.keys / "policy-authors" / f"{AUTHOR}.pem")
        self.gateway = self._signer(self.keys / "gateways" / f"{GATEWAY}.pem")
        self.manager = self._signer(self.keys / "manager" / "identity.pem")
        self.managers = TrustedKeys(TRUST_DOMAIN, {"manager": {self.manager.public}})
        self.operator_key = OperatorKey(OPERATOR, self.operator, self.managers)
        self.measured = Measured(
            trust_domain=TRUST_DOMAIN,
            manager_identity=[self.public["manager_identity"]],
            suites=["mlkem768-x25519", "x25519"],
            gateway_ca=(self.keys / "manager" / "pki" / "root-ca.pem").read_text(),
            gateway_name="gateway.test",
            program="tests.support.manager.program",
        )
        keys = self.keys / "manager" / "storage-keys.json"
        self.cipher = RecordCipher(StorageKeyFile(keys))

    @staticmethod
    def _signer(path: Path) -> Signer:
        return Signer(TRUST_DOMAIN, read_identity(path))

    def ppid(self, machine: str) -> str:
        """A machine as an operator enrols it."""
        facts = platform.read_facts(self.folder / machine)
        salted = PlatformIdentity.salted(self.salt, ppid=facts.pck.ppid, pck_leaf=b"", attestation_key=b"", qe_id=b"")
        return salted.ppid

    def enclave(self, machine: str, identity: EnclaveIdentity) -> Enclave:
        """An enclave that runs on a machine."""
        return Enclave(self.machines[machine], identity)

    def manager_settings(self, state_dir: Path, name: str, timing: Timing, suite: SuiteSetting) -> ManagerSettings:
        """A worker's settings."""
        keys = self.keys / "manager"
        return ManagerSettings(
            profile="development",
            name=name,
            bus=BusSettings(url="memory", credentials=Path("none")),
            state_dir=state_dir,
            identity=keys / "identity.pem",
            storage_keys=keys / "storage-keys.json",
            salt=keys / "salt",
            pki=keys / "pki",
            pki_passphrase=keys / "pki-passphrase",
            trust_domain=TRUST_DOMAIN,
            operators=[
                OperatorSettings(name=OPERATOR, role="operator", identity=self.public["operators"][OPERATOR]),
                OperatorSettings(name=AUTHOR, role="policy-author", identity=self.public["policy_authors"][AUTHOR]),
            ],
            attestation=AttestationSettings(
                pccs_url="http://pccs", root=self.authority / "root.pem", allow_simulated=True
            ),
            gateways=GatewaySet(name="gateways", address="127.0.0.1:1"),
            timing=timing,
            suite=suite,
        )
