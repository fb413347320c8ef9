"""What it costs to refuse the costliest message of each role and step: CPU and memory, the worst shape of each.

python -m bench.hostile_messages
"""

from __future__ import annotations

import time
import tracemalloc

from attestgate.schemas.base import Model, Refusal, unpack
from attestgate.schemas.limits import INBOUND, OUTBOUND
from tests.support.hostile_messages import costliest, first_read, size_of

__all__ = ["costliest"]
ROUNDS = 5


def main() -> None:
    """Print a line for each step."""
    print(f"{'role':6} {'step':18} {'bytes':>9}  {'CPU ms':>8} {'':32} {'KiB':>9}")
    for role, step in sorted([*INBOUND, *OUTBOUND]):
        kind = first_read(role, step)
        measured = [(*_cost(kind, data), name) for name, data in costliest(role, step)]
        cpu, _, slowest = max(measured)
        peak, largest = max((peak, name) for _, peak, name in measured)
        print(f"{role:6} {step:18} {size_of(role, step):9}  {cpu:8.3f} {slowest:32} {peak:9.1f} {largest}")


def _cost(kind: type[Model], data: bytes) -> tuple[float, float]:
    """CPU in milliseconds of one refusal, and its peak of memory in KiB."""
    _refuse(kind, data)
    began = time.process_time()
    for _ in range(ROUNDS):
        _refuse(kind, data)
    cpu = (time.process_time() - began) / ROUNDS
    tracemalloc.start()
    _refuse(kind, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return cpu * 1000, peak / 1024


def _refuse(kind: type[Model], data: bytes) -> None:
    try:
        unpack(kind, data)
    except Refusal:
        return


if __name__ == "__main__":
    main()
