"""Which policies are in force and on trial: by their authors, by what a manager said of them, and by nothing else."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestgate.bus.memory.server import MemoryServer
from attestgate.compose.local.policies import LearnedPolicies
from attestgate.manager.local.high_water import PolicyFloors
from attestgate.manager.local.marks import Marks
from attestgate.manager.local.slices import Slices
from attestgate.manager.local.statements import Statements
from attestgate.manager.policy import policies as module
from attestgate.manager.policy.in_force import StatementsInForce
from attestgate.manager.policy.policies import BUCKET, Policies
from attestgate.manager.policy.signers import Signers
from attestgate.manager.verification.ima.runtime_policy import DIGESTS_A_SLICE, load_in_slices
from attestgate.schemas.base import Reason, Refusal, pack, unpack
from attestgate.schemas.enrolment import MANIFEST, MANIFESTS, PolicyManifest, PutPolicy
from attestgate.schemas.in_force import InForce, digest_of
from attestgate.schemas.settings import OperatorSettings
from attestgate.schemas.sgx import policy_name
from attestgate.schemas.signing import Signed, Signer
from tests.support.manager.world import TRUST_DOMAIN, World
from tests.support.threats import rows, threat


class Bench:
    """Policies on a bus in memory, and how to put a manifest there."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.folder = world, folder
        self.bucket = MemoryServer().connect().bucket(BUCKET)
        self.told: list[Reason] = []
        self.floors = PolicyFloors()
        self.sequence = 0
        self.policies = self.worker()

    async def _tell(self, reason: Reason) -> None:
        self.told.append(reason)

    def worker(self, *authors: Signer, memory: str = "one") -> Policies:
        """A worker whose settings name these authors."""
        named = [
            OperatorSettings(name=f"author-{number}", role="policy-author", identity=author.public.hex())
            for number, author in enumerate(authors or (self.world.author,))
        ]
        self.signers = Signers(TRUST_DOMAIN, named, {self.world.manager.public})
        manifests = StatementsInForce(
            BUCKET,
            self.bucket,
            MANIFEST,
            lambda _: MANIFESTS,
            self.world.manager,
            self.signers.trusted,
            Statements(self.folder / f"{memory}.sqlite"),
            self._tell,
        )
        self.marks = Marks(self.folder / f"{memory}-marks.sqlite", lambda: 0.0)
        return Policies(self.bucket, manifests, self.floors, self.marks, Slices())

    async def put(self, what: PutPolicy, worker: Policies | None = None) -> None:
        """As an operator's command does."""
        manifest = unpack(PolicyManifest, what.manifest.payload)
        said = self._said(what.manifest, manifest.version)
        await (worker or self.policies).put(what.manifest, manifest, what.documents, said, self._enter)

    async def try_out(self, what: PutPolicy) -> None:
        """As an operator's command does."""
        self.sequence += 1
        manifest = unpack(PolicyManifest, what.manifest.payload)
        said = self._said(what.manifest, self.sequence)
        await self.policies.try_out(what.manifest, manifest, what.documents, said)

    async def _enter(self) -> None:
        """In no log."""

    @staticmethod
    def _said(manifest: Signed, order: int) -> InForce:
        return InForce(
            statement=digest_of(pack(manifest)), command=bytes(32), operator="ann", order=order, applied_at=1
        )

    def version(self, number: int, author: Signer | None = None) -> PutPolicy:
        """The world's policies as this version."""
        return self.world.policies.command(author or self.world.author, version=number)

    async def copy(self, of: str, to: str) -> None:
        """What the bus can do."""
        entry = await self.bucket.get(of)
        assert entry is not None and entry.value is not None
        await self.bucket.put(to, entry.value)


