"""The measurement list as the host's agent reads it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from attestgate.host_agent import step3_evidence
from attestgate.host_agent.step3_evidence import read_list
from attestgate.schemas.base import Refusal
from tests.support.threats import rows, threat


@threat(rows.VOLUME_TRAPPED)
def test_a_list_is_read_whole_up_to_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step3_evidence, "MAX_LIST", 100)
    path = tmp_path / "list"
    path.write_bytes(bytes(100))
    assert read_list(path) == bytes(100)
    path.write_bytes(bytes(101))
    with pytest.raises(Refusal, match=r"host\.list: .* at most 100 bytes"):
        read_list(path)


@pytest.mark.parametrize("kind", ["none", "folder"])
def test_what_is_no_list_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path if kind == "folder" else tmp_path / "none"
    with pytest.raises(Refusal, match=r"host\.list"):
        read_list(path)


@threat(rows.VOLUME_TRAPPED)
def test_a_pipe_in_its_place_keeps_nobody_waiting(tmp_path: Path) -> None:
    """It is an empty list, which no policy takes."""
    os.mkfifo(tmp_path / "list")
    assert read_list(tmp_path / "list") == b""
