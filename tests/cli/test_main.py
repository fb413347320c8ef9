"""Ctrl-C while the command is still being imported."""

from __future__ import annotations

import sys

import pytest

from attestgate.cli.__main__ import run


class Interrupted:
    """Finds every module that is asked for, and is interrupted."""

    def find_spec(self, *_: object) -> None:
        raise KeyboardInterrupt


def test_it_ends_without_a_word(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delitem(sys.modules, "attestgate.cli.main")
    monkeypatch.setattr(sys, "meta_path", [Interrupted()])
    with pytest.raises(SystemExit) as end:
        run()
    assert end.value.code == 130
    assert capsys.readouterr() == ("", "")
