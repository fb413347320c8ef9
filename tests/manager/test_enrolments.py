"""Enrolments: an operator's signature, a manager's beside it; the newest of those who are in the settings now."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attestgate.bus.api import BusError, Conflict, Entry
from attestgate.bus.memory.bucket import MemoryBucket
from attestgate.bus.memory.server import MemoryServer
from attestgate.manager.local.marks import Marks
from attestgate.manager.local.statements import Statements
from attestgate.manager.policy import in_force
from attestgate.manager.policy.applied_commands import AppliedCommands
from attestgate.manager.policy.enrolments import BUCKET, Enrolments
from attestgate.manager.policy.in_force import StatementsInForce
from attestgate.manager.policy.signers import Signers
from attestgate.manager.sessions.record import Basis
from attestgate.schemas.base import Reason, Refusal, pack, unpack
from attestgate.schemas.binding import PROTOCOL
from attestgate.schemas.enrolment import COMMAND, MAX_AUTHORS, Command, Enrol, HostEnrolment, Revoke, commands_of
from attestgate.schemas.in_force import IN_FORCE, InForce, Standing, Standings, digest_of, place_of
from attestgate.schemas.settings import OperatorSettings
from attestgate.schemas.signing import Signed, Signer, TrustedKeys
from tests.support.manager.world import TRUST_DOMAIN
from tests.support.reasons import refusal_code
from tests.support.threats import rows, threat

AT = 1_800_000_000
MANAGER = Signer(TRUST_DOMAIN, Ed25519PrivateKey.from_private_bytes(b"\x01" * 32))
OPERATORS = {
    name: Signer(TRUST_DOMAIN, Ed25519PrivateKey.from_private_bytes(bytes([2 + number]) * 32))
    for number, name in enumerate(["ann", "bob", "eve", *(f"op-{n}" for n in range(MAX_AUTHORS))])
}
PLACE = place_of(BUCKET, "host.h1")


class Bench:
    """A bucket that the bus may write, and workers that read it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bucket = MemoryServer().connect().bucket(BUCKET)
        self.told: list[Reason] = []
        self.steady = 0.0

    async def _tell(self, reason: Reason) -> None:
        self.told.append(reason)

    def worker(self, *names: str, memory: str = "one", authors: Iterable[str] = ()) -> Enrolments:
        """A worker whose settings name these operators, and these keys as policy authors'."""
        named = [(name, "operator") for name in names or ("ann",)] + [(name, "policy-author") for name in authors]
        operators = [
            OperatorSettings(name=name, role=role, identity=OPERATORS[name].public.hex()) for name, role in named
        ]
        signers = Signers(TRUST_DOMAIN, operators, {MANAGER.public})
        kept = Statements(self.folder / f"{memory}.sqlite")
        held = StatementsInForce(
            BUCKET, self.bucket, COMMAND, signers.commands_of, MANAGER, signers.trusted, kept, self._tell
        )
        self.marks = Marks(self.folder / f"{memory}-marks.sqlite", lambda: 0.0)
        return Enrolments(self.bucket, held, self.marks, lambda: self.steady)

    async def put(self, *standing: Standing, key: str = "host.h1") -> None:
        """What the bus writes."""
        await self.bucket.put(key, pack(Standings(version=PROTOCOL, standing=list(standing))))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def enrol(sequence: int, id: str = "h1", expires_at: int = AT + 60) -> Command:
    subject = HostEnrolment(id=id, mrenclaves=[f"{sequence:064x}"], platform="22" * 32)
    return Command(sequence=sequence, expires_at=expires_at, action=Enrol(subject=subject))


def revoke(sequence: int) -> Command:
    return Command(sequence=sequence, expires_at=AT + 60, action=Revoke(kind="host", id="h1", reason="stolen"))


def signed(command: Command, by: str = "ann", place: str = "", deployment: str = TRUST_DOMAIN) -> Signed:
    return Signer(deployment, OPERATORS[by].key).sign(COMMAND, place or commands_of(by), command)


def said(statement: Signed, order: int, at: int = AT) -> InForce:
    name = digest_of(pack(statement))
    return InForce(statement=name, command=name, operator="ann", order=order, applied_at=at)


def standing(
    command: Command,
    by: str = "ann",
    place: str = PLACE,
    manager: Signer = MANAGER,
    author_place: str = "",
    deployment: str = TRUST_DOMAIN,
) -> Standing:
    return put_in_force(signed(command, by, author_place, deployment), command.sequence, place, manager)


