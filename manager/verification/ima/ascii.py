"""The ASCII measurement list (`ascii_runtime_measurements`), turned into the binary one or refused.

The ASCII list is for reading: a path may hold a newline, which looks like the end of its line. So each line is built
back into the entry it must have come from, and its template hash computed again: a line that does not come out the
same was cut by a newline or changed, and is refused by its number, never guessed. The hash covers lengths in the
kernel's byte order, which it also shows. One thing cannot be seen here: nothing covers the path of a violation.
Source: Linux ima_fs.c, ima_template_lib.c.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress

from attestgate.manager.verification.ima.measurement_list import BUILTIN_TEMPLATES, ByteOrder, parse
from attestgate.schemas.base import Refusal
from attestgate.schemas.messages import MAX_LIST

_LINE = re.compile(rb" ?([0-9]{1,2}) ([0-9a-f]{40}) ([!-~]{1,255}) (.+)", re.DOTALL)


def is_ascii(data: bytes) -> bool:
    """True if a list is the ASCII one, by its first line."""
    return _LINE.match(data[:4096]) is not None


def to_binary(text: bytes) -> bytes:
    """The same list in binary, in its kernel's byte order. Raises Refusal (`ima.*`) that names the line or entry."""
    if len(text) > MAX_LIST:
        raise ambiguous(0, f"at most {MAX_LIST} bytes", f"{len(text)} bytes")
    if not text.endswith(b"\n"):
        raise ambiguous(text.count(b"\n") + 1, "a newline at the end", "the end of the list")
    lines = text[:-1].split(b"\n")
    try:
        return _framed(lines, "little")
    except Refusal:
        # a few machines are big-endian; if that does not fit either, what is said of the usual order is what helps
        with suppress(Refusal):
            return _framed(lines, "big")
        raise


def _framed(lines: list[bytes], order: ByteOrder) -> bytes:
    return b"".join(_frame(line, number, order) for number, line in enumerate(lines, 1))


def _frame(line: bytes, number: int, order: ByteOrder) -> bytes:
    matched = _LINE.fullmatch(line)
    if matched is None:
        raise ambiguous(number, "PCR, template hash, template name and fields", "a line of another form")
    pcr, template_hash, template, rest = matched.groups()
    names, shown = BUILTIN_TEMPLATES.get(template, template).split(b"|"), rest.split(b" ")
    if len(names) != len(shown) or not _FIELDS.keys() >= set(names):
        raise ambiguous(number, f"{len(names)} known fields, one space between them", f"{len(shown)} fields")
    try:
        fields = [_FIELDS[name](value, order) if value else b"" for name, value in zip(names, shown, strict=True)]
    except (ValueError, OverflowError):
        raise ambiguous(number, "hexadecimal and decimal fields", "fields that cannot be read") from None
    if template == b"ima":
        # the old template has a bare digest, and a name without its NUL
        data = fields[0] + _sized(fields[1][:-1], order)
    else:
        data = _sized(b"".join(_sized(value, order) for value in fields), order)
    frame = int(pcr).to_bytes(4, order) + bytes.fromhex(template_hash.decode()) + _sized(template, order) + data
    entry = parse(frame, number - 1, order)
    if not entry.violation and entry.extends("sha1") != entry.template_hash:
        raise ambiguous(number, "the template hash of what the line shows", template_hash.decode())
    return frame


def _sized(value: bytes, order: ByteOrder) -> bytes:
    return len(value).to_bytes(4, order) + value


def _digest(value: bytes, _: ByteOrder) -> bytes:
    kind, _colon, digest = value.rpartition(b":")
    return kind + b":\0" + bytes.fromhex(digest.decode())


def _hex(value: bytes, _: ByteOrder) -> bytes:
    return bytes.fromhex(value.decode())


def _string(value: bytes, _: ByteOrder) -> bytes:
    return value + b"\0"


def _uint(size: int) -> Callable[[bytes, ByteOrder], bytes]:
    return lambda value, order: int(value).to_bytes(size, order)


_FIELDS: dict[bytes, Callable[[bytes, ByteOrder], bytes]] = {
    b"d": _hex,
    **dict.fromkeys((b"d-ng", b"d-ngv2", b"d-modsig"), _digest),
    **dict.fromkeys((b"n", b"n-ng", b"xattrnames"), _string),
    **dict.fromkeys((b"sig", b"buf", b"modsig", b"evmsig", b"xattrlengths", b"xattrvalues"), _hex),
    **dict.fromkeys((b"iuid", b"igid"), _uint(4)),
    b"imode": _uint(2),
}
"""What the kernel printed each field from."""


def ambiguous(line: int, expected: str, found: str) -> Refusal:
    """A refusal of one line of an ASCII list, counted from 1."""
    return Refusal.because(
        "ima.ascii",
        f"ASCII measurement list, line {line}",
        expected=expected,
        found=found,
        action="a path may hold a newline: send binary_runtime_measurements instead",
    )
