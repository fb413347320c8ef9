"""The ASCII measurement list (`ascii_runtime_measurements`), turned into the binary one or refused.

The ASCII list is for reading: a path may hold a newline, which looks like the end of its line. So each line is built
back into the entry it must have come from, and its template hash computed again: a line that does not come out the
same was cut by a newline, changed, or written by a big-endian kernel, and is refused by its number, never guessed.
One thing cannot be seen here: nothing covers the path of a violation. Source: Linux ima_fs.c, ima_template_lib.c.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from struct import pack

from manager.verification.ima_list import BUILTIN_TEMPLATES, parse
from schemas.base import Refusal
from schemas.messages import MAX_LIST

_LINE = re.compile(rb" ?([0-9]{1,2}) ([0-9a-f]{40}) ([!-~]{1,255}) (.+)", re.DOTALL)


def is_ascii(data: bytes) -> bool:
    """True if a list is the ASCII one, by its first line."""
    return _LINE.match(data[:4096]) is not None


def to_binary(text: bytes) -> bytes:
    """The same list in little-endian binary. Raises Refusal (`ima.ascii`) that names the line."""
    if len(text) > MAX_LIST:
        raise ambiguous(0, f"at most {MAX_LIST} bytes", f"{len(text)} bytes")
    if not text.endswith(b"\n"):
        raise ambiguous(text.count(b"\n") + 1, "a newline at the end", "the end of the list")
    return b"".join(_frame(line, number) for number, line in enumerate(text[:-1].split(b"\n"), 1))


def _frame(line: bytes, number: int) -> bytes:
    matched = _LINE.fullmatch(line)
    if matched is None:
        raise ambiguous(number, "PCR, template hash, template name and fields", "another line")
    pcr, template_hash, template, rest = matched.groups()
    names, shown = BUILTIN_TEMPLATES.get(template, template).split(b"|"), rest.split(b" ")
    if len(names) != len(shown) or not _FIELDS.keys() >= set(names):
        raise ambiguous(number, f"{len(names)} known fields, one space between them", f"{len(shown)} fields")
    try:
        fields = [_FIELDS[name](value) if value else b"" for name, value in zip(names, shown, strict=True)]
    except (ValueError, OverflowError):
        raise ambiguous(number, "hexadecimal and decimal fields", "something else") from None
    if template == b"ima":
        # the old template has a bare digest, and a name without its NUL
        data = fields[0] + pack("<I", len(fields[1]) - 1) + fields[1][:-1]
    else:
        data = b"".join(pack("<I", len(value)) + value for value in fields)
        data = pack("<I", len(data)) + data
    frame = pack("<I", int(pcr)) + bytes.fromhex(template_hash.decode()) + pack("<I", len(template)) + template + data
    entry = parse(frame, number - 1, "little")
    if not entry.violation and entry.extends("sha1") != entry.template_hash:
        raise ambiguous(number, "the template hash of what the line shows", template_hash.decode())
    return frame


def _digest(value: bytes) -> bytes:
    kind, _, digest = value.rpartition(b":")
    return kind + b":\0" + bytes.fromhex(digest.decode())


def _hex(value: bytes) -> bytes:
    return bytes.fromhex(value.decode())


def _string(value: bytes) -> bytes:
    return value + b"\0"


def _uint(size: int) -> Callable[[bytes], bytes]:
    return lambda value: int(value).to_bytes(size, "little")


_FIELDS: dict[bytes, Callable[[bytes], bytes]] = {
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
