"""The usual entry of a measurement list, parsed in one step: a file's, `ima-ng` or `ima-sig`, SHA-256, no signature.

Nearly every entry of a list is one, and reading it field by field is most of what judging it costs. The result is
exactly that of `measurement_list.parse`; everything else, and everything odd, is left to that.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from attestgate.manager.verification.ima.measurement_list import (
    HEADER,
    MAX_PATH,
    VIOLATION,
    ByteOrder,
    ListEntry,
    parse,
)

_HEAD, _DIGEST = b"sha256:\0", 32
_ENDINGS = {b"ima-ng": (b"", None), b"ima-sig": (bytes(4), b"")}
"""By template: what comes after the path (nothing, or the length of no signature), and the signature that this is."""


def reader(order: ByteOrder) -> Callable[[bytes, int], ListEntry]:
    """`parse` for one byte order: reads an entry out of its frame and its index. That raises Refusal (`ima.*`)."""
    sign, low = ("<", 24) if order == "little" else (">", 27)
    head = (len(_HEAD) + _DIGEST).to_bytes(4, order) + _HEAD
    shapes = {}
    for template, (ending, signature) in _ENDINGS.items():
        # PCR, template hash; past what the frame has settled; the digest's length and head, digest, the path's length
        start = Struct(f"{sign}I20s{4 + len(template) + 4}x{len(head)}s{_DIGEST}sI")
        shapes[template] = start.unpack_from, start.size, ending, signature

    def read(frame: bytes, index: int) -> ListEntry:
        name_end = HEADER + frame[low]
        template = frame[HEADER:name_end]
        shape = shapes.get(template)
        if shape is None or len(frame) < shape[1]:
            return parse(frame, index, order)
        unpack, path_at, ending, signature = shape
        pcr, listed, found, digest, size = unpack(frame)
        stop, last = path_at + size, size - 1
        path = frame[path_at:stop]
        fits = found == head and frame[stop:] == ending and 0 < last < MAX_PATH and path.find(0) == last
        if not fits or listed == VIOLATION:
            return parse(frame, index, order)
        hashed = frame[name_end + 4 :]
        fields = (index, pcr, template, listed, False, "sha256", digest, False, path[:-1], signature, None, hashed)
        return tuple.__new__(ListEntry, fields)

    return read
