"""What the registry believes: a manifest's signature is checked once, and once more for any other bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attestgate.bus.memory.server import MemoryServer
from attestgate.manager.local.high_water import HighWater
from attestgate.manager.policy import registry as module
from attestgate.manager.policy.registry import MANIFEST, REMEMBERED, Registry, operators_from
from attestgate.schemas.base import Refusal, pack
from attestgate.schemas.enrolment import PolicyManifest, PutPolicy
from attestgate.schemas.settings import OperatorSettings
from attestgate.schemas.sgx import policy_name
from attestgate.schemas.signing import Signed, verify
from tests.support.manager.world import AUTHOR, World

Made = tuple[Registry, Callable[[PutPolicy | bytes], Any], list[bytes]]


@pytest.fixture
async def made(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A registry, how to put a manifest on its bus, and the signatures that it checked."""
    bus = MemoryServer().connect()
    checked: list[bytes] = []

    def counted(signed: Signed, *arguments: Any) -> Any:
        checked.append(signed.signature)
        return verify(signed, *arguments)

    monkeypatch.setattr(module, "verify", counted)
    monkeypatch.setattr("attestgate.bus.client.recent.KEPT_S", 0.0)  # read each time
    author = OperatorSettings(name=AUTHOR, role="policy-author", identity=world.public["policy_authors"][AUTHOR])
    registry = Registry(bus, operators_from([author]), HighWater(tmp_path / "high-water.json"))

    async def put(what: PutPolicy | bytes) -> None:
        policies = bus.bucket("policies")
        if isinstance(what, PutPolicy):
            for document in what.documents:
                await policies.put(policy_name(document), document)
            what = pack(what.manifest)
        await policies.put(MANIFEST, what)

    return registry, put, checked


def version(world: World, number: int) -> PutPolicy:
    return world.policies.command(world.author, version=number)


async def test_the_same_bytes_are_checked_once(world: World, made: Made) -> None:
    registry, put, checked = made
    await put(version(world, 1))
    for _ in range(3):
        assert (await registry.policies()).manifest.version == 1
    assert len(checked) == 1


async def test_other_bytes_are_checked_and_the_newest_counts(world: World, made: Made) -> None:
    registry, put, checked = made
    for number in (1, 2, 3):
        await put(version(world, number))
        assert (await registry.policies()).manifest.version == number
    assert len(checked) == 3
    await put(version(world, 2))  # known, and no longer in force anywhere
    with pytest.raises(Refusal, match="rollback"):
        await registry.policies()


@pytest.mark.parametrize("part", ["payload", "signature", "signer"])
async def test_a_forged_one_is_refused_beside_a_known_one(world: World, made: Made, part: str) -> None:
    """Each part of the signed bytes belongs to what is remembered: none can be exchanged under it."""
    registry, put, checked = made
    known = version(world, 1)
    await put(known)
    await registry.policies()
    newer = PolicyManifest.model_validate(
        (await registry.policies()).manifest.model_dump() | {"version": 9, "min_tcb_evaluation": 0}
    )
    changes = {"payload": pack(newer), "signature": bytes(64), "signer": world.operator.public_key().public_bytes_raw()}
    await put(pack(known.manifest.model_copy(update={part: changes[part]})))
    for _ in range(2):
        with pytest.raises(Refusal, match=r"signature\."):
            await registry.policies()
    assert len(checked) == 3, "what was refused is not remembered"
    await put(known)
    assert (await registry.policies()).manifest.version == 1
    assert len(checked) == 3


async def test_no_more_manifests_are_remembered_than_a_few(world: World, made: Made) -> None:
    registry, put, checked = made
    for number in range(1, REMEMBERED + 3):
        await put(version(world, number))
        await registry.policies()
    assert len(registry._manifests) == REMEMBERED
    assert len(checked) == REMEMBERED + 2
