"""A simulated authority and machine for tests, and the recorded real quotes where they are present."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.sgx.recorded import sgx_vectors
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
    return sgx_vectors()
