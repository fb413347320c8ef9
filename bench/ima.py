"""CPU cost of appraising a measurement list, compared with Keylime's, and memory use for a fleet.

    python -m bench.ima [--keylime PYTHON] [--entries N] [--rounds N]

PYTHON is the interpreter of a separate environment with keylime (and an empty module `gpg` if libgpgme is not
available: it is imported, not used). Both appraise the same list under the same policy, in alternation, in one run
(Keylime's `process_measurement_list`); figures are medians with the spread of the rounds, in CPU time, so that other
load on the machine matters little.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from struct import pack
from typing import IO, Any

from attestgate.manager.verification.ima.appraisal import appraise_list
from attestgate.manager.verification.ima.measurement_list import entries
from attestgate.manager.verification.ima.runtime_policy import LoadedPolicy, learn, load
from attestgate.schemas.host_policy import HostPolicy, Replay

HOSTS, COMMON, OWN = 1000, 4000, 1000
"""The fleet: each host's list has entries that all have, and entries of its own under an excluded folder."""


def entry(path: str, digest: bytes) -> tuple[bytes, str]:
    """One ima-sig entry, as in the binary list and as a line of the ASCII one."""
    fields = (b"sha256:\0" + digest, path.encode() + b"\0", b"")
    data = b"".join(pack("<I", len(field)) + field for field in fields)
    hashed = hashlib.sha1(data, usedforsecurity=False).digest()
    frame = pack("<I", 10) + hashed + pack("<I", 7) + b"ima-sig" + pack("<I", len(data)) + data
    return frame, f"10 {hashed.hex()} ima-sig sha256:{digest.hex()} {path} "


def measured(count: int, seed: int) -> list[tuple[bytes, str]]:
    """A list like a host's: boot_aggregate, then files."""
    some = random.Random(seed)
    names = (f"/usr/lib/python3/dist-packages/package_{n % 97}/module_{n}.py" for n in range(count - 1))
    return [entry("boot_aggregate", bytes(31) + b"\1"), *(entry(name, some.randbytes(32)) for name in names)]


def appraise(data: bytes, policy: LoadedPolicy) -> float:
    """CPU seconds that one appraisal takes."""
    host = HostPolicy(version=1, runtime_policy=policy.sha256, accept_unanchored=True)
    started = time.process_time()
    verdict = appraise_list(data, policy, host, before=Replay.start("sha256"), at=int(time.time()))
    took = time.process_time() - started
    if not verdict.accepted:
        raise SystemExit(verdict.reasons[0].sentence())
    return took


class Keylime:
    """Keylime's list processing in its own interpreter, triggered over a pipe."""

    def __init__(self, python: str, policy: str, lines: list[str]) -> None:
        worker = Path(__file__).with_name("keylime_worker.py")
        self._process = subprocess.Popen(
            [python, str(worker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._in: IO[str] = self._process.stdin  # type: ignore[assignment]
        self._out: IO[str] = self._process.stdout  # type: ignore[assignment]
        self._in.write(json.dumps({"policy": json.loads(policy), "lines": lines}) + "\n")

    def run(self) -> float:
        """CPU seconds that one pass takes."""
        self._in.write("go\n")
        self._in.flush()
        said = self._out.readline()
        if not said:
            raise SystemExit("keylime's environment gave no answer: try importing keylime.ima.ima in it")
        return float(said)

    def close(self) -> None:
        """End the worker."""
        self._process.communicate()


def show(name: str, seconds: list[float], count: int, beside: list[float] | None = None) -> None:
    """One line: µs an entry, its spread, and how many times faster than `beside`."""
    each = sorted(1e6 * took / count for took in seconds)
    line = f"{name:34} {statistics.median(each):6.2f} µs an entry ({each[0]:.2f} to {each[-1]:.2f})"
    if beside:
        ratios = sorted(theirs / ours for theirs, ours in zip(beside, seconds, strict=True))
        line += f"   {statistics.median(ratios):.1f} x faster ({ratios[0]:.1f} to {ratios[-1]:.1f})"
    print(line)


def beside_keylime(python: str | None, count: int, rounds: int) -> None:
    """The same list, first uncached, then cached, in alternation with Keylime."""
    made = measured(count, seed=1)
    data = b"".join(frame for frame, _ in made)
    policy, _ = learn([entries(data)])
    text = policy.text()
    del policy
    first: list[float] = []
    again: list[float] = []
    theirs: list[float] = []
    with ExitStack() as stack:
        peer = None
        if python:
            peer = Keylime(python, text, [line for _, line in made])
            stack.callback(peer.close)
            peer.run()
        for _ in range(rounds):
            loaded = load(text)
            first.append(appraise(data, loaded))
            again.append(appraise(data, loaded))
            if peer:
                theirs.append(peer.run())
    print(f"{count} entries, {len(data)} bytes, {rounds} rounds, Python {sys.version.split()[0]}")
    if theirs:
        show("Keylime process_measurement_list", theirs, count)
    show("first time", first, count, theirs)
    show("entries that the fleet has seen", again, count, theirs)


def fleet() -> None:
    """Many hosts under one policy: the size of the cache of entries, and the process's memory."""
    common = b"".join(frame for frame, _ in measured(COMMON, seed=2))
    policy, _ = learn([entries(common)])
    loaded = load(policy.model_copy(update={"excludes": ["/srv/data/"]}).text())
    before, started, some = _rss(), time.perf_counter(), random.Random(3)
    for host in range(HOSTS):
        own = (entry(f"/srv/data/{host}/{n}", some.randbytes(32))[0] for n in range(OWN))
        appraise(common + b"".join(own), loaded)
    memory = loaded.memory("sha256")
    took = time.perf_counter() - started
    print(f"\n{HOSTS} hosts x {COMMON + OWN} entries in {took:.0f} s (the making of the lists included)")
    print(f"remembered: {len(memory.known)} known, {len(memory.excluded)} excluded entries")
    print(f"resident memory: {before} MiB before, {_rss()} MiB at its highest")


def _rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    """Print every figure."""
    options: Any = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--keylime", metavar="PYTHON")
    options.add_argument("--entries", type=int, default=9222)
    options.add_argument("--rounds", type=int, default=15)
    given = options.parse_args()
    beside_keylime(given.keylime, given.entries, given.rounds)
    fleet()


if __name__ == "__main__":
    main()
