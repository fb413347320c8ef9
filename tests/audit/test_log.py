"""Several workers keep one log: nothing twice, nothing lost, over every restart; it verifies from any older head."""

from __future__ import annotations

import asyncio
from collections import Counter as Counted
from collections.abc import Iterable
from contextlib import aclosing, suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestgate.bus.api import ONCE, BusError, Conflict
from attestgate.bus.layout import LOG, TREE
from attestgate.bus.memory.server import MemoryServer
from attestgate.manager.audit import follow, head, log
from attestgate.manager.audit.check import check
from attestgate.manager.audit.copy import read_log
from attestgate.manager.audit.head import HEAD, open_head, tile_key
from attestgate.manager.audit.merkle import Frontier, consistency_proof, goes_on, leaf_hash
from attestgate.schemas.audit import Decision
from attestgate.schemas.audit import open_decision as verified_decision
from attestgate.schemas.base import Refusal
from attestgate.schemas.signing import Signer, TrustedKeys
from tests.support.audit.keeper import KEY, NOW, SESSION, SIGNERS, Keeper, copied, entry, findings
from tests.support.bus.fixtures import Join
from tests.support.manager.mortal import Counter, Killed, MortalBus
from tests.support.threats import rows, threat

OTHER = "cd" * 16
TILE = 8


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few entries fill some."""
    monkeypatch.setattr(head, "TILE", TILE)


@pytest.mark.stack
async def test_two_workers_append_at_once(join: Join, tmp_path: Path) -> None:
    one = Keeper(await join("manager", "m1"), tmp_path / "one")
    two = Keeper(await join("manager", "m2"), tmp_path / "two")

    async def work(keeper: Keeper, session: str) -> None:
        for number in range(1, 41):
            await keeper.decide(number, number, session)
            await keeper.grow()

    await asyncio.gather(work(one, SESSION), work(two, OTHER))
    await asyncio.gather(one.grow(), two.grow())
    assert one.log.checkpoint == two.log.checkpoint
    assert one.head.size == 80
    assert one.log.status().pending_s == two.log.status().pending_s == 0
    assert await findings(one.bus) == []


@pytest.mark.stack
async def test_a_running_worker_takes_in_what_it_is_handed(join: Join, tmp_path: Path) -> None:
    keeper = Keeper(await join("manager", "m1"), tmp_path / "one")
    running = asyncio.create_task(keeper.log.run())
    try:
        await keeper.decide(1, 3)
        async with asyncio.timeout(20), aclosing(keeper.bus.bucket(TREE.name).watch(HEAD)) as heads:  # type: ignore[type-var]
            async for entry in heads:
                if entry is not None and entry.value is not None and open_head(entry.value, SIGNERS)[1].size == 3:
                    break
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert await findings(keeper.bus) == []


@pytest.mark.stack
async def test_it_verifies_from_every_older_head(join: Join, tmp_path: Path) -> None:
    keeper = Keeper(await join("manager", "m1"), tmp_path / "one")
    heads = []
    for number in range(1, 14):
        await keeper.decide(number, number)
        await keeper.grow()
        heads.append(keeper.head)
    assert await findings(keeper.bus, *heads) == []
    log = await copied(keeper.bus)
    for before in heads:
        path = consistency_proof(log.newest.leaves, before.size)
        assert goes_on(before.size, before.root, log.checkpoint.size, log.checkpoint.root, path)


@pytest.mark.stack
async def test_the_same_entry_handed_in_again_is_there_once(join: Join, tmp_path: Path) -> None:
    """Before it is in the tree and after, by its worker and by another."""
    one = Keeper(await join("manager", "m1"), tmp_path / "one")
    two = Keeper(await join("manager", "m2"), tmp_path / "two")
    await one.decide(1, 2)
    await two.decide(1, 2)
    await one.grow()
    await two.grow()
    await one.decide(1, 2)
    await two.decide(1, 2)
    await two.decide(3, 3)
    await two.grow()
    assert two.head.size == 3
    assert await findings(one.bus) == []
    assert two.intake.age_s() == 0
    two.at += 100
    assert two.intake.overdue() == []


async def test_what_a_worker_hands_in_before_it_has_looked_is_not_missed(tmp_path: Path) -> None:
    """A restarted worker repeats old outboxes before its first look at the log."""
    server = MemoryServer()
    one = Keeper(server.connect(), tmp_path / "one")
    await one.decide(1, 4)
    await one.grow()
    fresh = Keeper(server.connect(), tmp_path / "two")
    await fresh.decide(1, 4)
    await fresh.grow()
    fresh.at += 100
    assert fresh.intake.overdue() == []


async def test_tiles_are_full_and_a_new_worker_reads_them(tmp_path: Path) -> None:
    server = MemoryServer()
    keeper = Keeper(server.connect(), tmp_path / "one")
    total = 300
    for first in range(1, total, 30):
        await keeper.decide(first, first + 29)
        await keeper.grow()
    bucket = keeper.bus.bucket(TREE.name)
    tiles = {key for key in await bucket.keys() if key.startswith("leaves.")}
    assert tiles == {tile_key(number) for number in range(len(tiles))} and len(tiles) > 30
    assert (await copied(keeper.bus)).newest.leaves == [leaf_hash(entry(n)[1]) for n in range(1, total + 1)]
    fresh = Keeper(server.connect(), tmp_path / "two")
    await fresh.decide(total + 1, total + 1)
    await fresh.grow()
    assert fresh.head.size == total + 1
    await keeper.grow()
    assert keeper.log.checkpoint == fresh.log.checkpoint
    assert await findings(keeper.bus) == []


@threat(rows.LOG_EDITED)
@pytest.mark.parametrize("harm", ["change", "cut", "remove"])
async def test_a_tile_that_was_touched_is_found(tmp_path: Path, harm: str) -> None:
    server = MemoryServer()
    keeper = Keeper(server.connect(), tmp_path / "one")
    await keeper.decide(1, 2 * TILE)
    await keeper.grow()
    await keeper.decide(2 * TILE + 1, 2 * TILE + 1)
    await keeper.grow()
    bucket = keeper.bus.bucket(TREE.name)
    tile = await bucket.get(tile_key(0))
    assert tile is not None and tile.value is not None
    match harm:
        case "change":
            await bucket.put(tile_key(0), bytes(32) + tile.value[32:])
            assert await findings(keeper.bus) == ["log.leaves"]
        case "cut":
            await bucket.put(tile_key(0), tile.value[32:])
        case _:
            await bucket.delete(tile_key(0))
    with pytest.raises(Refusal, match=r"log\.(leaves|forked)"):
        await Keeper(server.connect(), tmp_path / "two").log.grow()


@threat(rows.WORKER_KILLED)
@pytest.mark.parametrize("dies_before", range(12))
async def test_killed_before_each_write_nothing_is_lost_or_twice(tmp_path: Path, dies_before: int) -> None:
    """The tile that is full by then included. Whoever comes next finishes."""
    server = MemoryServer()
    honest = Keeper(server.connect(), tmp_path / "honest")
    await honest.decide(1, TILE)
    await honest.grow()
    mortal = Keeper(MortalBus(server.connect(), Counter(dies_before)), tmp_path / "mortal")

    async def life() -> None:
        for number in range(1, 5):
            await mortal.decide(number, number, OTHER)
            await mortal.grow()

    with suppress(Killed):
        await life()
    heir = Keeper(server.connect(), tmp_path / "mortal")
    await heir.decide(1, 4, OTHER)  # its outboxes are published again
    await heir.grow()
    assert heir.head.size == TILE + 4
    assert await findings(heir.bus) == []
    await honest.grow()
    assert honest.log.checkpoint == heir.log.checkpoint


async def test_a_bus_that_fails_once_costs_nothing(tmp_path: Path) -> None:
    server = MemoryServer()
    for fails_before in range(12):
        folder = tmp_path / str(fails_before)
        keeper = Keeper(MortalBus(server.connect(), Counter(fails_before, BusError)), folder)
        session = f"{fails_before:016x}" * 2
        for number in (1, 2):
            for _ in range(3):
                try:
                    await keeper.decide(number, number, session)
                    await keeper.grow()
                except BusError:
                    continue
        await keeper.grow()
        assert keeper.head.size == 2 * (fails_before + 1)
        assert keeper.intake.age_s() == 0
        assert await findings(server.connect()) == []


@pytest.mark.stack
async def test_an_entry_is_stored_once_on_the_real_server(join: Join) -> None:
    bus = await join("manager", "m1")
    subject, data = entry(1)
    await bus.publish(subject, data, headers=ONCE)
    with pytest.raises(Conflict):
        await bus.publish(subject, data, headers=ONCE)
    page, more = await bus.page(LOG.name, 0)
    assert ([stored.data for stored in page], more) == ([data], False)


async def test_a_new_identity_goes_on_with_the_log_of_the_one_before(tmp_path: Path) -> None:
    server = MemoryServer()
    before = Keeper(server.connect(), tmp_path / "one")
    await before.decide(1, 2)
    await before.grow()
    await before.decide(3, 3)
    new = Signer(KEY.deployment, Ed25519PrivateKey.from_private_bytes(b"\x09" * 32))
    public = new.public
    alone = Keeper(server.connect(), tmp_path / "one", new, frozenset({public}))
    with pytest.raises(Refusal, match=r"signature\.invalid"):
        await alone.log.grow()
    both = Keeper(server.connect(), tmp_path / "one", new, frozenset({public, *SIGNERS}))
    await both.intake.put(*entry(4, key=new))
    await both.grow()
    log = await read_log(both.bus, TrustedKeys(KEY.deployment, {"manager": {public}}))
    assert log.checkpoint.size == 4
    assert check(log, TrustedKeys(KEY.deployment, {"manager": {public, *SIGNERS}}), [], NOW) == []


@threat(rows.DISK_FULL)
async def test_a_disk_that_is_full_ends_no_worker(tmp_path: Path) -> None:
    keeper = Keeper(MemoryServer().connect(), tmp_path / "file" / "below")
    (tmp_path / "file").write_text("no folder")
    await keeper.decide(1, 1)
    assert not await keeper.log._look()
    assert keeper.head.size == 1
    assert await findings(keeper.bus) == []


async def test_what_waits_for_more_than_a_minute_is_found(tmp_path: Path) -> None:
    keeper = Keeper(MemoryServer().connect(), tmp_path / "one")
    await keeper.decide(1, 1)
    await keeper.grow()
    await keeper.decide(2, 2)
    assert await findings(keeper.bus, at=NOW + 60) == []
    assert await findings(keeper.bus, at=NOW + 61) == ["log.overdue"]
    keeper.at += 61
    assert keeper.log.status().pending_s == 61


async def test_few_entries_are_verified_and_taken_over_before_others_have_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of the stream by the worker that appends it, the whole tree by one that is new."""
    monkeypatch.setattr(log, "VERIFIED_AT_ONCE", 4)
    monkeypatch.setattr(follow, "HASHED_AT_ONCE", 3)
    server, turn = MemoryServer(), 0
    verified: list[int] = []
    hashed: list[int] = []
    extended = Frontier.extended

    def opened(subject: str, data: bytes, trusted: TrustedKeys) -> Decision:
        verified.append(turn)
        return verified_decision(subject, data, trusted)

    def grown(frontier: Frontier, leaves: Iterable[bytes]) -> Frontier:
        leaves = list(leaves)
        hashed.append(len(leaves))
        return extended(frontier, leaves)

    async def count() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(log, "open_decision", opened)
    one, two = Keeper(server.connect(), tmp_path / "one"), Keeper(server.connect(), tmp_path / "two")
    await one.decide(1, 30)
    counting = asyncio.create_task(count())
    await one.grow()
    monkeypatch.setattr(Frontier, "extended", grown)
    await two.grow()
    counting.cancel()
    assert one.head == two.head and one.head.size == 30
    assert max(Counted(verified).values()) <= 4 and len(verified) == 30
    assert max(hashed) <= 3 and sum(hashed) == 30
