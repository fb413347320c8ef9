"""The kernel's IMA measurement list: framing, entries, template hashes.

Source: Linux `security/integrity/ima` (ima_fs.c, ima_template.c, ima_template_lib.c, ima_crypto.c) and
Documentation/security/IMA-templates. The binary list (`binary_runtime_measurements`) is a run of entries:

    u32 pcr | 20 bytes SHA-1 template hash | u32 n | n bytes template name | u32 m | m bytes template data

Template data is its fields one after another, each `u32 length | bytes`, and is what the template hash covers: header
and template name are not. Integers are in the kernel's byte order, or little-endian with `ima_canonical_fmt`. The old
template `ima` has no m, a bare 20-byte digest, and a name without its final NUL; its hash covers a 256-byte name.
A violation (a file read while open for writing) has a template hash of zeros, nothing covers its data, and the PCR is
extended with 0xff...ff. Nothing in here trusts a length it has not compared with the bytes present.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

from attestgate.schemas.base import Refusal
from attestgate.schemas.host_policy import IMA_PCR, Bank, Replay
from attestgate.schemas.messages import MAX_LIST

ByteOrder = Literal["little", "big"]

MAX_NAME = 255
MAX_DATA = 1024 * 1024
"""Longest template data of one entry, in bytes (a buffer or extended attributes; a file's entry is about 120)."""

MAX_PATH = 4096
"""PATH_MAX, in bytes, the final NUL included."""

HEADER = 28
VIOLATION = bytes(20)
_U32 = {"little": struct.Struct("<I").unpack_from, "big": struct.Struct(">I").unpack_from}
_HEAD = {"little": struct.Struct("<I20sI").unpack_from, "big": struct.Struct(">I20sI").unpack_from}

BANK_HASHES = {"sha1": hashlib.sha1, "sha256": hashlib.sha256, "sha384": hashlib.sha384}
"""The hash of each PCR bank; SHA-1 here is the kernel's choice, not ours."""

BUILTIN_TEMPLATES: dict[bytes, bytes] = {
    b"ima": b"d|n",
    b"ima-ng": b"d-ng|n-ng",
    b"ima-ngv2": b"d-ngv2|n-ng",
    b"ima-sig": b"d-ng|n-ng|sig",
    b"ima-sigv2": b"d-ngv2|n-ng|sig",
    b"ima-buf": b"d-ng|n-ng|buf",
    b"ima-modsig": b"d-ng|n-ng|sig|d-modsig|modsig",
    b"evm-sig": b"d-ng|n-ng|evmsig|xattrnames|xattrlengths|xattrvalues|iuid|igid|imode",
}
"""Name to format of the templates that the kernel names; a custom one is listed by its format."""

FIELDS = frozenset(
    b"d d-ng d-ngv2 n n-ng sig buf d-modsig modsig evmsig xattrnames xattrlengths xattrvalues iuid igid imode".split()
)
"""Every field that the kernel knows. A template here has exactly one of `d*` and one of `n*` among them."""

DIGEST_SIZES = {
    name: size
    for size, names in {
        16: ("md5",),
        20: ("sha1", "rmd160"),
        28: ("sha224",),
        32: ("sha256", "sha3-256", "sm3", "streebog256", "wp256"),
        48: ("sha384", "sha3-384", "wp384"),
        64: ("sha512", "sha3-512", "streebog512", "wp512"),
    }.items()
    for name in names
}
"""Bytes of a file digest, by the kernel's name of its algorithm (crypto/hash_info.c)."""


class ListEntry(NamedTuple):
    """One measurement (a named tuple: a third of the time of a frozen class, and lists are long).

    `number` counts from 0 over the whole list. `template_hash` is what the list says and `hashed` what it must be the
    hash of; `digest` is the file's or buffer's, under `algorithm`, and `verity` says that it is an fs-verity digest.
    `path` is raw bytes: the kernel has replaced its spaces by underscores. `signature` and `buffer` are None where the
    template has none. Nothing vouches for the data of a `violation`.
    """

    number: int
    pcr: int
    template: bytes
    template_hash: bytes
    violation: bool
    algorithm: str
    digest: bytes
    verity: bool
    path: bytes
    signature: bytes | None
    buffer: bytes | None
    hashed: bytes

    def extends(self, bank: Bank) -> bytes:
        """What the kernel extends PCR 10 of `bank` with for this entry."""
        hashed = BANK_HASHES[bank](self.hashed)
        return b"\xff" * hashed.digest_size if self.violation else hashed.digest()


class Truncated(Refusal):
    """A list that ends within an entry; in a piece of a list, the entry that goes on in the next one.

    `start` is where it begins in the bytes that were read.
    """

    start = 0


def byte_order(data: bytes, *, first: int = 0) -> ByteOrder:
    """The byte order of a list, by the first template name's length (1 to 255). Raises Refusal (`ima.header`)."""
    length = data[24:HEADER]
    if not data or (len(length) == 4 and length[0] and not any(length[1:])):
        return "little"
    if len(length) == 4 and length[3] and not any(length[:3]):
        return "big"
    raise malformed(
        "ima.header", first, "a template name of 1 to 255 bytes", f"length field {length.hex() or 'missing'}"
    )


def frames(data: bytes, order: ByteOrder, *, first: int = 0) -> Iterator[bytes]:
    """The entries of a binary list as they are, one after another; `first` is the index of the first one.

    Raises Refusal: `ima.size` for a list or entry beyond its bound, and Truncated (`ima.truncated`) for one cut short.
    """
    end = len(data)
    if end > MAX_LIST:
        raise malformed("ima.size", first, f"a list of at most {MAX_LIST} bytes", f"{end} bytes")
    u32 = _U32[order]
    start, index = 0, first
    while start < end:
        if end - start < HEADER:
            raise _truncated(start, index, f"a header of {HEADER} bytes", f"{end - start} bytes")
        (name,) = u32(data, start + 24)
        if not 0 < name <= MAX_NAME:
            raise malformed("ima.size", index, f"a template name of 1 to {MAX_NAME} bytes", f"{name} bytes")
        place = start + HEADER + name
        if name == 3 and data[place - 3 : place] == b"ima":
            place += 20
        if end - place < 4:
            raise _truncated(start, index, "a template name and the length of its data", "the end of the list")
        (length,) = u32(data, place)
        if length > MAX_DATA:
            raise malformed("ima.size", index, f"template data of at most {MAX_DATA} bytes", f"{length} bytes")
        stop = place + 4 + length
        if stop > end:
            raise _truncated(start, index, f"{length} bytes of template data", f"{end - place - 4} bytes")
        yield data[start:stop]
        start = stop
        index += 1


def parse(frame: bytes, index: int, order: ByteOrder) -> ListEntry:
    """Read one entry out of its frame. Raises Refusal (`ima.*`) for anything that the kernel does not write.

    All in one function, for this is where judging a new list spends its time.
    """
    pcr, template_hash, size = _HEAD[order](frame)
    data_at = HEADER + size
    template = frame[HEADER:data_at]
    layout = _BUILTIN.get(template) or _layout(template)
    if layout is None:
        raise malformed("ima.template", index, "a template with one digest and one name", readable(template))
    names, digest_at, path_at, signature_at, buffer_at, heads = layout
    if template == b"ima":
        values, hashed = _old_fields(frame[data_at:], index)
    else:
        hashed = frame[data_at + 4 :]
        u32, place, values = _U32[order], 0, []
        try:
            for _ in names:
                start = place + 4
                place = start + u32(hashed, place)[0]
                values.append(hashed[start:place])
        except struct.error:
            place = -1
        if place != len(hashed):
            raise malformed("ima.fields", index, f"fields that fill {len(hashed)} bytes", "fields of another length")
    raw = values[digest_at]
    head, _, digest = raw.partition(b":\0") if heads is not _BARE else (_bare_head(raw), b"", raw)
    algorithm, length, verity = heads.get(head, _NO_DIGEST)
    # Zeros in front of an ordinary entry do not excuse it: the replay then extends 0xff...ff, and misses the quote.
    violation = template_hash == VIOLATION
    if len(digest) != length and not violation:
        raise malformed("ima.digest", index, "a digest of its algorithm's length", _cut(raw))
    if violation and (any(digest) or not algorithm):
        raise malformed("ima.violation", index, "a violation with a digest of zeros", _cut(raw))
    path = values[path_at]
    last = len(path) - 1
    if not 0 < last < MAX_PATH or path.find(0) != last:
        raise malformed("ima.path", index, f"a path that ends at its only NUL, at most {MAX_PATH} bytes", _cut(path))
    signature = None if signature_at is None else values[signature_at]
    buffer = None if buffer_at is None else values[buffer_at]
    path = path[:-1]
    # half the time that calling the class takes
    return tuple.__new__(
        ListEntry,
        (index, pcr, template, template_hash, violation, algorithm, digest, verity, path, signature, buffer, hashed),
    )


def entries(data: bytes, *, first: int = 0) -> Iterator[ListEntry]:
    """Every entry of a binary list; `first` is the index of the first one. Raises Refusal (`ima.*`)."""
    order = byte_order(data, first=first)
    for index, frame in enumerate(frames(data, order, first=first), first):
        yield parse(frame, index, order)


def replay(before: Replay, measured: Iterable[ListEntry]) -> Replay:
    """PCR 10 after more entries, in each bank that `before` has. Entries of other PCRs count but do not extend it."""
    values = {bank: bytes.fromhex(value) for bank, value in before.pcr10.items()}
    count = before.entries
    for entry in measured:
        count += 1
        if entry.pcr == IMA_PCR:
            values = {bank: BANK_HASHES[bank](value + entry.extends(bank)).digest() for bank, value in values.items()}
    return Replay(entries=count, pcr10={bank: value.hex() for bank, value in values.items()})


def readable(path: bytes) -> str:
    """A path for people: printable text as it is, everything else as `\\xNN`, a backslash doubled."""
    text = path.replace(b"\\", rb"\\").decode("utf-8", "backslashreplace")
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c.encode()) for c in text)


