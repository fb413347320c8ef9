"""A simulated authority and machine for tests, and the recorded real quotes where they are present."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.sgx.simulated import SimulatedSgx


@pytest.fixture
def sgx(tmp_path: Path) -> SimulatedSgx:
    return SimulatedSgx(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> SimulatedSgx:
    """For tests that change nothing in it."""
    return SimulatedSgx(tmp_path_factory.mktemp("sgx"))


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The folder of recorded SGX evidence: it is not part of this repository."""
    root = os.environ.get("ATTESTGATE_VECTORS")
    if not root or not (Path(root) / "sgx").is_dir():
        pytest.skip("ATTESTGATE_VECTORS names no folder with recorded SGX evidence (sgx/)")
    return Path(root) / "sgx"
