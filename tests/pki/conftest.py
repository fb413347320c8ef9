"""A CA of a deployment, in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from attestgate.manager.pki.authority import create_ca
from tests.support.pki import AT, PASSPHRASE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create_ca(tmp_path / "ca", "sdn.example.org", PASSPHRASE, AT)
    return tmp_path / "ca"
