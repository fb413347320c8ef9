"""The ASCII list: the same as the binary one, or refused by its line."""

from __future__ import annotations

import hashlib
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestgate.manager.verification.ima.ascii import is_ascii, to_binary
from attestgate.manager.verification.ima.measurement_list import entries
from attestgate.schemas.base import Refusal
from tests.support.ima.lists import VECTORS, frame, framed_data, ng, old_frame, recorded, sized

DIGEST = bytes(range(32)).hex()
OLD = "07" * 20


def line(shown: str, template: str, data: bytes) -> bytes:
    """A line with the template hash of `data`."""
    return f"10 {hashlib.sha1(data).hexdigest()} {template} {shown}\n".encode()


@pytest.mark.parametrize("name", ["clean", "drift"])
def test_recorded_ascii_lists_come_out_as_the_binary_ones(name: str) -> None:
    text = (VECTORS / f"{name}.ascii").read_bytes()
    assert is_ascii(text) and not is_ascii(recorded(name))
    assert to_binary(text) == recorded(name)


@pytest.mark.parametrize(
    ("shown", "template", "data"),
    [
        (f"sha256:{DIGEST} /bin/a", "ima-ng", sized(ng(), b"/bin/a\0")),
        (f"ima:sha256:{DIGEST} /bin/a ", "ima-sigv2", sized(b"ima:" + ng(), b"/bin/a\0", b"")),
        (f"sha256:{DIGEST} k 0102", "ima-buf", sized(ng(), b"k\0", b"\x01\x02")),
        (f"sha256:{DIGEST} /m   ", "ima-modsig", sized(ng(), b"/m\0", b"", b"", b"")),
        (
            f"sha256:{DIGEST} /e 05 security.ima 04000000 aa 0 1000 33188",
            "evm-sig",
            sized(
                *(ng(), b"/e\0", b"\x05", b"security.ima\0", b"\x04\0\0\0", b"\xaa"),
                *(pack("<I", 0), pack("<I", 1000), pack("<H", 33188)),
            ),
        ),
        (f"sha256:{DIGEST} /bin/a", "d-ng|n-ng", sized(ng(), b"/bin/a\0")),
    ],
)
def test_lines_of_every_template(shown: str, template: str, data: bytes) -> None:
    (entry,) = entries(to_binary(line(shown, template, data)))
    assert entry.hashed == data and entry.extends("sha1") == entry.template_hash


def test_the_old_template() -> None:
    binary = old_frame(b"\x07" * 20, b"/bin/a")
    text = f"10 {binary[4:24].hex()} ima {OLD} /bin/a\n".encode()
    assert to_binary(text) == binary


def test_a_list_of_a_big_endian_kernel_is_known_by_its_hashes() -> None:
    lines = [
        (f"sha256:{DIGEST} boot_aggregate", "ima-ng", sized(ng(), b"boot_aggregate\0", order=">")),
        (
            f"sha256:{DIGEST} /e 05 security.ima 00000004 aa 0 1000 33188",
            "evm-sig",
            sized(
                *(ng(), b"/e\0", b"\x05", b"security.ima\0", b"\0\0\0\x04", b"\xaa"),
                *(pack(">I", 0), pack(">I", 1000), pack(">H", 33188)),
                order=">",
            ),
        ),
    ]
    binary = to_binary(b"".join(line(*one) for one in lines))
    assert binary == b"".join(framed_data(kind.encode(), data, order=">") for _, kind, data in lines)
    assert [entry.hashed for entry in entries(binary)] == [data for _, _, data in lines]


HASH = "ab" * 20


@pytest.mark.parametrize(
    "text",
    [
        b"10 " + HASH.encode() + b" ima-ng sha256:" + DIGEST.encode() + b" /bin/a",
        f"10 {HASH} ima-ng sha256:{DIGEST} /bin/a\n".encode(),
        f"10 {HASH} ima-ng sha256:{DIGEST} /bin/a b\n".encode(),
        f"10 {HASH} ima-ng sha256:{DIGEST}\n".encode(),
        f"10 {HASH} unheard-of sha256:{DIGEST} /bin/a\n".encode(),
        f"10 {HASH} ima-ng sha256:xyz /bin/a\n".encode(),
        f"10 {HASH} evm-sig sha256:{DIGEST} /e 05 a 00 00 -1 0 0\n".encode(),
        f"10 {HASH} ima {'07' * 16} /bin/a\n".encode(),
        b"\n",
        line(f"sha256:{DIGEST} /a", "ima-ng", sized(ng(), b"/a\nb\0")),
        line(f"sha256:{DIGEST} /a\nb", "ima-ng", sized(ng(), b"/a\nb\0")),
        line(f"sha256:{DIGEST} /a", "ima-ng", sized(ng(), b"/a\0", order=">")),
    ],
)
def test_an_ambiguous_line_is_refused_and_never_guessed(text: bytes) -> None:
    good = line(f"sha256:{DIGEST} /bin/a", "ima-ng", sized(ng(), b"/bin/a\0"))
    with pytest.raises(Refusal) as refusal:
        to_binary(good + text)
    (reason,) = refusal.value.reasons
    assert reason.code.startswith("ima.") and ("line 2" in reason.field or "entry 1" in reason.field)


@given(st.binary(min_size=1, max_size=30).filter(lambda path: b"\0" not in path and b" " not in path))
def test_any_path_is_read_back_or_refused(path: bytes) -> None:
    binary = frame(b"ima-ng", ng(), path + b"\0")
    text = b"10 " + binary[4:24].hex().encode() + b" ima-ng sha256:" + DIGEST.encode() + b" " + path + b"\n"
    try:
        assert to_binary(text) == binary
    except Refusal:
        assert b"\n" in path


@given(st.binary(max_size=300))
def test_random_text_is_refused_or_read(data: bytes) -> None:
    try:
        assert list(entries(to_binary(data)))
    except Refusal as refusal:
        assert refusal.reasons[0].code.startswith("ima.")
