"""A simulated authority and machine for tests, and the recorded real quotes where they are present."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from attestgate.enclave.simulated import authority, platform
from attestgate.enclave.simulated.authority import Authority
from attestgate.enclave.simulated.documents import Documents, PckCa
from attestgate.enclave.simulated.platform import Platform
from attestgate.enclave.simulated.quoting_enclave import EnclaveIdentity
from attestgate.manager.verification.sgx.appraisal import appraise
from attestgate.manager.verification.sgx.collateral import Collateral
from attestgate.manager.verification.sgx.quote import parse
from attestgate.schemas.base import parse_json
from attestgate.schemas.sgx import SgxPolicy, SgxVerdict

NOW = int(time.time()) + 3600
"""Ahead of the clock: what a service issues while the tests run, by the real clock, is valid then."""
REPORT_DATA = bytes(range(64))
ENCLAVE = EnclaveIdentity(mrenclave=b"\x11" * 32, mrsigner=b"\x22" * 32, isv_prod_id=7, isv_svn=3, debug=False)


@dataclass
class Site:
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


def codes(verdict: SgxVerdict) -> list[str]:
    return [reason.code for reason in verdict.reasons]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """For tests that change nothing in it."""
    return Site(tmp_path_factory.mktemp("site"))


@dataclass(frozen=True)
class Vector:
    """A recorded real quote with its collateral, and Intel's root as it stands in it."""

    quote: bytes
    collateral: Collateral
    root_der: bytes


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The folder of recorded SGX evidence: it is not part of this repository."""
    root = os.environ.get("ATTESTGATE_VECTORS")
    if not root or not (Path(root) / "sgx").is_dir():
        pytest.skip("ATTESTGATE_VECTORS names no folder with recorded SGX evidence (sgx/)")
    return Path(root) / "sgx"


def load_vector(folder: Path) -> Vector:
    quote = (folder / "quote.bin").read_bytes()
    collateral = parse_json(Collateral, (folder / "collateral.json").read_text(), source="collateral.json")
    return Vector(quote, collateral, parse(quote).pck.chain[-1].public_bytes(Encoding.DER))
