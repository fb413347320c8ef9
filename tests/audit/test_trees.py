"""A tree that is full: the log goes on in the next, whoever is killed or late, and nobody can forge the seam."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from attestgate.bus.layout import LOG, TREE
from attestgate.bus.memory.server import MemoryServer
from attestgate.manager.audit import head
from attestgate.manager.audit.check import check, kept_from
from attestgate.manager.audit.copy import read_log
from attestgate.manager.audit.head import HEAD, Head, open_head, tile_key
from attestgate.manager.audit.merkle import leaf_hash
from attestgate.manager.audit.seam import put_seam
from attestgate.schemas.audit import Continued, open_decision, sign_decision
from attestgate.schemas.base import Refusal, pack
from attestgate.schemas.checkpoint import Checkpoint, origin_of, sign_checkpoint
from attestgate.schemas.signing import Signer, TrustedKeys
from tests.support.audit.keeper import KEY, MANAGERS, NOW, SESSION, SIGNERS, Keeper, copied, entry, findings
from tests.support.bus.fixtures import Join
from tests.support.manager.mortal import Counter, Killed, MortalBus
from tests.support.threats import rows, threat

OTHER = "cd" * 16
TILE = 4
MOST = 4 * TILE
YEAR_S = 366 * 86_400
STRANGER = Signer(KEY.deployment, Ed25519PrivateKey.from_private_bytes(b"\x08" * 32))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "TILE", TILE)


class Log:
    """A log on a bus in memory, whose stream holds fewer entries than a tree has, as the real one does."""

    def __init__(self, folder: Path, most: int = MOST) -> None:
        self.server = MemoryServer()
        self.bus = self.server.connect()
        self.folder = folder
        self.most = most
        self.worker = self.keeper("worker")
        self.decided = 0

    def keeper(self, name: str) -> Keeper:
        """A worker. Its heads are older than what the stream keeps, so that what it has let go is no finding."""
        keeper = Keeper(self.server.connect(), self.folder / name, most=self.most)
        keeper.at = NOW - YEAR_S
        return keeper

    async def decide(self, entries: int) -> None:
        """Hand entries in."""
        await self.worker.decide(self.decided + 1, self.decided + entries)
        self.decided += entries

    async def grow(self, entries: int) -> Checkpoint:
        """Hand entries in and take them into the tree, a few at a time; returns the head."""
        for start in range(0, entries, 3):
            await self.decide(min(3, entries - start))
            await self.worker.grow()
            await self.let_go()
        return self.worker.head

    async def let_go(self) -> None:
        """What the stream's limits do: fewer of the trees' entries stay than a tree has."""
        stream = self.server.streams[LOG.name]
        cursor = open_head(await self.value(), SIGNERS)[1].cursor
        taken = [stored.sequence for stored in stream.items() if stored.sequence <= cursor]
        for sequence in taken[: -(self.most - 1)]:
            stream.remove(sequence)

    async def value(self) -> bytes:
        """The head's bytes."""
        stored = await self.bus.bucket(TREE.name).get(HEAD)
        assert stored is not None and stored.value is not None
        return stored.value

    async def show(self, value: bytes) -> None:
        """What the bus's operator does: another head."""
        await self.bus.bucket(TREE.name).put(HEAD, value)

    def seams(self) -> list[Continued]:
        """What the stream has of them."""
        opened = [open_decision(s.subject, s.data, MANAGERS) for s in self.server.streams[LOG.name].items()]
        return [decision.fact for decision in opened if isinstance(decision.fact, Continued)]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path)


async def refused(keeper: Keeper) -> str:
    """Why a worker does not follow."""
    with pytest.raises(Refusal) as caught:
        await keeper.log.grow()
    return caught.value.reasons[0].code


