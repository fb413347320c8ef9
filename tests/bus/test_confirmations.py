"""What an operator believes that a gateway has confirmed: what that gateway signed, about this very Revoke."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestgate.bus import subjects
from attestgate.bus.api import Message
from attestgate.bus.confirmations import KEPT, Confirmations
from attestgate.bus.memory.server import MemoryBus, MemoryServer
from attestgate.schemas.admission import MAX_REVOKED, GatewayReport, sign_report
from attestgate.schemas.signing import Signer
from tests.support.threats import rows, threat

DEPLOYMENT = "test.example"
REVOKE, OTHER = b"\x01" * 32, b"\x02" * 32
NOW_S, SOON_S = 0.0, 20.0


def signer(deployment: str = DEPLOYMENT) -> Signer:
    return Signer(deployment, Ed25519PrivateKey.generate())


class Bench:
    """Two gateways that an operator's file names, on a bus in memory."""

    def __init__(self) -> None:
        self.keys = {id: signer() for id in ("gateway-1", "gateway-2")}
        self.server = MemoryServer()
        self.bus: MemoryBus = self.server.connect()
        self.confirmations = Confirmations(DEPLOYMENT, {id: key.public for id, key in self.keys.items()})

    def report(self, id: str, *revoked: bytes, key: Signer | None = None, subject: str = "") -> None:
        """A report of a gateway, on its own subject unless another is named."""
        report = GatewayReport(gateway=id, epoch="ab" * 16, applied=[], at=1, floors=1, revoked=list(revoked))
        data = sign_report(key or self.keys[id], report)
        # To those who listen only: the stream, which managers empty, has room for few.
        self.server.deliver(Message(subjects.inbound("gateway", subject or id, "report"), data))

    async def confirmed(self, revoke: bytes = REVOKE, within_s: float = NOW_S) -> set[str]:
        """Who has confirmed it."""
        await self.bus.flush()
        return set(await self.confirmations.of(revoke, until=time.monotonic() + within_s))


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    found = Bench()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(found.confirmations.heard(found.bus))
        yield found


@threat(rows.REVOCATION_HIDDEN)
async def test_it_waits_for_every_gateway_that_the_file_names(bench: Bench) -> None:
    waiting = asyncio.create_task(bench.confirmed(within_s=SOON_S))
    bench.report("gateway-1", REVOKE)
    assert await bench.confirmed(within_s=0.2) == {"gateway-1"}
    assert not waiting.done()
    bench.report("gateway-2", OTHER, REVOKE)
    assert await waiting == {"gateway-1", "gateway-2"}


@threat(rows.REVOCATION_HIDDEN)
async def test_a_report_about_another_revoke_confirms_nothing(bench: Bench) -> None:
    bench.report("gateway-1", OTHER)
    bench.report("gateway-2")
    assert await bench.confirmed(OTHER, within_s=0.2) == {"gateway-1"}
    assert await bench.confirmed() == set()


@threat(rows.REVOCATION_HIDDEN)
@pytest.mark.parametrize("who", ["a stranger", "the other gateway", "another deployment"])
async def test_who_has_only_the_credential_confirms_nothing(bench: Bench, who: str) -> None:
    key = {
        "a stranger": signer(),
        "the other gateway": bench.keys["gateway-2"],
        "another deployment": Signer("other.example", bench.keys["gateway-1"].key),
    }[who]
    bench.report("gateway-1", REVOKE, key=key)
    bench.report("gateway-2", REVOKE)
    assert await bench.confirmed(within_s=0.2) == {"gateway-2"}


@threat(rows.REVOCATION_HIDDEN)
async def test_one_gateway_does_not_confirm_for_another(bench: Bench) -> None:
    bench.report("gateway-2", REVOKE, subject="gateway-1")
    assert await bench.confirmed(within_s=0.2) == set()


async def test_of_others_and_of_old_ones_nothing_is_kept(bench: Bench) -> None:
    bench.report("gateway-3", REVOKE, key=signer())
    for first in range(0, KEPT + MAX_REVOKED, MAX_REVOKED):
        bench.report("gateway-1", *(n.to_bytes(32) for n in range(first, first + MAX_REVOKED)))
    bench.report("gateway-2", REVOKE)
    assert await bench.confirmed(within_s=0.2) == {"gateway-2"}
    assert await bench.confirmed((KEPT + 1).to_bytes(32)) == {"gateway-1"}
    assert await bench.confirmed((0).to_bytes(32)) == set()
