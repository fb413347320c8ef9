"""Recorded SGX evidence: no part of this repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def vectors() -> Path:
    """The folder of recorded SGX evidence; skips the test where there is none."""
    folder = os.environ.get("ATTESTGATE_VECTORS")
    if not folder or not (Path(folder) / "sgx").is_dir():
        pytest.skip("ATTESTGATE_VECTORS names no folder with sgx/ in it: no recorded quotes to compare with")
    return Path(folder) / "sgx"
