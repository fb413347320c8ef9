"""Which policies are believed: a manifest's signature is checked once, and once more for any other bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attestgate.bus.memory.server import MemoryServer
from attestgate.compose.local.policies import LearnedPolicies
from attestgate.manager.local.high_water import HighWater
from attestgate.manager.local.slices import Slices
from attestgate.manager.policy import policies as module
from attestgate.manager.policy.policies import MANIFEST, REMEMBERED, Policies
from attestgate.manager.policy.signers import Signers
from attestgate.manager.verification.ima.runtime_policy import DIGESTS_A_SLICE, load_in_slices
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


def large(world: World) -> LearnedPolicies:
    """The world's policies with so many digests that they are read in many slices."""
    runtime = json.loads(world.policies.runtime)
    runtime["digests"] |= {f"/opt/{number}": [f"{number:064x}"] for number in range(20 * DIGESTS_A_SLICE)}
    document = json.dumps(runtime).encode()
    host = json.loads(world.policies.host) | {"runtime_policy": policy_name(document)}
    return LearnedPolicies(sgx=world.policies.sgx, host=json.dumps(host).encode(), runtime=document)


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runtime policies that were read, by their hash."""
    found: list[str] = []

    def counted(raw: bytes, **named: Any) -> Any:
        found.append(policy_name(raw))
        return load_in_slices(raw, **named)

    monkeypatch.setattr(module, "load_in_slices", counted)
    return found


async def test_policies_are_read_once_for_all_that_wait(world: World, made: Made, readings: list[str]) -> None:
    policies, put, _ = made
    await put(large(world).command(world.author, version=1))
    found = await asyncio.gather(*(policies.in_force() for _ in range(5)))
    assert len(readings) == 1
    assert all(one.runtime is found[0].runtime for one in found)


async def test_others_go_on_while_policies_are_read(world: World, made: Made) -> None:
    policies, put, _ = made
    await put(large(world).command(world.author, version=1))
    reading, turns = asyncio.create_task(policies.in_force()), 0
    while not reading.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 2 * 20
    assert (await reading).runtime.digests[b"/opt/7"] == {bytes(31) + b"\7"}


async def test_a_newer_manifest_that_comes_while_one_is_read_counts(
    world: World, made: Made, readings: list[str]
) -> None:
    policies, put, _ = made
    await put(large(world).command(world.author, version=1))
    reading = asyncio.create_task(policies.in_force())
    while not readings:
        await asyncio.sleep(0)
    await put(version(world, 2))
    assert (await reading).manifest.version == 2
    assert readings == [policy_name(large(world).runtime), policy_name(world.policies.runtime)]


async def test_a_policy_that_cannot_be_read_is_refused_to_all_and_the_next_one_is_read(
    world: World, made: Made
) -> None:
    policies, put, _ = made
    runtime = b'{"digests": {}}'
    host = json.dumps(json.loads(world.policies.host) | {"runtime_policy": policy_name(runtime)}).encode()
    broken = LearnedPolicies(sgx=world.policies.sgx, host=host, runtime=runtime)
    await put(broken.command(world.author, version=1))
    found = await asyncio.gather(*(policies.in_force() for _ in range(3)), return_exceptions=True)
    assert [code_of(one) for one in found] == ["file.fields"] * 3
    await put(version(world, 2))
    assert (await policies.in_force()).manifest.version == 2


def code_of(error: object) -> str:
    assert isinstance(error, Refusal)
    return error.reasons[0].code