def _escaped(raw: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in raw)


_Digest = tuple[str, int, bool]
"""Algorithm, bytes of a digest by it, whether it is fs-verity's."""


class _Layout(NamedTuple):
    """Which fields a template has, the positions of the ones read here, and the prefixes that a digest may have."""

    names: tuple[bytes, ...]
    digest: int
    path: int
    signature: int | None
    buffer: int | None
    heads: dict[bytes, _Digest]


_NG: dict[bytes, _Digest] = {name.encode(): (name, size, False) for name, size in DIGEST_SIZES.items()}
_NO_DIGEST: _Digest = ("", -1, False)
_BARE = {head: _NG[head] for head in (b"md5", b"sha1")}
_HEADS: dict[bytes, dict[bytes, _Digest]] = {
    b"d": _BARE,
    b"d-ng": _NG,
    b"d-ngv2": {
        b"%s:%s" % (kind, head): (name, size, kind == b"verity")
        for kind in (b"ima", b"verity")
        for head, (name, size, _) in _NG.items()
    },
}
"""By digest field: `d` is bare, `d-ng` is `algorithm:\0digest`, `d-ngv2` has `ima:` or `verity:` in front of that."""


@lru_cache(maxsize=64)
def _layout(template: bytes) -> _Layout | None:
    """The layout of a template by its name or format; None if it is not one the kernel could have."""
    names = tuple(BUILTIN_TEMPLATES.get(template, template).split(b"|"))
    places = {name: place for place, name in enumerate(names)}
    digests = [name for name in _HEADS if name in places]
    paths = [places[name] for name in (b"n", b"n-ng") if name in places]
    if len(places) != len(names) or not FIELDS.issuperset(names) or len(digests) != 1 or len(paths) != 1:
        return None
    (digest,) = digests
    return _Layout(names, places[digest], paths[0], places.get(b"sig"), places.get(b"buf"), _HEADS[digest])