def put_in_force(statement: Signed, order: int, place: str = PLACE, manager: Signer = MANAGER) -> Standing:
    """A statement beside what a manager says of it."""
    return Standing(statement=statement, in_force=manager.sign(IN_FORCE, place, said(statement, order)))


async def order(worker: Enrolments, command: Command, by: str = "ann") -> None:
    statement = signed(command, by)
    await worker.put("host", "h1", statement, command, said(statement, command.sequence), None)


async def sequence_in_force(worker: Enrolments) -> int:
    """Whose enrolment counts: its measurement is its sequence; 0 where there is none."""
    try:
        return int((await worker.host("h1")).subject.mrenclaves[0], 16)
    except Refusal as refusal:
        assert refusal.reasons[0].code in ("enrolment.unknown", "signature.signer")
        return 0


async def test_what_a_manager_put_in_force_counts(bench: Bench) -> None:
    await order(bench.worker(), enrol(7))
    assert await sequence_in_force(bench.worker(memory="two")) == 7


async def test_signatures_are_checked_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[Signed] = []
    read = TrustedKeys.read

    def noted(keys: TrustedKeys, purpose: Any, statement: Signed, *arguments: Any) -> Any:
        checked.append(statement)
        return read(keys, purpose, statement, *arguments)

    monkeypatch.setattr(TrustedKeys, "read", noted)
    monkeypatch.setattr(in_force, "BELIEVED", 2)
    worker = bench.worker()
    await bench.put(standing(enrol(1)))
    for _ in range(3):
        await worker.host("h1")
    assert len(checked) == 2, "the author's and the manager's"
    for sequence in (2, 3):
        await bench.put(standing(enrol(sequence)))
        await worker.host("h1")
    assert len(checked) == 6
    assert len(worker._in_force._believed) == 2


NOT_IN_FORCE = {
    "of a policy author": (standing(enrol(5), "eve"), "signature.signer"),
    "of a stranger": (standing(enrol(5), "op-1"), "signature.signer"),
    "of a manager": (put_in_force(MANAGER.sign(COMMAND, commands_of("ann"), enrol(5)), 5), "signature.signer"),
    "for another deployment": (standing(enrol(5), deployment="other.example"), "signature.invalid"),
    "in another operator's name": (standing(enrol(5), author_place=commands_of("bob")), "signature.invalid"),
    "that no manager put in force": (standing(enrol(5), manager=OPERATORS["ann"]), "signature.signer"),
    "that was put in force for another host": (
        standing(enrol(5), place=place_of(BUCKET, "host.h2")),
        "signature.invalid",
    ),
    "that was put in force in another bucket": (
        standing(enrol(5), place=place_of("policies", "host.h1")),
        "signature.invalid",
    ),
    "beside another's word": (
        Standing(statement=signed(enrol(5)), in_force=standing(enrol(6)).in_force),
        "in-force.statement",
    ),
}


@threat(rows.STATEMENT_MOVED, rows.CREDENTIAL_MANAGER, rows.KEY_MANAGER_ENROLS)
@pytest.mark.parametrize("what", NOT_IN_FORCE)
async def test_what_the_bus_puts_there_is_refused_with_its_reason(bench: Bench, what: str) -> None:
    found, code = NOT_IN_FORCE[what]
    await bench.put(found)
    worker = bench.worker("ann", "bob", authors=["eve"])
    for _ in range(2):
        with pytest.raises(Refusal) as refusal:
            await worker.host("h1")
        assert refusal_code(refusal) == code
    await order(worker, enrol(1))
    assert await sequence_in_force(worker) == 1, "and keeps no operator from enrolling"


@threat(rows.STATEMENT_MOVED)
@pytest.mark.parametrize("part", ["statement", "in_force"])
@pytest.mark.parametrize("field", ["payload", "signature", "signer"])
async def test_what_was_believed_lends_a_forgery_nothing(bench: Bench, part: str, field: str) -> None:
    good, other = standing(enrol(1)), standing(enrol(2))
    await bench.put(good)
    worker = bench.worker()
    assert await sequence_in_force(worker) == 1
    changed = getattr(other, part).model_copy(update={"signer": bytes(32)} if field == "signer" else {})
    forged = getattr(good, part).model_copy(update={field: getattr(changed, field)})
    await bench.put(good.model_copy(update={part: forged}))
    assert await sequence_in_force(worker) == 1
    assert [reason.code for reason in bench.told] == ["rollback"]
    with pytest.raises(Refusal, match=r"signature\.|in-force\."):
        await Bench.worker(bench, memory="new")._in_force.newest("host.h1", await _forged(bench, good, part, forged))


