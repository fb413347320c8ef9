"""Lease renewals through a gateway worker to the real nginx: python -m bench.renewals [--count N] [--rounds N]

All leases of a period at once, as after a recheck of the whole fleet: how many are verified, applied and queued for
reporting per CPU second of the worker, and how many go in one request to nginx. For comparison, in the same round, some
of them one at a time (each applied before the next is sent), and the verification of their signatures alone.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import structlog

from attestgate.manager.gateway.dictionary import Dictionary
from attestgate.manager.gateway.metrics import GatewayMetrics
from attestgate.schemas.admission import ALL, Lease, open_posted, post
from attestgate.schemas.signing import TrustedKeys
from bench.gateway import spread
from tests.support.gateway.deployment import TRUST_DOMAIN, GatewayDeployment, at_work
from tests.support.gateway.gate import APP_SESSION, HOST_SESSION, Gate, host_lease, running

LONG_S = 3000


class Counted(Dictionary):
    """How often nginx was asked to change something."""

    changes = 0

    async def _ask(self, method: str, path: str, body: str | None = None) -> bytes:
        Counted.changes += method != "GET"
        return await super()._ask(method, path, body)


class Told(GatewayMetrics):
    """Metrics that signal their changes."""

    def __init__(self) -> None:
        super().__init__()
        self._news = asyncio.Event()

    def agreed(self, keys: Iterable[str], statements: int) -> None:
        """See GatewayMetrics."""
        super().agreed(keys, statements)
        self._news.set()

    async def changed(self) -> None:
        """Return at the next agreement."""
        self._news.clear()
        await self._news.wait()


class Period:
    """The leases of one period, signed, and the worker that receives them."""

    def __init__(self, deployment: GatewayDeployment, metrics: Told) -> None:
        self._deployment = deployment
        self._metrics = metrics
        self._managers = TrustedKeys(TRUST_DOMAIN, {"manager": {deployment.manager.public}})

    def signed(self, serials: list[str], sequence: int) -> dict[str, bytes]:
        """A lease for each certificate, by key."""
        now = int(time.time())
        leases = [
            Lease(
                gateways="sdn",
                serial=serial,
                certificate=secrets.token_hex(32),
                identity="spiffe://sdn.example.org/host/h1/app/a1",
                app="a1",
                host="h1",
                app_session=APP_SESSION,
                host_session=HOST_SESSION,
                rank=1,
                enrolled=1,
                policy=1,
                issued_at=now,
                expires_at=now + LONG_S,
                sequence=sequence,
                integrity="unanchored",
                simulated=True,
                observe_only=False,
                allow=[ALL],
            )
            for serial in serials
        ]
        return {lease.key: post(self._deployment.manager, lease) for lease in leases}

    def applied(self) -> float:
        """How many statements nginx holds."""
        return self._metrics.registry.get_sample_value("attestgate_gateway_lag_seconds_count") or 0.0

    async def say(self, statements: dict[str, bytes]) -> float:
        """Publish them all at once; the CPU seconds until nginx holds them."""
        begun, wanted = time.process_time(), self.applied() + len(statements)
        for key, value in statements.items():
            await self._deployment.bus.put(key, value)
        while self.applied() < wanted:
            await self._metrics.changed()
        return time.process_time() - begun

    def checked(self, statements: dict[str, bytes]) -> float:
        """The CPU seconds to verify their signatures only."""
        begun = time.process_time()
        for key, value in statements.items():
            open_posted(key, value, self._managers)
        return time.process_time() - begun


async def renewals(folder: Path, count: int, rounds: int) -> None:
    """Rates, and how many requests carry them."""
    serials = [f"7f{secrets.token_hex(15)}" for _ in range(count)]
    single = serials[: count // 20]
    together, apart, alone, requests = [], [], [], []
    async with running(Gate(folder, time.time, zone="64m")) as gate:
        deployment, metrics = GatewayDeployment(gate), Told()
        worker = deployment.worker(longest_lease_s=3600, metrics=metrics)
        async with at_work(worker):
            period, now = Period(deployment, metrics), int(time.time())
            host = host_lease(now, lease_s=LONG_S)
            await period.say({host.key: post(deployment.manager, host)} | period.signed(serials, 1))
            for number in range(rounds):
                statements = period.signed(serials, 2 * number + 2)
                alone.append(count / period.checked(statements))
                before = Counted.changes
                together.append(count / await period.say(statements))
                requests.append(count / (Counted.changes - before))
                statements = period.signed(single, 2 * number + 3)
                begun = time.process_time()
                for key, value in statements.items():
                    await period.say({key: value})
                apart.append(len(single) / (time.process_time() - begun))
    print(f"{count} leases renewed at once, {rounds} rounds; renewals a CPU second")
    print(f"  checked and applied in batches: {spread(together, '', 0)}, {spread(requests, '', 0)} a request to nginx")
    print(f"  one at a time: {spread(apart, '', 0)}, = 1 / {spread(_ratio(together, apart))}")
    print(f"  signatures alone: {spread(alone, '', 0)}, {spread(_ratio(together, alone))} of that is reached with all")


def _ratio(one: list[float], other: list[float]) -> list[float]:
    return [a / b for a, b in zip(one, other, strict=True)]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # admitting 10,000 would log as many lines
    with tempfile.TemporaryDirectory(prefix="attestgate-bench-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("attestgate.manager.gateway.worker.Dictionary", Counted)
        asyncio.run(renewals(Path(folder), asked.count, asked.rounds))


if __name__ == "__main__":
    main()
