"""A simulated authority and machine for tests, and the recorded real quotes where they are present."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.sgx.site import Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """For tests that change nothing in it."""
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The folder of recorded SGX evidence: it is not part of this repository."""
    root = os.environ.get("ATTESTGATE_VECTORS")
    if not root or not (Path(root) / "sgx").is_dir():
        pytest.skip("ATTESTGATE_VECTORS names no folder with recorded SGX evidence (sgx/)")
    return Path(root) / "sgx"
