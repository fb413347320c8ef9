"""What must hold for any bytes: parsers refuse and never crash, secrets hide, encodings do not collide."""

from __future__ import annotations

import json
import pickle
import traceback
import tracemalloc
import zlib
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from attestgate.bus.crypto import envelope
from attestgate.bus.crypto.channel import REPEATS, Channel, Duplicate, Frame, OutOfOrder, Replayed
from attestgate.bus.crypto.envelope import SUITES, SuiteName
from attestgate.manager.records.record_cipher import SealedRecord
from attestgate.schemas import messages
from attestgate.schemas.base import Model, Refusal, Secret, pack, unpack
from attestgate.schemas.binding import canonical
from attestgate.schemas.enrolment import Command
from attestgate.schemas.evidence import PIECE, SLICE, measured_pieces, pack_measurements
from attestgate.schemas.messages import MeasurementList
from attestgate.schemas.signing import Signed
from tests.support.threats import rows, threat

PARTS = st.lists(st.binary(max_size=40) | st.text(max_size=20) | st.integers(0, 2**64 - 1), max_size=5)
KINDS: list[type[BaseModel]] = [
    kind
    for kind in vars(messages).values()
    if isinstance(kind, type) and issubclass(kind, Model) and kind is not Model and kind.__module__ == messages.__name__
]
KINDS += [Signed, Frame, SealedRecord, Command]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


@given(PARTS, PARTS)
def test_different_statements_have_different_encodings(left: list[Any], right: list[Any]) -> None:
    assert (canonical("x", *left) == canonical("x", *right)) == (_typed(left) == _typed(right))


@given(st.text(max_size=30), st.text(max_size=30), PARTS)
def test_different_labels_have_different_encodings(left: str, right: str, parts: list[Any]) -> None:
    assert (canonical(left, *parts) == canonical(right, *parts)) == (left == right)


def _typed(parts: list[Any]) -> list[tuple[type, Any]]:
    return [(type(part), part) for part in parts]


@pytest.mark.parametrize("part", [None, True, False, 1.0, [], {}, (), bytearray(b"x"), memoryview(b"x"), object()])
def test_nothing_but_bytes_text_and_integers_is_authenticated(part: Any) -> None:
    with pytest.raises(TypeError):
        canonical("x", part)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.binary(max_size=200))
@settings(max_examples=40)
def test_random_bytes_are_refused(kind: type[BaseModel], data: bytes) -> None:
    with pytest.raises(Refusal):
        unpack(kind, data)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.model_fields])
@given(value=VALUES)
@settings(max_examples=40)
def test_well_formed_values_of_other_shapes_are_refused(kind: type[BaseModel], value: Any) -> None:
    with pytest.raises(Refusal):
        unpack(kind, bytes(msgpack.packb(value)))


@given(st.binary(min_size=8, max_size=64), st.sampled_from(["repr", "str", "format", "json", "error", "traceback"]))
def test_a_secret_shows_itself_nowhere(value: bytes, how: str) -> None:
    class Holder(Model):
        secret: Secret
        other: int

    secret = Secret(value)
    shown: dict[str, Any] = {
        "repr": lambda: repr(secret) + repr(Holder(secret=secret, other=1)) + repr([secret]),
        "str": lambda: str(secret) + str(Holder(secret=secret, other=1)),
        "format": lambda: f"{secret} {secret!r} {Holder(secret=secret, other=1)}",
        "json": lambda: _error(lambda: json.dumps({"x": secret})),
        "error": lambda: _error(lambda: Holder.model_validate({"secret": value, "other": "no"})),
        "traceback": lambda: _error(lambda: secret + 1),  # type: ignore[operator]
    }
    text = shown[how]()
    if how != "error":  # pydantic shows its input: `schemas.base.unpack` is what keeps that from going anywhere
        assert value.hex() not in text
        assert repr(value)[2:-1] not in text or len(set(value)) < 3


def _error(what: Any) -> str:
    try:
        what()
    except (TypeError, ValidationError):
        return traceback.format_exc()
    raise AssertionError("that should have failed")


