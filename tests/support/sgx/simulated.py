"""A simulated authority with one machine, what it says, and verdicts on what the machine quotes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from attestgate.enclave.simulated import authority, platform
from attestgate.enclave.simulated.authority import Authority
from attestgate.enclave.simulated.documents import Documents, PckCa
from attestgate.enclave.simulated.platform import Platform
from attestgate.enclave.simulated.quoting_enclave import EnclaveIdentity
from attestgate.manager.verification.sgx.appraisal import appraise
from attestgate.manager.verification.sgx.collateral import Collateral
from attestgate.schemas.sgx import SgxPolicy, SgxVerdict

NOW = int(time.time()) + 3600
"""Ahead of the clock: what a service issues while the tests run, by the real clock, is valid then."""
REPORT_DATA = bytes(range(64))
ENCLAVE = EnclaveIdentity(mrenclave=b"\x11" * 32, mrsigner=b"\x22" * 32, isv_prod_id=7, isv_svn=3, debug=False)


@dataclass
class SimulatedSgx:
    """One authority and one machine under it."""

    folder: Path
    ca: PckCa = "platform"
    machine: str = "machine"

    def __post_init__(self) -> None:
        if not (self.folder / "authority").exists():
            authority.create(self.folder / "authority")
        platform.create(self.folder / self.machine, self.folder / "authority", self.ca)

    @property
    def authority(self) -> Authority:
        return Authority(self.folder / "authority")

    def quote(self, enclave: EnclaveIdentity = ENCLAVE, report_data: bytes = REPORT_DATA) -> bytes:
        return Platform(self.folder / self.machine).quote(enclave, report_data)

    def say(self, **changes: object) -> None:
        """Change what the authority says: the TCB info's fields under tcb_info, and so on."""
        documents = authority.read_documents(self.folder / "authority")
        document = documents.model_dump(by_alias=True, exclude_none=True)
        for key, value in changes.items():
            document[key] = {**document[key], **value} if isinstance(value, dict) else value
        authority.write_documents(self.folder / "authority", Documents.model_validate(document, strict=False))

    def collateral(self, at: int = NOW, **instead: object) -> Collateral:
        return collateral_of(self.authority, self.ca, at, **instead)

    def appraise(
        self,
        quote: bytes | None = None,
        collateral: Collateral | None = None,
        *,
        mrenclaves: tuple[str, ...] | None = (ENCLAVE.mrenclave.hex(),),
        report_data: bytes | None = REPORT_DATA,
        at: int = NOW,
        root_der: bytes | None = None,
        policy: Mapping[str, object] | None = None,
    ) -> SgxVerdict:
        return appraise(
            self.quote() if quote is None else quote,
            collateral or self.collateral(),
            SgxPolicy.model_validate({"version": 1, **(policy or {})}),
            policy_hash=None,
            mrenclaves=mrenclaves,
            report_data=report_data,
            root_der=root_der or self.authority.root_der,
            simulated=True,
            salt=b"salt",
            at=at,
        )


def collateral_of(source: Authority, ca: PckCa, at: int = NOW, **instead: object) -> Collateral:
    now = datetime.fromtimestamp(at, UTC)
    tcb_info, qe_identity = source.tcb_info(now), source.qe_identity(now)
    whole: dict[str, object] = {
        "pck_crl_issuer_chain": source.ca_chain(ca).decode(),
        "root_ca_crl": source.root_crl(now),
        "pck_crl": source.pck_crl(ca, now),
        "tcb_info_issuer_chain": source.signing_chain.decode(),
        "tcb_info": tcb_info.body.decode(),
        "tcb_info_signature": tcb_info.signature,
        "qe_identity_issuer_chain": source.signing_chain.decode(),
        "qe_identity": qe_identity.body.decode(),
        "qe_identity_signature": qe_identity.signature,
    }
    return Collateral.model_validate(whole | instead)
