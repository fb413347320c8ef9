"""One authority with two machines, their daemons switched on, and a probe to run inside."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import attestgate
from attestgate.enclave.simulated import authority, platform, signer
from tests.support.enclave.probe import MANIFEST, PROBE, REPOSITORY, Code, Machine, Machines, switched_on


@pytest.fixture(scope="session")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    folder = tmp_path_factory.mktemp("sgx")
    authority.create(folder / "authority")
    signer.create(folder / "signer.key")
    platform.create(folder / "one", folder / "authority", "platform")
    platform.create(folder / "other", folder / "authority", "processor")
    one, other = (Machine(folder / name, folder / f"{name}.socket") for name in ("one", "other"))
    machines = Machines(folder / "authority", folder / "signer.key", one, other)
    with switched_on(one, machines.signer), switched_on(other, machines.signer):
        yield machines


@pytest.fixture
def code(tmp_path: Path) -> Code:
    """A fresh copy of the probe's sources."""
    root = tmp_path / "code"
    leave_out = shutil.ignore_patterns("__pycache__")
    for package in ("enclave", "schemas"):
        shutil.copytree(REPOSITORY / package, root / "attestgate" / package, ignore=leave_out)
    shutil.copy(attestgate.__file__, root / "attestgate")
    (root / "probe").mkdir()
    (root / "probe" / "__init__.py").touch()
    (root / "probe" / "__main__.py").write_text(PROBE)
    (root / "probe" / "late.py").write_text("VALUE = 'as measured'\n")
    (root / "probe" / "enclave.toml").write_text(MANIFEST)
    (root / "settings.toml").write_text("manager_identity = 'aa'\n")
    return Code(root)