@given(st.binary(min_size=16, max_size=64))
def test_a_refusal_of_a_message_does_not_show_what_was_in_it(value: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        unpack(messages.HostGrant, bytes(msgpack.packb({"k": value, "n1": b"short", "channel": value})))
    assert value.hex() not in str(refused.value)
    assert repr(value)[2:-1] not in str(refused.value)


def test_a_secret_is_not_pickled_nor_a_key() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(Secret(b"x"))
    with pytest.raises(TypeError):
        hash(Secret(b"x"))
    assert Secret(b"x") == Secret(b"x") != Secret(b"y")


# The channel

SECRET, BASE, SESSION = Secret(b"s" * 32), b"b" * 64, "ab" * 16


def ends() -> tuple[Channel, Channel]:
    return Channel.start(SESSION, SECRET, BASE, "down"), Channel.start(SESSION, SECRET, BASE, "up")


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["as it is", "changed"]), st.integers(0, 10_000)), max_size=30
    )
)
def test_any_order_of_delivery_gives_the_right_plaintexts_or_none(deliveries: list[tuple[int, str, int]]) -> None:
    sender, receiver = ends()
    sent: list[bytes] = []
    for number in range(6):
        sender, data = sender.seal("step", b"%d" % number)
        sent.append(data)
    opened = 0
    for which, how, place in deliveries:
        data = sent[which]
        if how == "changed":
            place %= len(data)
            data = data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :]
        try:
            receiver, plaintext = receiver.open("step", data)
        except (Duplicate, OutOfOrder, Refusal):
            assert receiver.opened == opened
            continue
        assert how == "as it is"
        assert which == opened
        assert plaintext == b"%d" % which
        opened += 1


def test_only_what_its_sender_knows_was_opened_is_replayed() -> None:
    manager, agent = ends()
    agent, first = agent.seal("step", b"1")
    manager, _ = manager.open("step", first)
    with pytest.raises(Duplicate) as own:
        manager.open("step", first)
    assert not isinstance(own.value, Replayed), "nothing has told the agent that it was heard"
    manager, answer = manager.seal("step", b"heard")
    agent, second = agent.seal("step", b"2")
    manager, _ = manager.open("step", second)
    with pytest.raises(Duplicate) as crossed:
        manager.open("step", first)
    assert not isinstance(crossed.value, Replayed), "the second message was under way before the answer came"
    agent, _ = agent.open("step", answer)
    agent, third = agent.seal("step", b"3")
    manager, _ = manager.open("step", third)
    with pytest.raises(Replayed):
        manager.open("step", first)
    with pytest.raises(Duplicate) as later:
        manager.open("step", second)
    assert not isinstance(later.value, Replayed), "the answer was to the first"
    assert (manager.known, manager.acks) == (1, [])
    forged = pack(unpack(Frame, third).model_copy(update={"counter": 2}))
    with pytest.raises(Replayed):
        manager.open("step", forged)


def test_what_may_be_said_again_is_bounded() -> None:
    manager, agent = ends()
    for number in range(REPEATS + 4):
        agent, data = agent.seal("step", b"%d" % number)
        manager, _ = manager.open("step", data)
    assert len(manager.opened_digests) == REPEATS


CHANGES: list[dict[str, Any]] = [
    {"session": "cd" * 16},
    {"counter": 2},
    {"ack": 1},
    {"salt": bytes(32)},
    {"ciphertext": bytes(40)},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_a_frame_with_another_field_does_not_open(change: dict[str, Any]) -> None:
    sender, receiver = ends()
    _, data = sender.seal("step", b"text")
    frame = unpack(Frame, data).model_copy(update=change)
    with pytest.raises((Refusal, OutOfOrder)):
        receiver.open("step", pack(frame))


def test_a_frame_opens_at_its_own_step_direction_and_base_only() -> None:
    sender, receiver = ends()
    _, data = sender.seal("step", b"text")
    assert receiver.open("step", data)[1] == b"text"
    with pytest.raises(Refusal):
        receiver.open("other", data)
    with pytest.raises(Refusal):
        sender.open("step", data)
    for other in ({"base": bytes(64)}, {"secret": Secret(bytes(32))}, {"opened_chain": bytes(64)}):
        with pytest.raises(Refusal):
            receiver.model_copy(update=other).open("step", data)


def test_the_same_state_never_seals_twice_alike() -> None:
    """What a rollback of the record would do: same counter, same chain, another key."""
    sender, _ = ends()
    one, two = (unpack(Frame, sender.seal("step", b"text")[1]) for _ in range(2))
    assert one.counter == two.counter
    assert one.salt != two.salt
    assert one.ciphertext != two.ciphertext


def test_an_acknowledgement_of_what_was_never_sent_counts_for_nothing() -> None:
    manager, agent = ends()
    lying = agent.model_copy(update={"opened": 40})
    _, data = lying.seal("step", b"text")
    following, _ = manager.open("step", data)
    assert following.acknowledged == 0


# The envelope


@pytest.mark.parametrize("suite", SUITES)
@given(place=st.integers(0, 10_000), info=st.binary(max_size=20), text=st.binary(max_size=60))
@settings(max_examples=25, deadline=None)
def test_a_changed_envelope_does_not_open(suite: SuiteName, place: int, info: bytes, text: bytes) -> None:
    private, public = envelope.generate(suite)
    sealed = envelope.seal(suite, public, info, text)
    assert envelope.open_sealed(suite, private, info, sealed) == text
    place %= len(sealed)
    changed = sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :]
    for wrong_info, wrong in ((info, changed), (info + b"x", sealed), (info, sealed[:-1]), (info, b"")):
        with pytest.raises(Refusal, match=r"envelope\.open"):
            envelope.open_sealed(suite, private, wrong_info, wrong)


