"""What a worker remembers: sealed records, high-water marks, pointers that never go back."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestgate.bus.api import Conflict
from attestgate.bus.memory.bucket import MemoryBucket
from attestgate.bus.memory.server import MemoryServer
from attestgate.manager.local.atomic_file import atomic_write
from attestgate.manager.local.high_water import HighWater
from attestgate.manager.records.current import CurrentSessions
from attestgate.manager.records.record_cipher import RecordCipher, SealedRecord, StorageKeys
from attestgate.manager.records.session_messages import SessionMessages
from attestgate.schemas.base import Model, Refusal, Secret, parse_json
from tests.support.threats import rows, threat


class Thing(Model):
    text: str
    secret: Secret


THING = Thing(text="hello", secret=Secret(b"s" * 32))
KEYS = StorageKeys(epochs={"1": "11" * 32, "2": "22" * 32})


def cipher(**epochs: str) -> RecordCipher:
    keys = StorageKeys(epochs=epochs) if epochs else KEYS
    return RecordCipher(lambda: keys)


def test_a_record_opens_where_it_was_sealed() -> None:
    assert cipher().open(Thing, "sessions", "a", cipher().seal("sessions", "a", 3, THING)) == THING


def test_new_records_use_the_newest_epoch_and_old_ones_still_open() -> None:
    old = RecordCipher(lambda: StorageKeys(epochs={"1": "11" * 32})).seal("sessions", "a", 1, THING)
    assert cipher().newest == 2
    assert cipher().open(Thing, "sessions", "a", old) == THING


@threat(rows.RECORD_FORGED)
@pytest.mark.parametrize("place", [("summaries", "a"), ("sessions", "b")])
def test_a_record_elsewhere_does_not_open(place: tuple[str, str]) -> None:
    with pytest.raises(Refusal, match=r"record\.open"):
        cipher().open(Thing, *place, cipher().seal("sessions", "a", 3, THING))


@threat(rows.RECORD_FORGED)
@pytest.mark.parametrize(
    "change", [{"epoch": 1}, {"epoch": 9}, {"salt": bytes(32)}, {"counter": 4}, {"ciphertext": bytes(40)}]
)
def test_a_record_with_another_field_does_not_open(change: dict[str, object]) -> None:
    stored = SealedRecord.read(cipher().seal("sessions", "a", 3, THING)).model_copy(update=change)
    with pytest.raises(Refusal, match=r"record\.open"):
        cipher().open(Thing, "sessions", "a", stored.body())


@threat(rows.RECORD_FORGED)
@given(st.binary(max_size=200))
def test_random_bytes_are_no_record(data: bytes) -> None:
    with pytest.raises(Refusal):
        cipher().open(Thing, "sessions", "a", data)


@threat(rows.RECORD_FORGED)
def test_nothing_of_a_record_is_readable_and_no_two_are_alike() -> None:
    one, two = (cipher().seal("sessions", "a", 3, THING) for _ in range(2))
    assert b"hello" not in one
    assert b"ssss" not in one
    assert SealedRecord.read(one).salt != SealedRecord.read(two).salt


@threat(rows.KEY_STORAGE)
def test_a_destroyed_epoch_takes_its_records_with_it() -> None:
    old = RecordCipher(lambda: StorageKeys(epochs={"1": "11" * 32})).seal("sessions", "a", 1, THING)
    with pytest.raises(Refusal, match=r"record\.open"):
        RecordCipher(lambda: StorageKeys(epochs={"2": "22" * 32})).open(Thing, "sessions", "a", old)


@pytest.mark.parametrize("epochs", [{}, {"0": "11" * 32}, {"x": "11" * 32}, {"1": "11"}, {"-1": "11" * 32}])
def test_a_storage_keys_file_that_makes_no_sense_is_refused(epochs: dict[str, str]) -> None:
    with pytest.raises(Refusal, match=r"file\.fields"):
        parse_json(StorageKeys, json.dumps({"epochs": epochs}), source="storage-keys.json")


def test_marks_only_rise_and_outlive_the_worker(tmp_path: Path) -> None:
    path = tmp_path / "state" / "marks.json"
    marks = HighWater(path)
    marks.check("policy", 3)
    marks.check("policy", 3)
    with pytest.raises(Refusal, match="rollback"):
        marks.check("policy", 2)
    marks.raise_to("policy", 1)
    again = HighWater(path)
    assert again.get("policy") == 3
    assert again.get("other") == 0
    with pytest.raises(Refusal, match="rollback"):
        again.check("policy", 2)
    again.check("policy", 4)
    assert HighWater(path).get("policy") == 4
    assert [p.name for p in path.parent.iterdir()] == ["marks.json"]


@threat(rows.DISK_FULL)
@pytest.mark.parametrize("content", ["", "[]", '{"a": "b"}', '{"a": -1}', "{", '{"a": 1.5}', "\x00"])
def test_a_file_of_marks_that_cannot_be_read_stops_the_worker(tmp_path: Path, content: str) -> None:
    """An unreadable memory is not an empty one."""
    path = tmp_path / "marks.json"
    path.write_text(content)
    with pytest.raises(Refusal, match=r"high-water\.file"):
        HighWater(path)


def test_a_worker_that_cannot_remember_does_not_begin(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refusal, match=r"file\.write: .*state/marks\.json: .*Not a directory"):
        HighWater(tmp_path / "file" / "state" / "marks.json")


def _full(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_that_could_not_be_replaced_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", _full)
    with pytest.raises(OSError, match="No space"):
        atomic_write(tmp_path / "marks.json", b"{}")
    assert list(tmp_path.iterdir()) == []


def test_a_mark_that_did_not_reach_the_disk_is_not_taken_for_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "marks.json"
    marks = HighWater(path)
    with monkeypatch.context() as full, pytest.raises(OSError, match="No space"):
        full.setattr("os.fsync", _full)
        marks.check("policy", 3)
    marks.check("policy", 3)
    assert HighWater(path).get("policy") == 3


def session(number: int) -> str:
    return f"{number:032x}"


async def test_a_pointer_names_the_newest_and_tells_the_one_before() -> None:
    server = MemoryServer()
    current = CurrentSessions(server.connect(), cipher(), SessionMessages(server.connect(), cipher()))
    for number in (1, 2, 2, 3):
        await current.point("current.host.h1", session(number), "superseded")
    assert await current.session("current.host.h1") == session(3)
    told = [message.subject for message in server.stored("ATTEST_WORK")]
    assert told == [f"attest.v1.work.host.{session(n)}.superseded" for n in (1, 2)]


@threat(rows.COMPARE_AND_SET_LOST)
async def test_a_bus_that_has_every_compare_and_set_lost_gains_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lost(*_: object) -> int:
        raise Conflict("lost")

    server = MemoryServer()
    current = CurrentSessions(server.connect(), cipher(), SessionMessages(server.connect(), cipher()))
    monkeypatch.setattr(MemoryBucket, "create", lost)
    with pytest.raises(Conflict):
        await current.point("current.host.h1", session(1), "superseded")


@threat(rows.MESSAGE_REORDERED)
async def test_a_session_that_was_superseded_never_comes_back() -> None:
    """Its outbox may be published again by a worker that did not see it the first time."""
    server = MemoryServer()
    current = CurrentSessions(server.connect(), cipher(), SessionMessages(server.connect(), cipher()))
    for number in (1, 2, 1, 3, 1, 2):
        await current.point("current.app.a1.h1", session(number), "superseded")
    assert await current.session("current.app.a1.h1") == session(3)
    assert len(server.stored("ATTEST_WORK")) == 2


@pytest.mark.parametrize("first", [1, 2])
async def test_of_two_that_become_current_at_once_the_higher_rank_stays(first: int) -> None:
    """Else both would be lost: gateways take the higher rank, and the pointer would have superseded it."""
    server, key = MemoryServer(), "current.host.h1"
    current = CurrentSessions(server.connect(), cipher(), SessionMessages(server.connect(), cipher()))
    for number in (first, 3 - first, 1, 2):
        await current.point(key, session(number), "superseded", rank=10 * number)
    assert await current.session(key) == session(2)
    assert await current.newest("host", "h1", "h1") == (20, session(2))
    assert {message.subject for message in server.stored("ATTEST_WORK")} == {
        f"attest.v1.work.host.{session(1)}.superseded"
    }


@threat(rows.RECORD_FORGED)
async def test_a_pointer_that_somebody_wrote_is_not_believed() -> None:
    server = MemoryServer()
    current = CurrentSessions(server.connect(), cipher(), SessionMessages(server.connect(), cipher()))
    await server.connect().bucket("sessions").put("current.host.h1", b"\x81\xa7session\xa0")
    with pytest.raises(Refusal):
        await current.session("current.host.h1")
