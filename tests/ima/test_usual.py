"""The quick reading of usual entries: the same as the reading field by field, whatever the frame."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestgate.manager.verification.ima.fast_path import reader
from attestgate.manager.verification.ima.measurement_list import ByteOrder, Entry, frames, parse
from attestgate.schemas.base import Reason, Refusal
from tests.support.ima.lists import frame, framed_data, ng, recorded

MARKS: dict[ByteOrder, Literal["<", ">"]] = {"little": "<", "big": ">"}
ORDERS = st.sampled_from(list(MARKS))
TEMPLATES = st.sampled_from([b"ima-ng", b"ima-sig", b"ima-ngv2", b"d-ng|n-ng"])
DIGESTS = st.sampled_from(
    [ng(), ng(bytes(32)), ng(bytes(20)), ng(b"\1" * 20, b"sha1"), b"sha256:" + bytes(33), b"sha384:\0" + bytes(32), b""]
)
PATHS = st.sampled_from([b"/bin/a\0", b"\0", b"", b"/a\0b\0", b"/bin/a", b"/" * 4095 + b"\0", b"/" * 4096 + b"\0"])
LAST = st.sampled_from([[], [b""], [b"\x03\x02"], [b"", b""]])


def read(frame: bytes, order: ByteOrder, quick: bool) -> Entry | tuple[Reason, ...]:
    try:
        return reader(order)(frame, 7) if quick else parse(frame, 7, order)
    except Refusal as refusal:
        return refusal.reasons


def same(frame: bytes, order: ByteOrder) -> None:
    assert read(frame, order, quick=True) == read(frame, order, quick=False)


@pytest.mark.parametrize("name", ["clean", "drift"])
def test_recorded_entries(name: str) -> None:
    for one in frames(recorded(name), "little"):
        same(one, "little")


@given(ORDERS, TEMPLATES, DIGESTS, PATHS, LAST, st.sampled_from([None, bytes(20), b"\1" * 20]))
def test_entries_usual_and_odd(
    order: ByteOrder, template: bytes, digest: bytes, path: bytes, last: list[bytes], template_hash: bytes | None
) -> None:
    same(frame(template, digest, path, *last, order=MARKS[order], template_hash=template_hash), order)


@given(ORDERS, TEMPLATES, st.binary(max_size=90))
def test_any_template_data(order: ByteOrder, template: bytes, data: bytes) -> None:
    same(framed_data(template, data, order=MARKS[order]), order)


@given(ORDERS, st.integers(0, 99), st.integers(0, 255))
def test_any_byte_changed(order: ByteOrder, place: int, value: int) -> None:
    usual = frame(b"ima-sig", ng(), b"/usr/bin/python3.11\0", b"", order=MARKS[order])
    changed = usual[: place % len(usual)] + bytes([value]) + usual[place % len(usual) + 1 :]
    try:
        (whole,) = frames(changed, order)
    except (Refusal, ValueError):
        return
    same(whole, order)
