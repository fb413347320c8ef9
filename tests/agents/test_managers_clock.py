"""An agent's idea of the manager's clock: its own wall clock has no part in it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from attestgate.bus.agent.managers_clock import ManagersClock
from attestgate.bus.agent.process import healthy_for
from attestgate.compose.images import health


def test_it_goes_on_from_what_the_manager_said_last() -> None:
    passed = 50.0
    now = ManagersClock(1_000_000, lambda: passed)
    assert now() == 1_000_000
    passed = 57.5
    assert now() == 1_000_007.5
    now.heard(2_000_000)
    assert now() == 2_000_000
    now.heard(1_000_010)
    assert now() == 1_000_010, "the manager's clock was set back"


@pytest.mark.parametrize("by_s", [-3600, 3600])
def test_a_step_of_the_agents_own_clock_changes_nothing(monkeypatch: pytest.MonkeyPatch, by_s: int) -> None:
    now, real = ManagersClock(1_000_000), time.time
    before = now()
    monkeypatch.setattr(time, "time", lambda: real() + by_s)
    assert before <= now() < before + 60


def test_the_health_file_is_by_the_clock_of_who_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    healthy_for(path, 60)
    health.leased(str(path))
    healthy_for(path, 0)
    with pytest.raises(ValueError, match="expired"):
        health.leased(str(path))
