"""A file that is in memory only: on Linux, and under Gramine, which has no memfd_create."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NoReturn

import pytest

from attestgate.enclave.providers import memory
from attestgate.enclave.providers.memory import file_in_memory


@pytest.fixture
def gramine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As it is there; the folder is what its manifest mounts as tmpfs."""

    def missing(*_: object) -> NoReturn:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    (tmp_path / "attestation").mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(os, "memfd_create", missing)
    monkeypatch.setattr(memory, "DEV_ATTESTATION", tmp_path / "attestation")
    monkeypatch.setattr(memory, "GRAMINE_TMPFS", tmp_path / "tmp")
    return tmp_path / "tmp"


def test_on_linux_it_is_in_no_folder() -> None:
    with file_in_memory(b"secret") as path:
        assert path.read_bytes() == b"secret"
        assert str(path.readlink()).startswith("/memfd:")
    assert not path.exists()


def test_under_gramine_it_is_in_the_enclaves_tmpfs_for_as_long_as_it_is_read(gramine: Path) -> None:
    with file_in_memory(b"secret") as path:
        assert path.read_bytes() == b"secret"
        assert path.parent == gramine
        assert path.stat().st_mode & 0o777 == 0o600
    assert not list(gramine.iterdir())


def test_without_memory_files_there_is_none_elsewhere(gramine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "DEV_ATTESTATION", gramine / "none")
    with pytest.raises(OSError, match="Function not implemented"), file_in_memory(b"secret"):
        pass
    assert not list(gramine.iterdir())
