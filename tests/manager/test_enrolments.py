"""An enrolment that was believed once is believed for its bytes, and for nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from attestgate.bus.memory.server import MemoryServer
from attestgate.manager.local.high_water import HighWater
from attestgate.manager.policy import enrolments, signers
from attestgate.manager.policy.enrolments import Enrolments
from attestgate.manager.policy.signers import Signers
from attestgate.schemas.base import Refusal, pack
from attestgate.schemas.enrolment import Command, Enrol, HostEnrolment
from attestgate.schemas.signing import Signed, sign, verify
from tests.support.manager.world import OPERATOR, TIMING, World


class Bench:
    """Enrolments, and the bucket that it reads, which the bus may write."""

    def __init__(self, world: World, folder: Path) -> None:
        bus = MemoryServer().connect()
        settings = world.manager_settings(folder, "m", TIMING, "x25519")
        self.world = world
        self.bucket = bus.bucket("enrolment")
        self.enrolments = Enrolments(bus, Signers(settings.operators), HighWater(folder / "marks.json"))

    def signed(self, id: str, sequence: int = 1) -> Signed:
        subject = HostEnrolment(id=id, mrenclaves=["11" * 32], platform="22" * 32)
        command = Command(operator=OPERATOR, sequence=sequence, expires_at=2**37, action=Enrol(subject=subject))
        return sign(self.world.operator, "command", command)

    async def put(self, id: str, signed: Signed) -> None:
        await self.bucket.put(f"host.{id}", pack(signed))


@pytest.fixture
def bench(world: World, tmp_path: Path) -> Bench:
    return Bench(world, tmp_path)


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[Signed]:
    """The statements whose signature was checked."""
    seen: list[Signed] = []

    def noted(signed: Signed, *arguments: object) -> object:
        seen.append(signed)
        return verify(signed, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(signers, "verify", noted)
    return seen


async def test_a_signature_is_checked_once(bench: Bench, checked: list[Signed]) -> None:
    await bench.put("h1", bench.signed("h1"))
    first = await bench.enrolments.host("h1")
    assert await bench.enrolments.host("h1") == first
    assert len(checked) == 1


async def test_other_bytes_are_checked_again(bench: Bench, checked: list[Signed]) -> None:
    for sequence in (1, 2):
        await bench.put("h1", bench.signed("h1", sequence))
        await bench.enrolments.host("h1")
    assert len(checked) == 2


@pytest.mark.parametrize("field", ["payload", "signature", "signer"])
async def test_what_was_believed_lends_a_forgery_nothing(bench: Bench, field: str) -> None:
    good, other = bench.signed("h1"), bench.signed("h1", 2)
    await bench.put("h1", good)
    await bench.enrolments.host("h1")
    changed = {"payload": other.payload, "signature": other.signature, "signer": bytes(32)}[field]
    await bench.put("h1", good.model_copy(update={field: changed}))
    with pytest.raises(Refusal, match=r"signature\."):
        await bench.enrolments.host("h1")


async def test_what_was_refused_is_refused_again(bench: Bench) -> None:
    await bench.put("h1", bench.signed("h1").model_copy(update={"signature": bytes(64)}))
    for _ in range(2):
        with pytest.raises(Refusal, match=r"signature\.invalid"):
            await bench.enrolments.host("h1")


async def test_what_was_believed_is_still_held_against_what_it_is_read_for(bench: Bench) -> None:
    """In another subject's place, and older than one seen before."""
    older, newer = bench.signed("h1"), bench.signed("h1", 2)
    for signed in (older, newer):
        await bench.put("h1", signed)
        await bench.enrolments.host("h1")
    await bench.put("h1", older)
    with pytest.raises(Refusal, match="rollback"):
        await bench.enrolments.host("h1")
    await bench.put("h2", newer)
    with pytest.raises(Refusal, match=r"enrolment\.misplaced"):
        await bench.enrolments.host("h2")


async def test_so_many_are_remembered(bench: Bench, checked: list[Signed], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrolments, "BELIEVED", 2)
    for id in ("h1", "h2", "h3", "h3", "h2", "h1"):
        await bench.put(id, bench.signed(id))
        await bench.enrolments.host(id)
    assert len(checked) == 4
