"""A worker's marks: what they hold against the bus, what they survive, and how large they get."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from attestgate.bus.api import BusError
from attestgate.manager.local import marks as module
from attestgate.manager.local.marks import ENDED_FOR_S, Marks
from attestgate.manager.records.record_memory import CERTAIN_S, RecordMemory
from attestgate.manager.sessions.record import HostRecord
from attestgate.manager.sessions.states import State
from attestgate.schemas.admission import Tenure
from attestgate.schemas.base import Refusal
from tests.support.threats import rows, threat


class Clock:
    def __init__(self) -> None:
        self.at = 1_800_000_000.0

    def __call__(self) -> float:
        return self.at


def session(number: int) -> str:
    return f"{number:032x}"


def tenure(number: int, rank: int, place: str = "host.h1") -> Tenure:
    return Tenure(place=place, session=session(number), rank=rank)


def record(revision: int, number: int = 1, rank: int = 10, lease_end: int | None = 1, **more: object) -> HostRecord:
    fields = {
        "session": session(number),
        "subject": "h1",
        "host": "h1",
        "state": State.TRUSTED,
        "suite": "x25519",
        "wanted": ["sgx"],
        "created_at": 1,
        "issued_at": 1,
        "deadline": 1,
        "revision": revision,
        "rank": rank,
        "lease_end": lease_end,
    }
    return HostRecord.model_validate(fields | more)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "marks.sqlite"


@threat(rows.SESSION_RETURNS)
def test_of_two_sessions_the_higher_rank_counts_then_the_id(path: Path) -> None:
    marks = Marks(path, Clock())
    assert marks.current("host.h1") == (0, "")
    for number, rank in ((5, 20), (9, 10), (4, 20), (6, 20)):
        marks.was_current(tenure(number, rank))
    assert marks.current("host.h1") == (20, session(6))
    assert marks.current("host.h2") == (0, "")
    assert Marks(path, Clock()).current("host.h1") == (20, session(6))


@threat(rows.WORKERS_PARTED)
def test_what_a_lease_rests_on_only_rises(path: Path) -> None:
    marks = Marks(path, Clock())
    for enrolled, policy in ((5, 2), (3, 4), (4, 1)):
        marks.rests_on("host.h1", enrolled, policy)
    again = Marks(path, Clock())
    assert (again.enrolled("host.h1"), again.enrolled("app.h1"), again.policy()) == (5, 0, 4)


@threat(rows.SESSION_RETURNS)
def test_a_session_that_has_ended_is_remembered_for_a_day(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PRUNE_EVERY", 1)
    clock = Clock()
    marks = Marks(path, clock)
    marks.ended(session(1))
    clock.at += ENDED_FOR_S
    marks.ended(session(2))
    assert marks.has_ended(session(1)) and marks.has_ended(session(2))
    clock.at += 1
    marks.ended(session(3))
    assert [marks.has_ended(session(number)) for number in (1, 2, 3)] == [False, True, True]


def test_the_oldest_make_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    monkeypatch.setattr(module, "PRUNE_EVERY", 1)
    marks = Marks(path, Clock())
    for number in range(1, 6):
        marks.was_current(tenure(number, number, f"host.h{number}"))
    assert [marks.current(f"host.h{number}")[0] for number in range(1, 6)] == [0, 0, 3, 4, 5]


@threat(rows.DISK_FULL)
def test_a_full_disk_holds_up_nobody_and_what_it_did_not_take_goes_there_with_the_next(path: Path) -> None:
    marks = Marks(path, Clock())
    (pages,) = marks._file.execute("PRAGMA page_count").fetchone()
    marks._file.execute(f"PRAGMA max_page_count = {pages}")
    numbers = range(1, 400)
    for number in numbers:
        marks.was_current(tenure(number, number, f"host.h{number}"))
    assert marks._unwritten, "the disk is full"
    assert all(marks.current(f"host.h{number}")[0] == number for number in numbers)
    marks._file.execute("PRAGMA max_page_count = 100000")
    marks.ended(session(1))
    again = Marks(path, Clock())
    assert all(again.current(f"host.h{number}")[0] == number for number in numbers)


def test_what_is_not_written_is_bounded_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    marks = Marks(path, Clock())

    def full(_: Marks) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Marks, "_write", full)
    for number in range(1, 6):
        marks.was_current(tenure(number, number, f"host.h{number}"))
    assert [marks.current(f"host.h{number}")[0] for number in range(1, 6)] == [0, 0, 3, 4, 5]


@threat(rows.DISK_FULL)
def test_a_file_that_is_none_stops_the_worker(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database at all, but long enough to be taken for the head of one" * 20)
    with pytest.raises(Refusal, match=r"file\.access"):
        Marks(path, Clock())


@threat(rows.RECORD_ROLLED_BACK)
def test_a_record_older_than_before_is_read_again_and_refused_once_that_is_certain(path: Path) -> None:
    steady = Clock()
    memory = RecordMemory(Marks(path, Clock()), steady)
    memory.take(record(5))
    memory.take(record(5))
    with pytest.raises(BusError):
        memory.take(record(4))
    steady.at += CERTAIN_S
    memory.take(record(6))  # it was another's, shown for a moment
    with pytest.raises(BusError):
        memory.take(record(4))
    steady.at += CERTAIN_S - 0.1
    with pytest.raises(BusError):
        memory.take(record(4))
    steady.at += 0.1
    with pytest.raises(
        Refusal, match=r"record\.rollback: host\.0+1: expected revision 6 .*, found revision 4, TRUSTED"
    ):
        memory.take(record(4))


@threat(rows.SESSION_RETURNS)
@pytest.mark.parametrize("restarted", [False, True])
def test_a_session_that_has_ended_is_not_taken_as_live(path: Path, restarted: bool) -> None:
    steady = Clock()
    memory = RecordMemory(Marks(path, Clock()), steady)
    memory.take(record(5))
    memory.take(record(6, state=State.UNTRUSTED))
    if restarted:
        memory = RecordMemory(Marks(path, Clock()), steady)
    memory.take(record(6, state=State.UNTRUSTED))
    with pytest.raises(BusError):
        memory.take(record(7))
    steady.at += CERTAIN_S
    with pytest.raises(Refusal, match=r"record\.rollback"):
        memory.take(record(7))


@threat(rows.SESSION_RETURNS)
def test_a_session_below_another_of_its_place_is_superseded(path: Path) -> None:
    memory = RecordMemory(Marks(path, Clock()), Clock())
    memory.take(record(5, number=2, rank=20))
    assert memory.superseded_by(record(5, number=2, rank=20)) is None
    for number, rank, superseded in ((3, 19, True), (1, 20, True), (3, 20, False), (1, 21, False)):
        found = memory.superseded_by(record(5, number=number, rank=rank))
        assert found == (session(2) if superseded else None)


@threat(rows.ID_CLAIMED)
def test_a_hello_supersedes_nobody(path: Path) -> None:
    """A record has a rank from its hello on, which anybody can send who has the credential."""
    memory = RecordMemory(Marks(path, Clock()), Clock())
    memory.take(record(5, number=1, rank=10))
    memory.take(record(1, number=2, rank=20, state=State.CHALLENGED, lease_end=None))
    assert memory.superseded_by(record(5, number=1, rank=10)) is None
    assert memory.superseded_by(record(1, number=3, rank=5, state=State.CHALLENGED, lease_end=None)) is None


def test_a_session_of_a_version_without_ranks_ends(path: Path) -> None:
    memory = RecordMemory(Marks(path, Clock()), Clock())
    assert memory.superseded_by(record(5, rank=0)) is not None