_BUILTIN = {name: layout for name in BUILTIN_TEMPLATES if (layout := _layout(name)) is not None}


def _old_fields(data: bytes, index: int) -> tuple[list[bytes], bytes]:
    """The fields of template `ima` and what its hash covers: the digest, and the name filled up to 256 bytes."""
    digest, path = data[:20], data[24:]
    if len(path) > MAX_NAME:
        raise malformed("ima.path", index, f"a name of at most {MAX_NAME} bytes", f"{len(path)} bytes")
    return [digest, path + b"\0"], digest + path.ljust(MAX_NAME + 1, b"\0")


def _bare_head(digest: bytes) -> bytes:
    """The algorithm that the kernel means by a digest without a name."""
    return b"md5" if len(digest) == 16 else b"sha1"


def _cut(raw: bytes) -> str:
    return f"{len(raw)} bytes, {readable(raw[:80])}"


def _truncated(start: int, index: int, expected: str, found: str) -> Truncated:
    cut = Truncated(*malformed("ima.truncated", index, expected, found).reasons)
    cut.start = start
    return cut


def malformed(code: str, index: int, expected: str, found: str) -> Refusal:
    """A refusal of the entry at `index` of the list."""
    return Refusal.because(
        code,
        f"measurement list, entry {index}",
        expected=expected,
        found=found,
        action="send the kernel's binary_runtime_measurements unchanged",
    )