async def _forged(bench: Bench, good: Standing, part: str, forged: Signed) -> Any:
    await bench.put(good.model_copy(update={part: forged}))
    return await bench.bucket.get("host.h1")


@pytest.mark.parametrize("value", [b"", b"\xc1", pack(signed(enrol(5)))])
async def test_bytes_that_are_no_standing_are_refused(bench: Bench, value: bytes) -> None:
    await bench.bucket.put("host.h1", value)
    with pytest.raises(Refusal, match=r"message\.|protocol\.version"):
        await bench.worker().host("h1")


@threat(rows.STATEMENT_MOVED)
async def test_a_command_that_was_put_in_force_after_it_expired_is_none(bench: Bench) -> None:
    await bench.put(standing(enrol(5, expires_at=AT - 1)))
    with pytest.raises(Refusal, match=r"enrolment\.expired"):
        await bench.worker().host("h1")


@threat(rows.STATEMENT_ROLLED_BACK)
async def test_a_bucket_that_was_set_back_is_brought_forward_again(bench: Bench) -> None:
    worker = bench.worker()
    await order(worker, enrol(1))
    older = await bench.bucket.get("host.h1")
    assert older is not None and older.value is not None
    await order(worker, revoke(2))
    await bench.bucket.put("host.h1", older.value)
    with pytest.raises(Refusal, match=r"enrolment\.revoked"):
        await worker.host("h1")
    assert [(reason.code, reason.field, reason.found) for reason in bench.told] == [("rollback", PLACE, "1")]
    with pytest.raises(Refusal, match=r"enrolment\.revoked"):
        await bench.worker(memory="another").host("h1")
    await bench.bucket.delete("host.h1")
    with pytest.raises(Refusal, match=r"enrolment\.revoked"):
        await bench.worker().host("h1")  # started again, with its memory
    assert bench.told[-1].found == "nothing in force"


async def test_a_worker_that_writes_first_is_no_rollback(bench: Bench) -> None:
    """Read before another task of this worker put a newer one there, and used after."""
    worker = bench.worker()
    await order(worker, enrol(1))
    before = await bench.bucket.get("host.h1")
    await order(worker, enrol(2))
    held = await worker._in_force.newest("host.h1", before)
    assert held is not None and held.said.order == 2
    assert bench.told == []


async def test_an_older_command_is_refused_and_the_same_again_is_not(bench: Bench) -> None:
    worker = bench.worker("ann", "bob")
    await order(worker, enrol(2))
    await order(worker, enrol(2))
    for older, by in ((enrol(1), "ann"), (revoke(2), "bob"), (revoke(1), "bob")):
        with pytest.raises(Refusal, match=r"command\.sequence"):
            await order(worker, older, by)
    assert await sequence_in_force(worker) == 2


