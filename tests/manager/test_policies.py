"""Which policies are believed: a manifest's signature is checked once, and once more for any other bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attestgate.bus.memory.server import MemoryServer
from attestgate.manager.local.high_water import HighWater
from attestgate.manager.local.slices import Slices
from attestgate.manager.policy import policies as module
from attestgate.manager.policy.policies import MANIFEST, REMEMBERED, Policies
from attestgate.manager.policy.signers import Signers
from attestgate.schemas.base import Refusal, pack
from attestgate.schemas.enrolment import PolicyManifest, PutPolicy
from attestgate.schemas.settings import OperatorSettings
from attestgate.schemas.sgx import policy_name
from attestgate.schemas.signing import Signed, verify
from tests.support.manager.world import AUTHOR, World

Made = tuple[Policies, Callable[[PutPolicy | bytes], Any], list[bytes]]


@pytest.fixture
async def made(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Policies, how to put a manifest on its bus, and the signatures that it checked."""
    bus = MemoryServer().connect()
    checked: list[bytes] = []

    def counted(signed: Signed, *arguments: Any) -> Any:
        checked.append(signed.signature)
        return verify(signed, *arguments)

    monkeypatch.setattr(module, "verify", counted)
    monkeypatch.setattr("attestgate.bus.client.cached_key.KEPT_S", 0.0)  # read each time
    author = OperatorSettings(name=AUTHOR, role="policy-author", identity=world.public["policy_authors"][AUTHOR])
    policies = Policies(bus, Signers([author]), HighWater(tmp_path / "high-water.json"), Slices())

    async def put(what: PutPolicy | bytes) -> None:
        bucket = bus.bucket("policies")
        if isinstance(what, PutPolicy):
            for document in what.documents:
                await bucket.put(policy_name(document), document)
            what = pack(what.manifest)
        await bucket.put(MANIFEST, what)

    return policies, put, checked


def version(world: World, number: int) -> PutPolicy:
    return world.policies.command(world.author, version=number)


async def test_the_same_bytes_are_checked_once(world: World, made: Made) -> None:
    policies, put, checked = made
    await put(version(world, 1))
    for _ in range(3):
        assert (await policies.in_force()).manifest.version == 1
    assert len(checked) == 1


async def test_other_bytes_are_checked_and_the_newest_counts(world: World, made: Made) -> None:
    policies, put, checked = made
    for number in (1, 2, 3):
        await put(version(world, number))
        assert (await policies.in_force()).manifest.version == number
    assert len(checked) == 3
    await put(version(world, 2))  # known, and no longer in force anywhere
    with pytest.raises(Refusal, match="rollback"):
        await policies.in_force()


@pytest.mark.parametrize("part", ["payload", "signature", "signer"])
async def test_a_forged_one_is_refused_beside_a_known_one(world: World, made: Made, part: str) -> None:
    """Each part of the signed bytes belongs to what is remembered: none can be exchanged under it."""
    policies, put, checked = made
    known = version(world, 1)
    await put(known)
    await policies.in_force()
    newer = PolicyManifest.model_validate(
        (await policies.in_force()).manifest.model_dump() | {"version": 9, "min_tcb_evaluation": 0}
    )
    changes = {"payload": pack(newer), "signature": bytes(64), "signer": world.operator.public_key().public_bytes_raw()}
    await put(pack(known.manifest.model_copy(update={part: changes[part]})))
    for _ in range(2):
        with pytest.raises(Refusal, match=r"signature\."):
            await policies.in_force()
    assert len(checked) == 3, "what was refused is not remembered"
    await put(known)
    assert (await policies.in_force()).manifest.version == 1
    assert len(checked) == 3


async def test_no_more_manifests_are_remembered_than_a_few(world: World, made: Made) -> None:
    policies, put, checked = made
    for number in range(1, REMEMBERED + 3):
        await put(version(world, number))
        await policies.in_force()
    assert len(policies._manifests) == REMEMBERED
    assert len(checked) == REMEMBERED + 2
