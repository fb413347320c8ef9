"""Step 2: the attestation service is contacted, for each attestation, and its answer appraised.

Two services, one face: DCAP (collateral from a PCCS or Intel's PCS), and the legacy IAS for EPID quotes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from attestgate.manager.attestation.collateral_client import CollateralClient
from attestgate.manager.attestation.ias_client import Ias
from attestgate.manager.verification.epid import structure
from attestgate.manager.verification.epid.report import appraise_report
from attestgate.manager.verification.sgx.appraisal import appraise
from attestgate.schemas.base import Refusal
from attestgate.schemas.sgx import IasVerdict, SgxPolicy, SgxVerdict


@dataclass(frozen=True)
class Root:
    """The root that evidence must chain to, in DER; `simulated` unless it is Intel's."""

    der: bytes
    simulated: bool


@dataclass(frozen=True)
class Wanted:
    """What a quote is judged by."""

    policy: SgxPolicy
    policy_hash: str
    mrenclaves: Sequence[str]
    report_data: bytes


class AttestationService(Protocol):
    """What verifies whether a quote is genuine."""

    async def appraise(self, quote: bytes, wanted: Wanted, now: int) -> SgxVerdict | IasVerdict:
        """The verdict on a quote. Raises Refusal where nothing can be judged: no service, no collateral."""
        ...


@dataclass(frozen=True)
class Dcap:
    """ECDSA quotes, verified here with collateral from the service or the cache."""

    collateral: CollateralClient
    root: Root
    salt: bytes

    async def appraise(self, quote: bytes, wanted: Wanted, now: int) -> SgxVerdict:
        """See AttestationService."""
        collateral = await self.collateral.for_quote(quote, now)
        return appraise(  # in place: it takes less time than a thread's turn, and dcap-qvl keeps the GIL
            quote,
            collateral,
            wanted.policy,
            policy_hash=wanted.policy_hash,
            mrenclaves=wanted.mrenclaves,
            report_data=wanted.report_data,
            root_der=self.root.der,
            simulated=self.root.simulated,
            salt=self.salt,
            at=now,
        )


@dataclass(frozen=True)
class Epid:
    """EPID quotes, verified by IAS; its signed report is judged here. `spid` is this deployment's, 16 bytes."""

    ias: Ias
    root: Root
    salt: bytes
    spid: bytes

    async def appraise(self, quote: bytes, wanted: Wanted, now: int) -> IasVerdict:
        """See AttestationService. The group's revocation list is asked for first: an unknown group ends it there."""
        header = structure.parse_quote(quote)
        self._check(header)
        await self.ias.sig_rl(header.group)
        answer = await self.ias.report(quote)
        return await asyncio.to_thread(
            appraise_report,
            answer.report,
            answer.signature,
            answer.certificates,
            wanted.policy,
            policy_hash=wanted.policy_hash,
            mrenclaves=wanted.mrenclaves,
            report_data=wanted.report_data,
            nonce=answer.nonce,
            quote=quote,
            salt=self.salt,
            root_der=self.root.der,
            simulated=self.root.simulated,
            at=now,
        )

    def _check(self, header: structure.EpidHeader) -> None:
        """Only linkable quotes for this deployment's SPID show one platform under one pseudonym."""
        for code, expected, found in (
            ("sign_type", "linkable (1)", "linkable (1)" if header.linkable else "unlinkable (0)"),
            ("spid", self.spid.ljust(32, b"\0").hex(), header.basename.hex()),
        ):
            if expected != found:
                action = "quote with the SPID of the manager's settings, linkable"
                raise Refusal.because(f"quote.{code}", f"quote.{code}", expected=expected, found=found, action=action)
