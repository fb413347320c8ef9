"""The binary list: framing, every template, both byte orders, replay, hostile lengths."""

from __future__ import annotations

import tracemalloc
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestgate.manager.verification.ima import measurement_list
from attestgate.manager.verification.ima.measurement_list import (
    BUILTIN_TEMPLATES,
    byte_order,
    entries,
    frames,
    parse,
    readable,
    replay,
)
from attestgate.schemas.base import Refusal, unpack
from attestgate.schemas.base import pack as packed
from attestgate.schemas.host_policy import BANKS, Replay
from attestgate.schemas.messages import MAX_LIST
from tests.support.ima.lists import (
    ANCHORED,
    ENTRIES,
    boot_aggregate,
    frame,
    framed_data,
    loaded,
    ng,
    old_frame,
    quote,
    recorded,
    sized,
)
from tests.support.reasons import refusal_codes

DIGEST = bytes(range(32))
OTHER = [b"\x03sig", ng(b"\x02" * 20, b"sha1"), b"modsig"]
EVM = [b"evm", b"security.ima\0", b"\x21", b"value", pack("<I", 0), pack("<I", 0), pack("<H", 0o644)]


@pytest.mark.parametrize("name", ["clean", "drift"])
def test_replay_of_a_recorded_list_equals_its_quote(name: str) -> None:
    measured = list(entries(recorded(name)))
    assert len(measured) == ENTRIES[name]
    anchored = replay(Replay.start(), measured[: ANCHORED[name]])
    assert anchored.pcr10["sha256"] == quote(name).values[10].hex()
    whole = replay(anchored, measured[ANCHORED[name] :])
    assert whole == replay(Replay.start(), measured)
    assert whole.entries == ENTRIES[name] and set(whole.pcr10) == set(BANKS)


def test_drift_goes_on_where_clean_ended() -> None:
    clean, drift = recorded("clean"), recorded("drift")
    assert drift.startswith(clean)
    before = replay(Replay.start("sha256"), entries(clean))
    after = replay(before, entries(drift[len(clean) :], first=before.entries))
    assert after == replay(Replay.start("sha256"), entries(drift))
    assert unpack(Replay, packed(after)) == after
    assert Replay.model_validate_json(after.model_dump_json()) == after


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("template", "fields", "algorithm"),
    [
        (b"ima-ng", [ng(), b"/bin/a\0"], "sha256"),
        (b"ima-ngv2", [b"ima:" + ng(), b"/bin/a\0"], "sha256"),
        (b"ima-sig", [ng(), b"/bin/a\0", b"\x03\x02sig"], "sha256"),
        (b"ima-sigv2", [b"verity:" + ng(), b"/bin/a\0", b"\x03\x02sig"], "sha256"),
        (b"ima-buf", [ng(), b"/bin/a\0", b"buffer"], "sha256"),
        (b"ima-modsig", [ng(), b"/bin/a\0", *OTHER], "sha256"),
        (b"evm-sig", [ng(), b"/bin/a\0", *EVM], "sha256"),
        (b"d-ng|n-ng", [ng(b"\x05" * 64, b"sha512"), b"/bin/a\0"], "sha512"),
        (b"n-ng|sig|d-ng", [b"/bin/a\0", b"", ng()], "sha256"),
        (b"d|n", [b"\x06" * 20, b"/bin/a\0"], "sha1"),
        (b"d|n", [b"\x06" * 16, b"/bin/a\0"], "md5"),
    ],
)
def test_every_template_in_both_orders(order: str, template: bytes, fields: list[bytes], algorithm: str) -> None:
    data = boot_aggregate(order) + frame(template, *fields, order=order)
    first, entry = entries(data)
    assert first.path == b"boot_aggregate"
    assert (entry.number, entry.pcr, entry.template, entry.path) == (1, 10, template, b"/bin/a")
    assert entry.algorithm == algorithm and len(entry.digest) in {16, 20, 32, 64}
    assert entry.verity is (template == b"ima-sigv2")
    assert entry.extends("sha1") == entry.template_hash
    assert entry.buffer == (b"buffer" if template == b"ima-buf" else None)
    assert (entry.signature is not None) is (b"sig" in template.replace(b"evm-sig", b"").replace(b"ima-modsig", b"sig"))