@pytest.fixture
async def bench(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr("attestgate.bus.client.cached_key.KEPT_S", 0.0)  # read each time
    return Bench(world, tmp_path)


@threat(rows.POLICY_GAP)
async def test_the_newest_counts_and_an_older_one_is_refused(bench: Bench) -> None:
    for number in (1, 2, 3):
        await bench.put(bench.version(number))
        assert (await bench.policies.in_force()).manifest.version == number
    with pytest.raises(Refusal, match=r"command\.policy"):
        await bench.put(bench.version(2))
    await bench.put(bench.version(3))
    assert (await bench.policies.in_force()).manifest.version == 3


@threat(rows.STATEMENT_ROLLED_BACK)
async def test_a_bus_that_is_set_back_is_brought_forward_again(bench: Bench) -> None:
    await bench.put(bench.version(1))
    await bench.copy("manifest", "kept")
    await bench.put(bench.version(2))
    await bench.copy("kept", "manifest")
    assert (await bench.policies.in_force()).manifest.version == 2
    assert [reason.code for reason in bench.told] == ["rollback"]
    assert (await bench.worker(memory="another").in_force()).manifest.version == 2


@threat(rows.STATEMENT_MOVED)
async def test_a_manifest_on_trial_that_the_bus_copies_is_not_in_force(bench: Bench) -> None:
    """The same author, the same bytes: what a manager said of them is for another key."""
    await bench.put(bench.version(1))
    await bench.try_out(bench.version(2))
    await bench.copy("trial", "manifest")
    assert (await bench.policies.in_force()).manifest.version == 1
    await bench.copy("trial", "manifest")
    with pytest.raises(Refusal, match=r"signature\.invalid"):
        await bench.worker(memory="another").in_force()


async def test_a_trial_is_replaced_by_the_next_whatever_its_version(bench: Bench) -> None:
    await bench.put(bench.version(1))
    for number in (5, 3, 4):
        await bench.try_out(bench.version(number))
        trial = (await bench.policies.in_force()).trial
        assert trial is not None and trial.manifest.version == number
    with pytest.raises(Refusal, match=r"command\.policy"):
        await bench.try_out(bench.version(1, other_author()))
    await bench.put(bench.version(4))
    assert (await bench.policies.in_force()).trial is None


def other_author() -> Signer:
    return Signer(TRUST_DOMAIN, Ed25519PrivateKey.from_private_bytes(b"\x09" * 32))


@threat(rows.KEY_AUTHOR)
@pytest.mark.parametrize("memory", ["one", "new"])
async def test_an_author_who_is_taken_out_gives_back_what_he_took(bench: Bench, memory: str) -> None:
    """A version that nobody can go beyond, and floors that no collateral meets."""
    thief, honest = other_author(), bench.world.author
    both = bench.worker(honest, thief)
    await bench.put(bench.version(3), both)
    stolen = bench.version(2**63 - 1, thief)
    manifest = unpack(PolicyManifest, stolen.manifest.payload).model_copy(update={"min_crl_number": 2**62})
    signed = thief.sign(MANIFEST, MANIFESTS, manifest)
    await bench.put(PutPolicy(manifest=signed, documents=stolen.documents), both)
    assert (await both.in_force()).manifest.version == 2**63 - 1
    assert bench.floors.crl_number == 2**62
    without = bench.worker(honest, memory=memory)
    assert (await without.in_force()).manifest.version == 3
    assert bench.floors.crl_number == 0
    await bench.put(bench.version(4), without)
    assert (await without.in_force()).manifest.version == 4


@threat(rows.POLICY_GAP)
@pytest.mark.parametrize("document", [0, 1, 2])
async def test_no_manifest_is_in_force_or_on_trial_unless_its_documents_load(bench: Bench, document: int) -> None:
    await bench.put(bench.version(1))
    documents = [bench.world.policies.sgx, bench.world.policies.host, bench.world.policies.runtime]
    documents[document] = b'{"nonsense": 1}'
    host = json.loads(bench.world.policies.host) | {"runtime_policy": policy_name(documents[2])}
    if document != 1:
        documents[1] = json.dumps(host).encode()
    sgx, host_document, runtime = documents
    broken = LearnedPolicies(sgx=sgx, host=host_document, runtime=runtime).command(bench.world.author, version=2)
    for put in (bench.put, bench.try_out):
        with pytest.raises(Refusal):
            await put(broken)
    found = await bench.policies.in_force()
    assert (found.manifest.version, found.trial) == (1, None)


@threat(rows.KEY_OPERATOR_POLICY)
async def test_only_what_the_manifest_names_is_stored(bench: Bench) -> None:
    """With the manifest in force, which anybody can read, a stolen operator's key would fill the bucket for good."""
    put = bench.version(1)
    stuffed = put.model_copy(update={"documents": [*put.documents, b"a stranger's"]})
    for send in (bench.put, bench.put, bench.try_out):
        with pytest.raises(Refusal, match=r"command\.policy"):
            await send(stuffed)
    assert await bench.bucket.keys() == []
    await bench.put(put)
    assert len(await bench.bucket.keys()) == 4


@threat(rows.POLICY_GAP)
async def test_documents_that_do_not_belong_together_are_refused(bench: Bench) -> None:
    other = json.dumps(json.loads(bench.world.policies.host) | {"runtime_policy": "00" * 32}).encode()
    apart = LearnedPolicies(sgx=bench.world.policies.sgx, host=other, runtime=bench.world.policies.runtime)
    with pytest.raises(Refusal, match=r"policy\.mismatch"):
        await bench.put(apart.command(bench.world.author, version=1))


@threat(rows.STATEMENT_ROLLED_BACK)
async def test_a_document_that_the_bus_takes_away_or_changes_is_missed(bench: Bench) -> None:
    await bench.put(bench.version(1))
    name = policy_name(bench.world.policies.sgx)
    for change in (b"{}", None):
        await (bench.bucket.put(name, change) if change is not None else bench.bucket.delete(name))
        with pytest.raises(Refusal, match=r"policy\.document"):
            await bench.worker().in_force()


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


async def test_policies_are_read_once_for_all_that_wait(bench: Bench, readings: list[str]) -> None:
    await bench.put(large(bench.world).command(bench.world.author, version=1))
    readings.clear()
    found = await asyncio.gather(*(bench.policies.in_force() for _ in range(5)))
    assert len(readings) == 1
    assert all(one.runtime is found[0].runtime for one in found)


async def test_others_go_on_while_policies_are_read(bench: Bench) -> None:
    await bench.put(large(bench.world).command(bench.world.author, version=1))
    reading, turns = asyncio.create_task(bench.policies.in_force()), 0
    while not reading.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 2 * 20
    assert (await reading).runtime.digests[b"/opt/7"] == {bytes(31) + b"\7"}


async def test_a_newer_manifest_that_comes_while_one_is_read_counts(bench: Bench, readings: list[str]) -> None:
    await bench.put(large(bench.world).command(bench.world.author, version=1))
    readings.clear()
    reading = asyncio.create_task(bench.policies.in_force())
    while not readings:
        await asyncio.sleep(0)
    await bench.put(bench.version(2))
    assert (await reading).manifest.version == 2
