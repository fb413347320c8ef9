"""Recorded real quotes, which are not part of this repository; ATTESTGATE_VECTORS says where they are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from attestgate.manager.verification.sgx.appraisal import appraise
from attestgate.manager.verification.sgx.collateral import Collateral
from attestgate.manager.verification.sgx.quote import parse
from attestgate.schemas.base import parse_json
from attestgate.schemas.sgx import BASELINE, SgxVerdict


def sgx_vectors() -> Path:
    """The folder of recorded SGX evidence; skips the test where there is none."""
    folder = os.environ.get("ATTESTGATE_VECTORS")
    if not folder or not (Path(folder) / "sgx").is_dir():
        pytest.skip("ATTESTGATE_VECTORS names no folder with recorded SGX evidence (sgx/)")
    return Path(folder) / "sgx"


def judge_baseline(quote: bytes, collateral: Collateral, root_der: bytes, at: int) -> SgxVerdict:
    return appraise(
        quote,
        collateral,
        BASELINE,
        policy_hash=None,
        mrenclaves=None,
        report_data=None,
        root_der=root_der,
        simulated=False,
        salt=b"",
        at=at,
    )


@dataclass(frozen=True)
class Vector:
    """A recorded real quote with its collateral, and Intel's root as it stands in it."""

    quote: bytes
    collateral: Collateral
    root_der: bytes


def load_vector(folder: Path) -> Vector:
    quote = (folder / "quote.bin").read_bytes()
    collateral = parse_json(Collateral, (folder / "collateral.json").read_text(), source="collateral.json")
    return Vector(quote, collateral, parse(quote).pck.chain[-1].public_bytes(Encoding.DER))
