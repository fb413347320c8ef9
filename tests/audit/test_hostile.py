"""The bus's operator edits, drops, swaps, cuts, sets back and adds, on the real server: each is found, and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestgate.bus.api import StoredMessage
from attestgate.bus.client.nats import NatsBus
from attestgate.bus.layout import TREE
from attestgate.manager.audit.head import HEAD
from attestgate.schemas.base import Refusal
from attestgate.schemas.signing import Signer
from tests.support.audit.keeper import KEY, NOW, Keeper, copied, entry, findings, rewrite
from tests.support.bus.fixtures import Join
from tests.support.threats import rows, threat

pytestmark = pytest.mark.stack

Messages = list[StoredMessage | tuple[str, bytes]]
STRANGER = Signer(KEY.deployment, Ed25519PrivateKey.from_private_bytes(b"\x08" * 32))


def changed(message: StoredMessage | tuple[str, bytes]) -> tuple[str, bytes]:
    assert isinstance(message, StoredMessage)
    return message.subject, message.data[:-1] + bytes([message.data[-1] ^ 1])


@pytest.fixture
async def bus(join: Join) -> NatsBus:
    return await join("manager", "m")


@pytest.fixture
async def keeper(bus: NatsBus, tmp_path: Path) -> Keeper:
    """A worker whose log has 8 entries."""
    keeper = Keeper(bus, tmp_path / "one")
    await keeper.decide(1, 8)
    await keeper.grow()
    assert keeper.head.size == 8
    return keeper


ACTS: dict[str, tuple[Callable[[Messages], Messages], list[str]]] = {
    "nothing": (lambda m: m, []),
    "edit": (lambda m: [*m[:3], changed(m[3]), *m[4:]], ["log.edited", "log.forged"]),
    "edit the first": (lambda m: [changed(m[0]), *m[1:]], ["log.edited", "log.forged"]),
    "edit the last": (lambda m: [*m[:-1], changed(m[-1])], ["log.edited", "log.forged"]),
    "put another true entry in the place of one": (lambda m: [*m[:3], entry(9), *m[4:]], ["log.edited"]),
    "drop": (lambda m: [*m[:3], *m[4:]], ["log.dropped"]),
    "swap": (lambda m: [*m[:3], m[4], m[3], *m[5:]], ["log.order"]),
    "truncate": (lambda m: m[:5], ["log.truncated"]),
    "cut all": (lambda m: [], ["log.truncated"]),
    "inject": (lambda m: [*m[:3], entry(1, key=STRANGER), *m[3:]], ["log.injected", "log.forged"]),
    "repeat": (lambda m: [*m[:3], m[2], *m[3:]], ["log.order"]),
}


@threat(rows.LOG_EDITED)
async def test_what_was_done_to_the_entries_is_named(keeper: Keeper, bus: NatsBus) -> None:
    before = (await copied(bus)).stored
    found = {}
    for act, (do, _) in ACTS.items():
        await rewrite(bus, do(list(before)))
        found[act] = await findings(bus, keeper.head)
    assert found == {act: expected for act, (_, expected) in ACTS.items()}


async def test_the_oldest_entries_may_only_be_gone_where_the_limits_let_them_go(keeper: Keeper, bus: NatsBus) -> None:
    before = keeper.head.model_copy(update={"size": 0})
    await rewrite(bus, list((await copied(bus)).stored)[3:])
    assert await findings(bus, before) == ["log.dropped"]
    assert await findings(bus, before, at=NOW + 366 * 86400) == []


@threat(rows.LOG_EDITED)
async def test_an_older_log_is_found_by_whoever_kept_a_head(keeper: Keeper, bus: NatsBus, tmp_path: Path) -> None:
    """Head, tree and stream as they once were: consistent in themselves, but a worker and a witness know better."""
    older = await bus.bucket(TREE.name).get(HEAD)
    assert older is not None and older.value is not None
    then = list((await copied(bus)).stored)
    await keeper.decide(9, 12)
    await keeper.grow()
    await bus.bucket(TREE.name).put(HEAD, older.value)
    await rewrite(bus, then)
    assert await findings(bus) == []
    assert await findings(bus, keeper.head) == ["log.rolled-back"]
    with pytest.raises(Refusal, match=r"log\.rolled-back"):
        await keeper.log.grow()
    restarted = Keeper(bus, tmp_path / "one")
    with pytest.raises(Refusal, match=r"log\.rolled-back"):
        await restarted.log.grow()


@threat(rows.LOG_EDITED, rows.KEY_MANAGER_LOG)
async def test_a_log_begun_anew_is_found(keeper: Keeper, bus: NatsBus, tmp_path: Path) -> None:
    """The operator wipes the bus: a worker without memory begins again, and signs what the other will not have."""
    head = keeper.head
    await bus.jetstream.delete_stream(TREE.stream)
    await rewrite(bus, [])
    with pytest.raises(Refusal, match=r"log\.rolled-back"):
        await keeper.log.grow()
    fresh = Keeper(bus, tmp_path / "two")
    await fresh.decide(20, 30)
    await fresh.grow()
    with pytest.raises(Refusal, match=r"log\.forked"):
        await keeper.log.grow()
    assert "log.forked" in await findings(bus, head)
    assert keeper.head == head


@threat(rows.LOG_EDITED, rows.KEY_MANAGER_LOG)
async def test_two_workers_who_were_both_told_that_they_won(keeper: Keeper, bus: NatsBus, tmp_path: Path) -> None:
    """Each signs a head of its own over one tree size: each notices when it sees the other's."""
    other = Keeper(bus, tmp_path / "two")
    await other.grow()
    common = await bus.bucket(TREE.name).get(HEAD)
    assert common is not None and common.value is not None
    await keeper.decide(9, 10)
    await keeper.grow()
    first = await bus.bucket(TREE.name).get(HEAD)
    assert first is not None and first.value is not None
    await rewrite(bus, [entry(number) for number in (1, 2, 3, 4, 5, 6, 7, 8, 11, 12)])
    await bus.bucket(TREE.name).put(HEAD, common.value)
    await other.grow()
    with pytest.raises(Refusal, match=r"log\.forked"):
        await keeper.log.grow()
    await bus.bucket(TREE.name).put(HEAD, first.value)
    with pytest.raises(Refusal, match=r"log\.forked"):
        await other.log.grow()