@threat(rows.COMPARE_AND_SET_LOST)
async def test_a_bus_that_has_a_worker_lose_every_compare_and_set_gains_no_loop(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(*_: Any) -> int:
        raise Conflict("lost")

    monkeypatch.setattr(bench.bucket, "create", lost)
    with pytest.raises(Conflict):
        await order(bench.worker(), enrol(1))
    trusted = TrustedKeys(TRUST_DOMAIN, {"manager": {MANAGER.public}})
    applied = AppliedCommands(bench.bucket, MANAGER, trusted, Statements(bench.folder / "applied.sqlite"))
    with pytest.raises(Conflict):
        await applied.note(OPERATORS["ann"].public, said(signed(enrol(1)), 1))


def fill_disk(worker: Enrolments) -> Statements:
    """From here on no row more goes into the worker's file."""
    memory = worker._in_force._memory
    memory._file.execute("PRAGMA max_page_count = 1")
    while True:
        try:
            memory._file.execute("INSERT INTO kept VALUES (?, ?, 0, ?)", (str(uuid4()), b"", bytes(100)))
        except sqlite3.OperationalError:
            return memory


@threat(rows.DISK_FULL)
async def test_a_full_disk_holds_up_no_revocation(bench: Bench) -> None:
    """It is in force, the worker says so, and it knows of it until it ends; once there is room, also after that."""
    worker = bench.worker()
    memory = fill_disk(worker)
    await order(worker, enrol(1))
    older = await bench.bucket.get("host.h1")
    assert older is not None and older.value is not None
    await order(worker, revoke(2))
    await bench.bucket.put("host.h1", older.value)
    with pytest.raises(Refusal, match=r"enrolment\.revoked"):
        await worker.host("h1")
    assert [reason.code for reason in bench.told] == ["rollback"]
    memory._file.execute("PRAGMA max_page_count = 1000")
    await order(worker, revoke(3))
    assert Statements(bench.folder / "one.sqlite").of(PLACE)[OPERATORS["ann"].public].order == 3


async def test_what_did_not_reach_a_full_disk_goes_there_with_the_next(bench: Bench) -> None:
    memory = fill_disk(bench.worker())
    memory.keep("a", b"ann", 2, bytes(5000))
    memory.keep("a", b"ann", 1, b"older")
    assert memory.of("a") == {b"ann": (2, bytes(5000))}
    memory._file.execute("PRAGMA max_page_count = 1000")
    memory.keep("b", b"bob", 1, b"bob's")
    again = Statements(bench.folder / "one.sqlite")
    assert (again.of("a"), again.of("b")) == ({b"ann": (2, bytes(5000))}, {b"bob": (1, b"bob's")})
    memory.keep("a", b"ann", 3, b"newer")
    assert memory.of("a") == again.of("a") == {b"ann": (3, b"newer")}


@threat(rows.DISK_FULL)
async def test_a_full_disk_refuses_nobody_who_is_enrolled(bench: Bench) -> None:
    worker = bench.worker()
    fill_disk(worker)
    await bench.put(standing(enrol(5)))
    assert await sequence_in_force(worker) == 5


@threat(rows.LIST_OLDER)
async def test_what_is_signed_by_an_older_list_of_the_bus_is_refused(bench: Bench) -> None:
    """An operator signs again what others have signed, by a list without a revocation that a worker knows of."""
    worker = bench.worker("ann", "bob", "eve")
    await order(worker, enrol(1))
    await order(worker, enrol(2), "bob")
    listed = [digest_of(pack(signed(command, by))) for command, by in ((enrol(1), "ann"), (enrol(2), "bob"))]
    await order(worker, revoke(3))
    for known in (worker, bench.worker("bob", "eve")):  # also once ann is out of the settings
        with pytest.raises(Refusal, match=r"command\.unseen: enrolment/host\.h1: .* ann, 3"):
            await order(known, enrol(4).model_copy(update={"seen": listed}), "eve")
    listed.append(digest_of(pack(signed(revoke(3)))))
    again = enrol(4).model_copy(update={"seen": listed})
    for _ in range(2):
        await order(worker, again, "eve")
    assert await sequence_in_force(worker) == 4


@threat(rows.STATEMENTS_SPLIT)
@pytest.mark.parametrize("memory", ["seen both", "seen one", "new"])
async def test_of_two_of_the_same_order_the_bus_does_not_choose(bench: Bench, memory: str) -> None:
    """Put in force by two workers to whom the bus has shown different states: in whatever order they are listed."""
    both = [standing(enrol(5), "ann"), standing(revoke(5), "bob")]
    found = []
    if memory == "seen one":
        await bench.put(both[1])
        await bench.worker("ann", "bob", memory=memory)._in_force.newest("host.h1", await bench.bucket.get("host.h1"))
    for listed in (both, both[::-1]):
        await bench.put(*listed)
        held = await bench.worker("ann", "bob", memory=memory)._in_force.newest(
            "host.h1", await bench.bucket.get("host.h1")
        )
        assert held is not None
        found.append(held.author)
    assert found[0] == found[1]


@threat(rows.KEY_OPERATOR)
@pytest.mark.parametrize("memory", ["one", "new"])
async def test_a_stolen_key_that_is_taken_out_gives_back_what_it_took(bench: Bench, memory: str) -> None:
    """And undoes nothing that an honest key did, also where a worker has seen all of it."""
    both = bench.worker("ann", "eve")
    await order(both, enrol(10))
    await order(both, revoke(20))
    await order(both, enrol(30), "eve")
    assert await sequence_in_force(both) == 30
    without = bench.worker("ann", memory=memory)
    with pytest.raises(Refusal, match=r"enrolment\.revoked"):
        await without.host("h1")
    await order(without, enrol(21))
    assert await sequence_in_force(without) == 21


@threat(rows.KEY_OPERATOR)
async def test_a_key_of_the_last_sequence_locks_nobody_out_for_good(bench: Bench) -> None:
    both = bench.worker("ann", "eve")
    await order(both, enrol(1))
    await order(both, enrol(2**63 - 1), "eve")
    without = bench.worker("ann")
    await order(without, enrol(2))
    assert await sequence_in_force(without) == 2


async def test_what_stands_beside_the_newest_is_kept_for_workers_with_other_settings(bench: Bench) -> None:
    """While settings are rolled out, a worker writes that does not know the new operator yet."""
    await order(bench.worker("ann", "bob"), enrol(5), "bob")
    await order(bench.worker("ann", memory="old settings"), enrol(6))
    assert await sequence_in_force(bench.worker("bob", memory="two")) == 5


async def test_so_many_authors_are_kept_the_newest(bench: Bench) -> None:
    names = [f"op-{number}" for number in range(MAX_AUTHORS)]
    worker = bench.worker("ann", *names)
    await order(worker, enrol(1))
    for number, name in enumerate(names):
        await order(worker, enrol(10 + number), name)
    entry = await bench.bucket.get("host.h1")
    assert entry is not None and entry.value is not None
    kept = unpack(Standings, entry.value).standing
    assert [unpack(Command, one.statement.payload).sequence for one in kept] == [17, 16, 15, 14, 13, 12, 11, 10]


class Story:
    """Who said what in which order, to workers with which settings."""

    people = ("ann", "bob", "eve")
    step = st.tuples(st.sampled_from(people), st.integers(1, 9), st.booleans(), st.integers(0, 1))
    steps = st.lists(step, max_size=12)
    left = st.sets(st.sampled_from(people), min_size=1)


@threat(rows.KEY_OPERATOR)
@given(steps=Story.steps, left=Story.left)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_in_force_is_the_newest_of_those_in_the_settings(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, bool, int]], left: set[str]
) -> None:
    """Whoever else has said anything before, whichever worker took it, and whether a worker remembers it or not."""

    async def play() -> None:
        bench = Bench(tmp_path_factory.mktemp("story"))
        workers = [bench.worker(*Story.people, memory=f"worker-{n}") for n in range(2)]
        newest: dict[str, tuple[int, bool]] = {}
        for by, sequence, enrols, worker in steps:
            if sequence <= max((order for order, _ in newest.values()), default=0):
                continue
            await order(workers[worker], enrol(sequence) if enrols else revoke(sequence), by)
            newest[by] = sequence, enrols
        counting = [said for name, said in newest.items() if name in left]
        sequence, enrols = max(counting, default=(0, True))
        for memory in ("worker-0", "worker-1", "new"):
            worker_left = bench.worker(*left, memory=memory)
            if enrols:
                expected = sequence
                assert await sequence_in_force(worker_left) == expected
            else:
                with pytest.raises(Refusal, match=r"enrolment\.revoked"):
                    await worker_left.host("h1")

    asyncio.run(play())