@pytest.mark.parametrize("suite", SUITES)
@given(public=st.binary(max_size=60))
@settings(max_examples=25)
def test_what_is_no_key_is_refused(suite: SuiteName, public: bytes) -> None:
    if suite != "x25519" or len(public) != 32:
        with pytest.raises(Refusal, match=r"envelope\.key"):
            envelope.seal(suite, public, b"", b"")


def test_an_all_zero_x25519_key_is_refused_not_a_crash() -> None:
    """A point of low order gives an all-zero shared secret: RFC 9180, section 7.1.4."""
    with pytest.raises(Refusal):
        envelope.seal("x25519", bytes(32), b"", b"")


# The measurement list in its message


@given(st.binary(max_size=300), st.integers(0, 400))
def test_a_piece_of_a_list_travels_whole(whole: bytes, offset: int) -> None:
    packed = pack_measurements(whole, offset)
    assert b"".join(measured_pieces(packed)) == whole[packed.offset :]
    assert packed.offset == (offset if offset <= len(whole) else 0)


@given(st.binary(max_size=200))
def test_bytes_that_do_not_decompress_are_refused(data: bytes) -> None:
    honest = pack_measurements(b"list", 0)
    with pytest.raises(Refusal, match=r"evidence\.list"):
        list(measured_pieces(honest.model_copy(update={"zlib": data})))


@pytest.mark.parametrize("change", [{"size": 3}, {"size": 5}, {"whole": bytes(32)}])
def test_a_list_that_is_not_what_it_says_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Refusal, match=r"evidence\.list"):
        list(measured_pieces(pack_measurements(b"list", 0).model_copy(update=change)))


@threat(rows.MESSAGES_LARGE)
def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attestgate.schemas.evidence.MAX_LIST", 1000)
    bomb = pack_measurements(bytes(100_000), 0)
    assert len(bomb.zlib) < 1000
    with pytest.raises(Refusal, match=r"evidence\.list"):
        list(measured_pieces(MeasurementList.model_construct(**bomb.model_dump())))


@given(st.binary(max_size=50), st.integers(0, 3 * PIECE), st.integers(0, 9))
@settings(max_examples=25)
def test_a_list_is_decompressed_in_pieces(unit: bytes, size: int, level: int) -> None:
    whole = (unit * size)[:size]
    packed = pack_measurements(whole, 0).model_copy(update={"zlib": zlib.compress(whole, level)})
    pieces = list(measured_pieces(packed))
    assert b"".join(pieces) == whole
    assert all(len(piece) <= PIECE for piece in pieces)


@threat(rows.MESSAGES_LARGE)
def test_a_bomb_takes_little_memory() -> None:
    """2 GiB of zeros in 2 MiB, said to be a list of 1 MiB."""
    deflate = zlib.compressobj(9)
    data = b"".join(deflate.compress(bytes(2**24)) for _ in range(128)) + deflate.flush()
    bomb = MeasurementList(offset=0, size=2**20, prefix=bytes(32), whole=bytes(32), zlib=data)
    tracemalloc.start()
    try:
        with pytest.raises(Refusal, match=r"evidence\.list"):
            for _ in measured_pieces(bomb):
                pass
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 16 * PIECE


@pytest.mark.parametrize("more", [b"\0", bytes(SLICE), zlib.compress(b"more")])
def test_bytes_after_the_compressed_list_are_refused(more: bytes) -> None:
    honest = pack_measurements(b"list", 0)
    with pytest.raises(Refusal, match=r"evidence\.list"):
        list(measured_pieces(honest.model_copy(update={"zlib": honest.zlib + more})))


def test_compressed_bytes_that_hold_nothing_come_in_slices_too() -> None:
    """Empty blocks of deflate: no output keeps nobody busy for long."""
    deflate = zlib.compressobj()
    data = deflate.compress(b"list") + b"".join(deflate.flush(zlib.Z_FULL_FLUSH) for _ in range(5)) + deflate.flush()
    empty = b"\0\0\0\xff\xff" * SLICE  # stored blocks of length 0, RFC 1951, section 3.2.4
    packed = pack_measurements(b"list", 0).model_copy(update={"zlib": data[:2] + empty + data[2:]})
    pieces = list(measured_pieces(packed))
    assert b"".join(pieces) == b"list"
    assert len(pieces) > 5
