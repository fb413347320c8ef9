"""Speed of SGX appraisal: own parse and policy compared with dcap_qvl, quotes per second, collateral from the cache.

Run `.venv/bin/python -m bench.sgx`. It creates a simulated authority and quotes of its own, or uses the recorded real
quote in $ATTESTGATE_VECTORS. All figures of one line come from one run, in alternation, so that a busy machine slows
both sides; each is a median with its quartiles.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import dcap_qvl
import httpx

from attestgate.bus.memory.server import MemoryServer
from attestgate.enclave.simulated import authority, pccs, platform
from attestgate.enclave.simulated.quoting_enclave import EnclaveIdentity
from attestgate.manager.attestation.collateral_client import CollateralClient
from attestgate.manager.attestation.pcs_client import Pcs
from attestgate.manager.local.high_water import HighWater, PolicyFloors
from attestgate.manager.verification.sgx import dcap
from attestgate.manager.verification.sgx.appraisal import appraise
from attestgate.manager.verification.sgx.collateral import Collateral
from attestgate.manager.verification.sgx.quote import parse
from attestgate.schemas.base import read_json
from attestgate.schemas.sgx import BASELINE, SgxVerdict

ROUNDS, CALLS = 60, 25
RECORDED, RECORDED_AT = "sgx/dcap-zkdcap-risc0", 1743465600
ENCLAVE = EnclaveIdentity(mrenclave=b"\1" * 32, mrsigner=b"\2" * 32, isv_prod_id=1, isv_svn=1, debug=False)


@dataclass(frozen=True)
class Case:
    """A quote that is accepted, with all its inputs."""

    name: str
    quote: bytes
    collateral: Collateral
    root_der: bytes
    at: int
    mrenclaves: tuple[str, ...]

    def appraise(self) -> SgxVerdict:
        """Our whole verdict."""
        return appraise(
            self.quote,
            self.collateral,
            BASELINE,
            policy_hash=None,
            mrenclaves=self.mrenclaves,
            report_data=self.quote[368:432],
            root_der=self.root_der,
            simulated=False,
            salt=b"salt",
            at=self.at,
        )


def main() -> None:
    """Measure and print."""
    with TemporaryDirectory() as folder:
        simulated, collateral_ms = asyncio.run(_simulated(Path(folder)))
    cases = [simulated]
    vectors = os.environ.get("ATTESTGATE_VECTORS")
    if vectors and (Path(vectors) / RECORDED).is_dir():
        cases.append(_recorded(Path(vectors) / RECORDED))
    for case in cases:
        _share(case)
    for processes in (1, os.cpu_count() or 1):
        _throughput(cases[-1], processes)
    _say("collateral served from cache, ms", collateral_ms)


def _share(case: Case) -> None:
    """The cost of our own work, alone and as a share of dcap_qvl's."""
    native = dcap.native(case.collateral)

    def theirs() -> dcap_qvl.VerifiedReport:
        return dcap_qvl.verify_with_root_ca(case.quote, native, case.root_der, case.at)

    answer = theirs()

    def ours() -> None:
        # dcap_qvl with a precomputed answer: what is left is ours
        with patch.object(dcap_qvl, "verify_with_root_ca", lambda *_arguments: answer):
            measured = _microseconds(case.appraise)
        own.append(measured)

    if not case.appraise().accepted:
        raise SystemExit(f"{case.name}: {case.appraise().reasons}")
    own: list[float] = []
    verified: list[float] = []
    whole: list[float] = []
    for _ in range(ROUNDS):
        verified.append(_microseconds(theirs))
        ours()
        whole.append(_microseconds(case.appraise))
    print(f"\n{case.name}")
    _say("  dcap_qvl: verify, us", verified)
    _say("  own parse, policy, verdict, us", own)
    _say("  whole verdict, us", whole)
    _say("  own share of dcap_qvl's verification, %", [100 * o / v for o, v in zip(own, verified, strict=True)])
    _say("  whole verdict / dcap_qvl's verification", [w / v for w, v in zip(whole, verified, strict=True)])


def _throughput(case: Case, processes: int) -> None:
    with ProcessPoolExecutor(processes) as pool:
        rates = [sum(pool.map(_rate, [case] * processes)) for _ in range(5)]
    _say(f"quotes a second, {processes} process{'es' if processes > 1 else ''}", rates)


def _rate(case: Case) -> float:
    calls, start = 500, time.perf_counter()
    for _ in range(calls):
        case.appraise()
    return calls / (time.perf_counter() - start)


async def _simulated(folder: Path) -> tuple[Case, list[float]]:
    """A quote of the simulated platform, and how long a worker waits for its cached collateral."""
    authority.create(folder / "authority")
    platform.create(folder / "machine", folder / "authority")
    quote = platform.Platform(folder / "machine").quote(ENCLAVE, bytes(64))
    root, at = authority.Authority(folder / "authority").root_der, int(datetime.now(UTC).timestamp())
    transport = httpx.ASGITransport(pccs.application(folder / "authority"))
    async with httpx.AsyncClient(transport=transport) as http:
        client = CollateralClient(
            Pcs(http, "http://pccs.invalid"),
            MemoryServer().connect().bucket("collateral"),
            HighWater(folder / "high-water.json"),
            PolicyFloors(),
            root_der=root,
            when_down="refuse",
        )
        collateral = await client.for_quote(quote, at)
        waits = []
        for _ in range(500):
            start = time.perf_counter()
            await client.for_quote(quote, at)
            waits.append((time.perf_counter() - start) * 1e3)
    return Case("simulated quote", quote, collateral, root, at, (ENCLAVE.mrenclave.hex(),)), waits


def _recorded(folder: Path) -> Case:
    quote = (folder / "quote.bin").read_bytes()
    collateral = read_json(Collateral, folder / "collateral.json")
    parsed = parse(quote)
    mrenclaves = (parsed.report.mrenclave.hex(),)
    return Case("recorded real quote", quote, collateral, parsed.pck.root_der, RECORDED_AT, mrenclaves)


def _microseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - start) / CALLS * 1e6


def _say(what: str, values: list[float]) -> None:
    low, middle, high = statistics.quantiles(values, n=4)
    print(f"{what}: {middle:.4g} ({low:.4g} to {high:.4g})")


if __name__ == "__main__":
    main()