@threat(rows.ENROLMENT_CHANGED)
async def test_a_lease_rests_on_an_enrolment_read_at_most_a_second_before(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await order(bench.worker(), enrol(5))
    get, takes = MemoryBucket.get, 1.0

    async def slow(bucket: MemoryBucket, key: str) -> Entry | None:
        bench.steady += takes
        return await get(bucket, key)

    monkeypatch.setattr(MemoryBucket, "get", slow)
    await bench.worker().check_still("host", "h1", Basis(enrolled=5, policy=1))
    takes = 1.1
    with pytest.raises(BusError, match="not read within 1 s"):
        await bench.worker().check_still("host", "h1", Basis(enrolled=5, policy=1))


@threat(rows.ENROLMENT_CHANGED)
@pytest.mark.parametrize("basis", [None, Basis(enrolled=4, policy=1), Basis(enrolled=6, policy=1)])
async def test_a_lease_rests_on_the_enrolment_that_its_evidence_was_judged_by(
    bench: Bench, basis: Basis | None
) -> None:
    await order(bench.worker(), enrol(5))
    with pytest.raises(Refusal, match=r"enrolment\.changed"):
        await bench.worker().check_still("host", "h1", basis)


@threat(rows.WORKERS_PARTED, rows.STATEMENT_ROLLED_BACK)
async def test_an_enrolment_before_one_that_a_gateway_has_seen_does_not_count(bench: Bench) -> None:
    worker = bench.worker()
    await order(worker, enrol(5))
    bench.marks.rests_on("host.h1", 6, 1)
    with pytest.raises(Refusal, match=r"enrolment\.rollback: .* expected the enrolment of 6"):
        await worker.host("h1")
    await order(worker, enrol(7))
    assert (await worker.host("h1")).order == 7


@threat(rows.REVOCATION_HIDDEN)
async def test_a_revocation_counts_however_late_it_was_applied(bench: Bench) -> None:
    late = Command(sequence=5, expires_at=AT - 1, action=Revoke(kind="host", id="h1", reason="x"))
    await bench.put(standing(late))
    with pytest.raises(Refusal, match=r"enrolment\.revoked"):
        await bench.worker().host("h1")
