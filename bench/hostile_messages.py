"""What it costs to refuse the costliest message of each role and step: CPU and memory, the worst shape of each.

    python -m bench.hostile_messages

CPU is the median, and the longest, of five.
"""

from __future__ import annotations

import statistics
import sys
import time
import tracemalloc

from attestgate.schemas.base import Model, Refusal, unpack
from attestgate.schemas.limits import INBOUND, OUTBOUND
from tests.support.hostile_messages import costliest, first_read, size_of

ROUNDS = 5
GOAL_MS, GOAL_TIMES = 5.0, 16
ASKED_FOR = ("evidence", "recheck_evidence", "recheck_list")
"""What a session asked for: it may cost more."""


def main() -> None:
    """Print a line for each step; exit status 1 if one misses its goal."""
    print(f"{'role':6} {'step':18} {'bytes':>9}  {'CPU ms':>17} {'':32} {'KiB':>9} {'of size':>8}")
    missed = 0
    for role, step in sorted([*INBOUND, *OUTBOUND]):
        kind, size = first_read(role, step), size_of(role, step)
        measured = [(*_cost(kind, data), name) for name, data in costliest(role, step)]
        cpu, slowest = max(((cpu, name) for cpu, _, name in measured), key=lambda one: statistics.median(one[0]))
        peak, largest = max((peak, name) for _, peak, name in measured)
        times = peak * 1024 / size
        met = step in ASKED_FOR or (statistics.median(cpu) <= GOAL_MS and times <= GOAL_TIMES)
        missed += not met
        spread = f"{statistics.median(cpu):.3f} ({max(cpu):.3f})"
        print(
            f"{role:6} {step:18} {size:9}  {spread:>17} {slowest:32} {peak:9.1f} {times:7.1f}x {largest}"
            f"{'' if met else '  MISSED'}",
            flush=True,
        )
    print(f"goals missed in {missed} steps: at most {GOAL_MS:g} ms, and {GOAL_TIMES} times the size in memory")
    sys.exit(bool(missed))


def _cost(kind: type[Model], data: bytes) -> tuple[list[float], float]:
    """CPU in milliseconds of refusing it, in order of size, and its peak of memory in KiB."""
    _refuse(kind, data)
    cpu = []
    for _ in range(ROUNDS):
        began = time.process_time()
        _refuse(kind, data)
        cpu.append((time.process_time() - began) * 1000)
    tracemalloc.start()
    _refuse(kind, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return sorted(cpu), peak / 1024


def _refuse(kind: type[Model], data: bytes) -> None:
    try:
        unpack(kind, data)
    except Refusal:
        return


if __name__ == "__main__":
    main()