UNKNOWN = [
    (b"ima-ng", [ng(), b"/bin/x\0"]),
    (b"ima-ngv2", [b"ima:" + ng(), b"/bin/x\0"]),
    (b"ima-sig", [ng(), b"/bin/x\0", b"\x03\x02sig"]),
    (b"ima-sig", [ng(), b"/bin/x\0", b""]),
    (b"ima-modsig", [ng(), b"/bin/x\0", *OTHER]),
    (b"evm-sig", [ng(), b"/bin/x\0", *EVM]),
    (b"d-ng|n-ng|sig", [ng(), b"/bin/x\0", b""]),
]
FORMATS = [*BUILTIN_TEMPLATES, *BUILTIN_TEMPLATES.values(), b"n-ng|d-ng", b"d-ng|sig|n-ng", b"sig|n-ng|d-ng", b"x"]


@pytest.mark.parametrize("label", FORMATS)
@pytest.mark.parametrize(("template", "fields"), UNKNOWN, ids=[name.decode() for name, _ in UNKNOWN])
def test_an_unknown_program_under_another_templates_name_is_not_known(
    template: bytes, fields: list[bytes], label: bytes
) -> None:
    """A template's name is in no hash: whoever keeps the list can write another, and it replays all the same."""
    policy = loaded(recorded("clean"))
    genuine = frame(template, *fields)
    size = len(template)
    renamed = genuine[:24] + pack("<I", len(label)) + label + genuine[28 + size :]
    try:
        (entry,) = entries(renamed)
    except Refusal as refusal:
        assert all(reason.code.startswith("ima.") for reason in refusal.reasons)
    else:
        assert policy.judge(entry) == "unknown" or entry.extends("sha1") != entry.template_hash


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_old_template_hashes_a_name_of_256_bytes(order: str) -> None:
    (entry,) = entries(old_frame(b"\x07" * 20, b"/bin/a", order=order))
    assert (entry.algorithm, entry.digest, entry.path) == ("sha1", b"\x07" * 20, b"/bin/a")
    assert entry.extends("sha1") == entry.template_hash


def test_a_violation_extends_with_ones_in_every_bank() -> None:
    (entry,) = entries(frame(b"ima-ng", ng(bytes(32)), b"/etc/motd\0", template_hash=bytes(20)))
    assert entry.violation
    assert [entry.extends(bank) for bank in BANKS] == [b"\xff" * 20, b"\xff" * 32, b"\xff" * 48]
    assert next(entries(frame(b"ima-ng", ng(bytes(20)), b"/etc/motd\0", template_hash=bytes(20)))).violation


def test_entries_of_other_pcrs_do_not_extend_pcr_10() -> None:
    after = replay(Replay.start("sha1"), entries(frame(b"ima-ng", ng(), b"/bin/a\0", pcr=11)))
    assert after == Replay(entries=1, pcr10={"sha1": "00" * 20})