async def test_it_goes_on_in_the_next_tree(log: Log) -> None:
    """Each decision is once in a tree, in order; the bus has two trees' tiles, however many trees there were."""
    heads = []
    follower = log.keeper("follower")
    for number in range(1, 6 * MOST):
        heads.append(await log.grow(1))
        await follower.grow()
        assert follower.log.checkpoint == log.worker.log.checkpoint
        assert await findings(log.bus) == []
        assert log.worker.log.status().size == number + log.worker.head.tree - 1
    assert [head.tree for head in heads] == sorted(head.tree for head in heads)
    assert {head.tree: head.size for head in heads} == {1: MOST, 2: MOST, 3: MOST, 4: MOST, 5: MOST, 6: MOST, 7: 5}
    assert heads[-1].origin == f"{origin_of(KEY.deployment)}/7"
    keys = await log.bus.bucket(TREE.name).keys()
    assert set(keys) == {HEAD, *(tile_key(n, tree) for n in range(MOST // TILE) for tree in (1, 2))}
    fresh = log.keeper("fresh")
    await fresh.grow()
    assert fresh.log.checkpoint == follower.log.checkpoint
    assert fresh.log.status().size == follower.log.status().size
    assert log.worker.intake.age_s() == fresh.intake.age_s() == 0


@pytest.mark.stack
async def test_two_workers_come_to_the_end_at_once(join: Join, tmp_path: Path) -> None:
    one = Keeper(await join("manager", "m1"), tmp_path / "one", most=MOST)
    two = Keeper(await join("manager", "m2"), tmp_path / "two", most=MOST)

    async def work(keeper: Keeper, session: str) -> None:
        for number in range(1, MOST):
            await keeper.decide(number, number, session)
            await keeper.grow()

    await asyncio.gather(work(one, SESSION), work(two, OTHER))
    await asyncio.gather(one.grow(), two.grow())
    assert one.log.checkpoint == two.log.checkpoint
    assert (one.head.tree, one.head.size) == (2, MOST - 1)
    assert one.intake.age_s() == two.intake.age_s() == 0
    copy = await copied(one.bus)
    assert check(copy, MANAGERS, [], NOW) == []
    assert len(copy.stored) == copy.size == 2 * MOST - 1


@threat(rows.WORKER_KILLED)
@pytest.mark.parametrize("dies_before", range(20))
async def test_killed_before_each_write_nothing_is_lost_or_twice(log: Log, dies_before: int) -> None:
    """A worker that closes a tree and begins the next, killed; whoever comes next finishes."""
    await log.grow(MOST - 2)
    late = log.keeper("late")
    await late.grow()
    mortal = Keeper(MortalBus(log.server.connect(), Counter(dies_before)), log.folder / "mortal", most=MOST)
    mortal.at = log.worker.at

    async def life() -> None:
        for number in range(1, 7):
            await mortal.decide(number, number, OTHER)
            await mortal.grow()

    with suppress(Killed):
        await life()
    assert await findings(log.bus) == []
    heir = log.keeper("mortal")
    await heir.decide(1, 6, OTHER)  # its outboxes are published again
    await heir.grow()
    await late.grow()
    copy = await copied(log.bus)
    assert check(copy, MANAGERS, [], NOW) == []
    assert late.log.checkpoint == heir.log.checkpoint
    assert (copy.size, len(copy.stored), len(log.seams())) == (MOST + 5, MOST + 5, 1)


async def test_a_seam_that_a_worker_stored_before_it_was_killed_is_the_one(log: Log) -> None:
    """Signed with the identity that was replaced meanwhile, and with entries before it that wait for the next tree."""
    full = await log.grow(MOST)
    await log.decide(2)
    seam = await put_seam(log.bus, KEY, MANAGERS, full, MOST)
    await log.decide(2)
    assert await findings(log.bus) == []
    new = Signer(KEY.deployment, Ed25519PrivateKey.from_private_bytes(b"\x09" * 32))
    both = frozenset({new.public, *SIGNERS})
    heir = Keeper(log.server.connect(), log.folder / "heir", new, both, most=MOST)
    heir.at = log.worker.at
    managers = TrustedKeys(KEY.deployment, {"manager": both})
    while await heir.log.grow():
        assert check(await read_log(log.bus, managers), managers, [full], NOW) == []
    copy = await read_log(log.bus, managers)
    assert check(copy, managers, [full], NOW) == []
    assert (copy.seam, copy.newest.size, copy.size) == (seam, 5, MOST + 5)


async def test_a_page_of_the_stream_ends_a_tree_and_begins_the_next(log: Log) -> None:
    await log.decide(2 * MOST - 2)
    await log.worker.grow()
    assert (log.worker.head.tree, log.worker.head.size) == (2, MOST - 1)
    assert await findings(log.bus) == []
    assert log.worker.intake.age_s() == 0


async def test_what_a_worker_hands_in_before_it_has_looked_is_not_missed(log: Log) -> None:
    """A restarted worker without memory repeats outboxes whose entries are in the closed tree."""
    await log.decide(MOST + 4)
    await log.worker.grow()
    fresh = log.keeper("fresh")
    await fresh.decide(MOST - 2, MOST + 4)
    await fresh.grow()
    assert fresh.intake.age_s() == 0
    fresh.at += 100
    assert fresh.intake.overdue() == []


async def test_the_log_goes_on_from_saved_heads_of_both_trees(log: Log) -> None:
    heads = [await log.grow(1) for _ in range(MOST + 5)]
    assert {saved.tree for saved in heads} == {1, 2}
    assert await findings(log.bus, *heads) == []
    for saved in (heads[3], heads[-1]):
        other = saved.model_copy(update={"root": bytes(32)})
        assert await findings(log.bus, other) == ["log.forked"]
        more = saved.model_copy(update={"size": MOST + 1})
        assert await findings(log.bus, more) == ["log.rolled-back"]
    ahead = heads[-1].model_copy(update={"origin": origin_of(KEY.deployment, 3)})
    assert await findings(log.bus, ahead) == ["log.rolled-back"]
    elsewhere = heads[-1].model_copy(update={"origin": origin_of("other.example", 2)})
    assert await findings(log.bus, elsewhere) == ["log.origin"]


async def test_a_saved_head_of_a_tree_that_is_gone_is_named(log: Log) -> None:
    first = await log.grow(MOST // 2)
    await log.grow(2 * MOST)
    assert log.worker.head.tree == 3
    assert await findings(log.bus, first, log.worker.head) == ["log.gone"]


@threat(rows.LOG_SEAM)
async def test_a_worker_that_was_away_for_longer_than_a_tree_is_told(log: Log) -> None:
    await log.grow(MOST // 2)
    away, late = log.keeper("away"), log.keeper("late")
    await away.grow()
    await log.grow(MOST)
    await late.grow()
    await log.grow(MOST)
    assert await refused(away) == "log.gone"
    await late.grow()
    assert late.log.checkpoint == log.worker.log.checkpoint


@threat(rows.LOG_SEAM, rows.LOG_EDITED)
async def test_the_old_trees_head_shown_again_is_found(log: Log) -> None:
    await log.grow(MOST)
    old = await log.value()
    seen = await log.grow(4)
    await log.show(old)
    assert await refused(log.worker) == "log.rolled-back"
    assert await refused(log.keeper("worker")) == "log.rolled-back"
    assert "log.rolled-back" in await findings(log.bus, seen)


@threat(rows.LOG_SEAM, rows.LOG_EDITED)
async def test_the_old_trees_head_shown_as_soon_as_the_next_began_is_found(log: Log) -> None:
    """The entries that both have taken from the stream are the same."""
    await log.grow(MOST)
    old = await log.value()
    await log.decide(1)
    await log.worker.log.grow()
    assert (log.worker.head.tree, log.worker.head.size) == (2, 1)
    await log.show(old)
    assert await refused(log.worker) == "log.rolled-back"


async def test_another_deployments_tree_is_not_followed(log: Log) -> None:
    """Signed by a manager identity that both trust."""
    await log.grow(MOST + 1)
    true, now = open_head(await log.value(), SIGNERS)
    for origin in (origin_of("other.example", 2), f"{origin_of(KEY.deployment)}/02", f"{origin_of(KEY.deployment)}/1"):
        note = sign_checkpoint(KEY.key, now.model_copy(update={"origin": origin}))
        await log.show(pack(true.model_copy(update={"note": note})))
        assert await refused(log.worker) == await refused(log.keeper("fresh")) == "log.origin"


async def test_entries_are_kept_from_the_first_whose_successors_are_kept(log: Log) -> None:
    """In the stream a seam comes after entries that waited for its tree, and stays there longer."""
    await log.grow(MOST)
    await log.decide(3)
    await log.worker.grow()
    (seam,) = (s.sequence for s in log.server.streams[LOG.name].items() if "continued" in str(s.data))
    await log.grow(1)
    for sequence in range(seam):
        log.server.streams[LOG.name].remove(sequence)
    copy = await copied(log.bus)
    assert check(copy, MANAGERS, [], NOW) == []
    assert (kept_from(copy), copy.size) == (MOST + 4, MOST + 5)


async def test_what_is_before_the_oldest_tree_in_the_stream_is_not_its_entries(log: Log) -> None:
    await log.grow(MOST)
    for _ in range(3):
        await log.bus.publish(entry(1)[0].replace("a1", "a2"), b"garbage")
    await log.decide(MOST)
    await log.worker.grow()
    for sequence in range(MOST + 1):
        log.server.streams[LOG.name].remove(sequence)
    copy = await copied(log.bus)
    assert (copy.checkpoint.tree, copy.first) == (3, MOST)
    assert await findings(log.bus) == ["log.injected", "log.forged"]


async def begun(log: Log, said: Mapping[str, object], key: Signer = KEY) -> bytes:
    """A head of one entry, the seam, in which this is different; the head itself is a manager's."""
    true, now = open_head(await log.value(), SIGNERS)
    subject = next(s.subject for s in log.server.streams[LOG.name].items() if s.data == true.seam)
    decision = open_decision(subject, true.seam, MANAGERS)
    decision = decision.model_copy(update={"fact": decision.fact.model_copy(update=said)})
    seam = sign_decision(key, subject, decision)
    return headed(seam, now)


def headed(seam: bytes, now: Checkpoint) -> bytes:
    leaf = leaf_hash(seam)
    checkpoint = now.model_copy(update={"size": 1, "root": leaf})
    return pack(Head(note=sign_checkpoint(KEY.key, checkpoint), leaves=leaf, seam=seam))


async def outcomes(log: Log, value: bytes) -> dict[str, str]:
    """What a worker makes of a head that has seen the tree before, one that has seen none, and a verifier."""
    await log.show(value)
    found = {name: await refused(log.keeper(name)) for name in ("before", "fresh")}
    try:
        codes = await findings(log.bus)
    except Refusal as refusal:
        codes = [reason.code for reason in refusal.reasons]
    return found | {"verify": codes[0]}


@threat(rows.LOG_SEAM)
@pytest.mark.parametrize(
    ("said", "codes"),
    [
        ({"root": "ab" * 32}, ("log.forked", "log.forked", "log.leaves")),
        ({"size": MOST - TILE, "entries": MOST - TILE}, ("log.rolled-back", "log.forked", "log.leaves")),
        ({"size": MOST + TILE, "entries": MOST + TILE}, ("log.leaves",) * 3),
        ({"size": MOST - 1, "entries": MOST - 1}, ("log.seam",) * 3),
        ({"size": 0, "entries": 0}, ("log.seam",) * 3),
        ({"entries": MOST + 1}, ("log.seam",) * 3),
        ({"entries": MOST - 1}, ("log.seam",) * 3),
        ({"origin": origin_of("other.example")}, ("log.seam",) * 3),
        ({"origin": origin_of(KEY.deployment, 2)}, ("log.seam",) * 3),
    ],
)
async def test_a_seam_that_says_something_else_is_refused(
    log: Log, said: dict[str, object], codes: tuple[str, str, str]
) -> None:
    """Signed by a manager: one whose bus showed it another log, or whose key was stolen."""
    await log.grow(MOST)
    await log.keeper("before").grow()
    await log.grow(1)
    true = await log.value()
    await log.show(await begun(log, {}))
    for name in ("before", "fresh"):
        await Keeper(log.server.connect(), log.folder / "control" / name, most=MOST).log._follow()
    await log.show(true)
    assert tuple((await outcomes(log, await begun(log, said))).values()) == codes


async def test_a_seam_of_the_third_tree_counts_all_entries(log: Log) -> None:
    """A verifier finds it by the seam before, where the stream has that still."""
    await log.grow(2 * MOST - 2)
    await log.keeper("before").grow()
    await log.decide(2)
    await log.worker.grow()
    assert log.worker.head.tree == 3 and len(log.seams()) == 2
    true = await log.value()
    for entries in (2 * MOST - 1, 2 * MOST + 1):
        await log.show(true)
        assert await findings(log.bus) == []
        await log.show(await begun(log, {"entries": entries}))
        assert await refused(log.keeper("before")) == "log.seam"
        assert "log.seam" in await findings(log.bus)
    await log.show(true)
    assert set((await outcomes(log, await begun(log, {"entries": MOST}))).values()) == {"log.seam"}


@threat(rows.LOG_SEAM)
@pytest.mark.parametrize("harm", ["none", "a stranger's", "another entry", "a seam of the next tree"])
async def test_a_seam_that_is_none_is_refused(log: Log, harm: str) -> None:
    await log.grow(MOST)
    await log.keeper("before").grow()
    await log.grow(1)
    now = log.worker.head
    match harm:
        case "none":
            value, code = headed(b"", now), "log.seam"
        case "a stranger's":
            value, code = await begun(log, {}, STRANGER), "signature.signer"
        case "another entry":
            value, code = headed(entry(3)[1], now), "signature.invalid"
        case _:
            closed = now.model_copy(update={"origin": origin_of(KEY.deployment, 2), "size": MOST})
            value, code = headed(await put_seam(log.bus, KEY, MANAGERS, closed, MOST), now), "signature.invalid"
    assert set((await outcomes(log, value)).values()) == {code}


@threat(rows.LOG_SEAM)
async def test_a_seam_exchanged_beside_a_true_head_is_refused(log: Log) -> None:
    """The head's signature covers the tree alone: what is carried beside it is not built upon, nor passed on."""
    await log.grow(MOST)
    await log.keeper("before").grow()
    await log.grow(2)
    true = open_head(await log.value(), SIGNERS)[0]
    subject = next(s.subject for s in log.server.streams[LOG.name].items() if s.data == true.seam)
    later = open_decision(subject, true.seam, MANAGERS).model_copy(update={"at": NOW})
    for seam in (b"", entry(1)[1], sign_decision(KEY, subject, later)):
        await log.show(pack(true.model_copy(update={"seam": seam})))
        assert await refused(log.worker) == "log.seam"
    for name in ("before", "fresh"):
        assert await refused(log.keeper(name)) == "log.seam"
    assert await findings(log.bus) == ["log.seam"]
    await log.show(pack(true))
    await log.grow(1)
    assert await findings(log.bus) == []


@threat(rows.LOG_SEAM)
async def test_a_first_tree_has_no_seam(log: Log) -> None:
    """Not even its own first entry, which a worker without memory would pass on."""
    await log.grow(3)
    true = open_head(await log.value(), SIGNERS)[0]
    await log.show(pack(true.model_copy(update={"seam": entry(1)[1]})))
    assert await refused(log.worker) == await refused(log.keeper("fresh")) == "log.seam"
    assert await findings(log.bus) == ["log.seam"]


@threat(rows.LOG_SEAM)
async def test_a_tree_that_continues_another_log_is_not_followed(log: Log) -> None:
    """Two workers were both told that they won: each signs trees of its own, true in itself."""
    await log.grow(3)
    await log.keeper("before").grow()
    other = Log(log.folder / "other")
    other.decided = 100
    await other.grow(MOST + 3)
    await log.grow(MOST)
    for bucket in (None, other.server.snapshot(TREE.name)):
        if bucket is None:
            await log.show(await other.value())
        else:
            log.server.restore(TREE.name, bucket)
        assert await refused(log.keeper("before")) == "log.forked"
        assert await refused(log.worker) == "log.forked"


@threat(rows.LOG_SEAM, rows.LOG_EDITED)
async def test_a_seam_dropped_from_the_stream_is_missed_and_the_log_goes_on(log: Log) -> None:
    before = await log.grow(MOST)
    await log.grow(2)
    stream = log.server.streams[LOG.name]
    seam = open_head(await log.value(), SIGNERS)[0].seam
    (stored,) = (stored for stored in stream.items() if stored.data == seam)
    stream.remove(stored.sequence)
    assert await findings(log.bus, before, log.worker.head) == ["log.dropped"]
    await log.grow(3)
    fresh = log.keeper("fresh")
    await fresh.grow()
    assert fresh.log.checkpoint == log.worker.log.checkpoint
    (finding,) = check(await copied(log.bus), MANAGERS, [before], NOW)
    assert finding.field == f"entries {MOST}"


@threat(rows.LOG_SEAM)
async def test_a_seam_that_was_stored_again_is_taken_into_no_tree(log: Log) -> None:
    await log.grow(MOST + 6)
    seam = next(s for s in log.server.streams[LOG.name].items() if "continued" in str(s.data))
    await log.bus.publish(seam.subject, seam.data)
    head = await log.grow(2)
    assert await findings(log.bus, head) == ["log.order"]
    assert head.size == 9


async def test_a_seam_before_entries_of_the_closed_tree_is_out_of_order(log: Log) -> None:
    """Honestly it comes after all of these, and where it may among those of its own tree."""
    await log.grow(MOST + 3)
    copy = await copied(log.bus)
    places = [copy.index[leaf_hash(stored.data)] for stored in copy.stored]
    seam, others = copy.stored[places.index(MOST)], [s for s in copy.stored if copy.index[leaf_hash(s.data)] != MOST]
    last = places.index(MOST - 1)
    found = {
        at: [
            finding.code
            for finding in check(replace(copy, stored=[*others[:at], seam, *others[at:]]), MANAGERS, [], NOW)
        ]
        for at in range(last - 1, len(copy.stored))
    }
    assert {at for at, codes in found.items() if codes == ["log.order"]} == {last - 1, last}
    assert {at for at, codes in found.items() if codes == []} == set(range(last + 1, len(copy.stored)))


async def test_a_strangers_message_in_the_place_of_the_seam_stops_nothing(log: Log) -> None:
    full = await log.grow(MOST)
    other = Log(log.folder / "other")
    await other.grow(MOST + 1)
    subject = next(s.subject for s in other.server.streams[LOG.name].items() if "continued" in str(s.data))
    await log.bus.publish(subject, b"garbage")
    now = await log.grow(2)
    assert (now.tree, now.size) == (2, 3)
    assert await findings(log.bus, full, now) == ["log.edited", "log.forged"]
    assert [what for what, _ in log.worker.told] == ["log-stranger"]


async def test_what_is_gone_of_the_closed_tree_is_found(log: Log) -> None:
    await log.grow(MOST + 1)
    bucket = log.bus.bucket(TREE.name)
    tile = await bucket.get(tile_key(1))
    assert tile is not None and tile.value is not None
    await bucket.put(tile_key(1), bytes(32) + tile.value[32:])
    assert await findings(log.bus) == ["log.leaves"]
    assert await refused(log.keeper("fresh")) == "log.forked"
    await bucket.delete(tile_key(1))
    assert await refused(log.keeper("fresh")) == "log.leaves"
    await log.grow(1)  # the worker that has checked it needs it no more


@threat(rows.LOG_SEAM, rows.LOG_EDITED)
async def test_an_entry_that_is_in_both_trees_is_found(log: Log) -> None:
    """The bus shows an entry again once its tree is closed."""
    await log.grow(MOST)
    await log.bus.publish(*entry(MOST))
    await log.grow(1)
    assert await findings(log.bus) == ["log.repeated"]


Step = tuple[int, int, str]
STEPS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2), st.sampled_from(["", "save", "restart"])), max_size=40)


@given(STEPS)
async def test_an_honest_log_is_accepted_by_all_who_look_at_any_time(steps: list[Step]) -> None:
    """Three workers take turns, look rarely, lose their memory; a verifier has heads of any age. Who has missed a whole
    tree is told so."""
    with TemporaryDirectory() as folder:
        log = Log(Path(folder), most=2 * TILE)
        workers = [log.keeper(str(number)) for number in range(3)]
        saved: list[Checkpoint] = []
        newest = 1
        for entries, number, then in steps:
            await log.decide(entries)
            seen = workers[number].memory.seen
            if seen.note and seen.tree < newest - 1:
                assert await refused(workers[number]) == "log.gone"
                (log.folder / str(number)).rename(log.folder / f"gone {len(list(log.folder.iterdir()))}")
                workers[number] = log.keeper(str(number))
            elif then == "restart":
                workers[number] = log.keeper(str(number))
            await workers[number].grow()
            if not workers[number].log.checkpoint:
                continue
            newest = workers[number].head.tree
            if then == "save":
                saved.append(workers[number].head)
            await log.let_go()
            copy = await copied(log.bus)
            gone = [head for head in saved if head.tree < newest - 1]
            assert [finding.code for finding in check(copy, MANAGERS, saved, NOW)] == ["log.gone"] * len(gone)
            assert copy.size == workers[number].log.status().size
            assert kept_from(copy) >= copy.first