async def test_a_head_that_is_none_is_not_built_upon(keeper: Keeper, bus: NatsBus) -> None:
    for value in (b"", b"\x80", bytes(300)):
        await bus.bucket(TREE.name).put(HEAD, value)
        with pytest.raises(Refusal):
            await keeper.log.grow()


@threat(rows.LOG_LOST)
async def test_an_entry_lost_before_the_tree_is_missed_by_its_worker(keeper: Keeper, bus: NatsBus) -> None:
    kept = list((await copied(bus)).stored)
    await keeper.decide(9, 9)
    assert keeper.intake.age_s() == 0
    await rewrite(bus, kept)
    keeper.at += 61
    await keeper.grow()
    assert keeper.log.status().pending_s == 61
    (leaf,) = keeper.intake.overdue()
    assert len(leaf) == 32
    assert keeper.intake.overdue() == []


@threat(rows.LOG_LOST)
async def test_an_entry_lost_before_the_tree_is_missed_by_its_number(keeper: Keeper, bus: NatsBus) -> None:
    """Its worker was killed: the session's next entry shows the gap."""
    await keeper.decide(10, 10)
    await keeper.grow()
    assert await findings(bus) == ["log.number"]


@threat(rows.LOG_LOST)
async def test_a_decision_made_twice_from_one_record_is_found(keeper: Keeper, bus: NatsBus) -> None:
    """The bus set a session's record back, and a worker decided again: the number is the same, the entry another."""
    await keeper.intake.put(*entry(8, id="ef" * 16))
    await keeper.grow()
    assert keeper.head.size == 9
    assert await findings(bus) == ["log.decided-twice"]


@threat(rows.LOG_EDITED, rows.CREDENTIAL_MANAGER)
async def test_what_no_manager_signed_gets_into_no_tree_and_is_told(keeper: Keeper, bus: NatsBus) -> None:
    await bus.publish(*entry(1, key=STRANGER))
    subject, data = entry(9)
    await bus.publish(subject.replace("a1", "a2"), data)
    await bus.publish(subject, b"garbage")
    await keeper.grow()
    assert keeper.head.size == 8
    assert [what for what, _ in keeper.told] == ["log-stranger"] * 3
    assert await findings(bus) == ["log.injected", "log.forged"]


@threat(rows.LOG_EDITED)
async def test_a_log_that_is_set_back_is_an_alarm(keeper: Keeper, bus: NatsBus) -> None:
    older = await bus.bucket(TREE.name).get(HEAD)
    await keeper.decide(9, 9)
    await keeper.grow()
    assert older is not None and older.value is not None
    await bus.bucket(TREE.name).put(HEAD, older.value)
    assert keeper.log.status().consistent
    for _ in range(2):
        await keeper.log._look()
    assert not keeper.log.status().consistent
    ((what, data),) = keeper.told
    assert (what, data["reasons"][0]["code"]) == ("log-inconsistent", "log.rolled-back")