GOOD = boot_aggregate()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x0a", "ima.header"),
        (bytes(28), "ima.header"),
        (b"\x0a" + bytes(23) + b"\xff\xff\xff\xff", "ima.header"),
        (GOOD + b"\x0a", "ima.truncated"),
        (GOOD + GOOD[:24] + b"\xff\xff\xff\xff", "ima.size"),
        (GOOD + GOOD[:24] + bytes(4) + GOOD[28:], "ima.size"),
        (GOOD[:-1], "ima.truncated"),
        (GOOD + GOOD[:34], "ima.truncated"),
        (GOOD[:34] + b"\xff\xff\xff\xff" + GOOD[38:], "ima.size"),
        (GOOD[:34] + pack("<I", 2**20) + GOOD[38:], "ima.truncated"),
        (frame(b"unacknowledged-of", ng(), b"/bin/a\0"), "ima.template"),
        (frame(b"n-ng|n-ng|d-ng", b"/a\0", b"/b\0", ng()), "ima.template"),
        (frame(b"n-ng", b"/bin/a\0"), "ima.template"),
        (frame(b"d-ng|n|n-ng", ng(), b"/a\0", b"/b\0"), "ima.template"),
        (frame(b"ima-ng", ng()), "ima.fields"),
        (frame(b"ima-ng", ng(), b"/bin/a\0", b"more"), "ima.fields"),
        (framed_data(b"ima-ng", sized(ng()) + pack("<I", 2**32 - 1) + b"/bin/a\0"), "ima.fields"),
        (frame(b"ima-ng", DIGEST, b"/bin/a\0"), "ima.digest"),
        (frame(b"ima-ng", ng(DIGEST[1:]), b"/bin/a\0"), "ima.digest"),
        (frame(b"ima-ng", b"ima:" + ng(), b"/bin/a\0"), "ima.digest"),
        (frame(b"ima-ngv2", ng(), b"/bin/a\0"), "ima.digest"),
        (frame(b"ima-ngv2", b"other:" + ng(), b"/bin/a\0"), "ima.digest"),
        (frame(b"ima-ng", ng(algorithm=b"sha9"), b"/bin/a\0"), "ima.digest"),
        (frame(b"d|n", DIGEST, b"/bin/a\0"), "ima.digest"),
        (frame(b"ima-ng", ng(), b"/bin/a"), "ima.path"),
        (frame(b"ima-ng", ng(), b"/bin\0/a\0"), "ima.path"),
        (frame(b"ima-ng", ng(), b"\0"), "ima.path"),
        (frame(b"ima-ng", ng(), b"/" * 4096 + b"\0"), "ima.path"),
        (old_frame(DIGEST[:20], b"/" * 256), "ima.path"),
        (frame(b"ima-ng", ng(), b"/etc/motd\0", template_hash=bytes(20)), "ima.violation"),
    ],
)
def test_what_the_kernel_does_not_write_is_refused_by_name(data: bytes, code: str) -> None:
    with pytest.raises(Refusal) as refusal:
        list(entries(data))
    assert refusal_codes(refusal) == [code]


def test_bounds_hold_at_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    path = b"/" * (measurement_list.MAX_PATH - 1) + b"\0"
    assert next(entries(frame(b"ima-ng", ng(), path))).path == path[:-1]
    buffer = frame(b"ima-buf", ng(), b"b\0", bytes(measurement_list.MAX_DATA - 54))
    assert next(entries(buffer)).buffer == bytes(measurement_list.MAX_DATA - 54)
    monkeypatch.setattr(measurement_list, "MAX_LIST", len(GOOD))
    assert len(list(frames(GOOD, "little"))) == 1
    with pytest.raises(Refusal, match=r"ima\.size"):
        list(frames(GOOD + GOOD, "little"))


def test_a_list_beyond_its_bound_is_refused_before_it_is_read() -> None:
    data = GOOD + bytes(MAX_LIST)
    tracemalloc.start()
    try:
        with pytest.raises(Refusal, match=r"ima\.size"):
            list(entries(data))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_reading_a_long_list_needs_no_more_memory_than_an_entry() -> None:
    data = GOOD * 20_000
    tracemalloc.start()
    try:
        assert sum(1 for _ in entries(data)) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        measured = list(entries(data))
    except Refusal as refusal:
        assert all(reason.code.startswith("ima.") for reason in refusal.reasons)
    else:
        assert (data == b"") == (measured == [])


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_one_byte_changed_is_seen_or_outside_what_is_hashed(place: int, value: int) -> None:
    changed = GOOD[:place] + bytes([value]) + GOOD[place + 1 :]
    try:
        (entry,) = entries(changed)
    except Refusal:
        return
    genuine = next(entries(GOOD))
    same_hash = entry.extends("sha1") == entry.template_hash and not entry.violation
    assert not same_hash or entry.hashed == genuine.hashed


@given(st.binary(min_size=1, max_size=64))
def test_readable_paths_are_printable_and_keep_what_they_show_apart(path: bytes) -> None:
    shown = readable(path)
    assert shown.isprintable()
    again = shown.encode().decode("unicode_escape") if shown.isascii() else None
    assert again is None or again.encode("latin-1") == path


def test_an_empty_list_has_no_entries() -> None:
    assert list(entries(b"")) == [] and byte_order(b"") == "little"
    assert parse(GOOD, 5, "little").number == 5
