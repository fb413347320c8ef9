"""Any order of deliveries, repeats, replays, deaths and rollbacks: see machine.py.

A few here; ATTESTGATE_HYPOTHESIS=long takes its time.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.support.manager.machine import Chaos
from tests.support.manager.world import World
from tests.support.threats import rows, threat

LONG = os.environ.get("ATTESTGATE_HYPOTHESIS") == "long"
SETTINGS = settings(
    max_examples=400 if LONG else 5,
    stateful_step_count=60 if LONG else 25,
    derandomize=not LONG,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@threat(rows.MESSAGE_REORDERED)
def test_any_order_of_what_may_happen(world: World, tmp_path: Path) -> None:
    numbers = itertools.count()

    class Here(Chaos):
        def __init__(self) -> None:
            super().__init__(world, tmp_path / str(next(numbers)))

    run_state_machine_as_test(Here, settings=SETTINGS)
