"""The costliest messages of permitted size that a stranger can send, for each role and step."""

from __future__ import annotations

import itertools
import json
import string
from collections.abc import Iterator
from typing import Any

import msgpack

from attestgate.bus.crypto.channel import Frame
from attestgate.schemas.base import Model, pack
from attestgate.schemas.binding import PROTOCOL
from attestgate.schemas.bounds import bounds_of
from attestgate.schemas.events import largest
from attestgate.schemas.limits import INBOUND, OUTBOUND
from attestgate.schemas.messages import AppHello, HostHello, Resume, Sealed
from attestgate.schemas.signing import Signed

SIGNED_STEPS = {"report", "challenge", "grant", "refused", "rejected"}
PLAIN: dict[tuple[str, str], type[Model]] = {
    ("host", "hello"): HostHello,
    ("app", "hello"): AppHello,
    ("host", "resume"): Resume,
    ("app", "resume"): Resume,
}
SESSION = "ab" * 16
EMPTY_MAP, NIL, ARRAY32, MAP32, BIN32, STR32 = b"\x80", b"\xc0", b"\xdd", b"\xdf", b"\xc6", b"\xdb"


def size_of(role: str, step: str) -> int:
    """The largest message of a step, in either direction."""
    return INBOUND.get((role, step)) or OUTBOUND[role, step]


def first_read(role: str, step: str) -> type[Model]:
    """The model that is read of such a message before anybody has vouched for it."""
    if step in SIGNED_STEPS:
        return Signed
    return Sealed if step == "evidence" else PLAIN.get((role, step), Frame)


def costliest(role: str, step: str) -> Iterator[tuple[str, bytes]]:
    """By name, messages no longer than the step's maximum."""
    size = size_of(role, step)
    yield from shapes(first_read(role, step), size)
    yield "as it should be, of junk", _junk(role, step, size)


def hello(role: str, name: str, random: bytes) -> bytes:
    """A valid one, by which a host or an application of this name on the bus opens a session."""
    if role == "host":
        return pack(
            HostHello(version=PROTOCOL, host=name, random=random, boot_id="x", agent_version="x", can_give=["sgx"])
        )
    host, app = name.split(".")
    return pack(AppHello(version=PROTOCOL, app=app, host=host, random=random, agent_version="x"))


def shapes(kind: type[Model], size: int) -> Iterator[tuple[str, bytes]]:
    """What is no `kind` in no more than `size` bytes, msgpack all of it."""
    yield "unknown keys", unknown_keys(size)
    yield "empty maps in a list", _counted(ARRAY32, size - 5) + EMPTY_MAP * (size - 5)
    yield "nil in a list", _counted(ARRAY32, size - 5) + NIL * (size - 5)
    yield "empty byte strings in a list", _counted(ARRAY32, (size - 5) // 2) + b"\xc4\x00" * ((size - 5) // 2)
    yield "lists in lists", b"\x91" * (size - 1) + NIL
    yield "lists in lists, each of the most places", _places(kind, size)
    yield "a tree of lists", tree(size, b"\x92", b"\x90")
    yield "a tree of maps", tree(size, b"\x82", b"\x80", b"\xa1a", b"\xa1b")
    yield "one long text", _counted(STR32, size - 5) + b"a" * (size - 5)
    yield "one long key", b"\x81" + _counted(STR32, size - 7) + b"a" * (size - 7) + NIL
    yield "a list announced and not sent", _counted(ARRAY32, 2**32 - 1)
    yield "bytes announced and not sent", _counted(BIN32, 2**32 - 1)
    for name in kind.model_fields:
        yield f"wrong items in {name}", _wrong_items(name, size)


def costliest_events(kind: str) -> Iterator[tuple[str, bytes]]:
    """By name, what may be stored as an event of such a subject: JSON, some of it events."""
    size = largest(kind)
    yield "unknown keys", b"{" + b",".join(b'"%s":0' % key for key in _keys((size - 2) // 8)) + b"}"
    yield "lists in lists", b"[" * (size // 2) + b"]" * (size // 2)
    yield "empty maps in a list", b"[" + b",".join([b"{}"] * ((size - 2) // 3)) + b"]"
    good: dict[str, Any] = {"id": "ab" * 16, "kind": kind, "subject": "g1", "what": "admitted", "at": 1, "source": "g"}
    room = size - len(json.dumps(good)) - 40
    changes: dict[str, dict[str, Any]] = {
        "the last second of another calendar": {"at": 2**40 - 1},
        "a long id": {"id": "a" * room},
        "a long text in its data": {"data": {"key": "a" * room}},
        "reasons that are none": {"data": {"reasons": [1] * (room // 3), "reason": {"code": 1}, "problem": "x"}},
        "half a reason": {"data": {"reasons": [{"code": "x"}], "reason": [{}], "ear": "a.b.c", "outcome": {"x": 1}}},
        "times that are none": {"data": {"lease_end": 2**63, "not_after": -1, "until": True, "serial": ["x"]}},
        "a deep value": {"data": {"key": json.loads("[" * 150 + "]" * 150)}},
        "keys that are lists": {"data": {"key": ["x"], "serial": {"x": []}}},
    }
    for name, change in changes.items():
        yield name, json.dumps({**good, **change}, separators=(",", ":")).encode()


def unknown_keys(size: int) -> bytes:
    """A map of as many short keys as fit."""
    count = (size - 5) // 6
    return _counted(MAP32, count) + b"".join(b"\xa4" + key + NIL for key in _keys(count))


def tree(size: int, node: bytes, leaf: bytes, left: bytes = b"", right: bytes = b"") -> bytes:
    """Containers of two values each, as many as fit, none deep."""
    built = leaf
    while 2 * len(built) + len(node + left + right) <= size:
        built = node + left + built + right + built
    return built


def _places(kind: type[Model], size: int) -> bytes:
    most = max(bounds_of(kind).elements, 1)
    return (b"\xdc" + min(most, 2**16 - 1).to_bytes(2, "big")) * (size // 3)


def _wrong_items(name: str, size: int) -> bytes:
    key = bytes(msgpack.packb(name))
    count = size - len(key) - 6
    return b"\x81" + key + _counted(ARRAY32, count) + NIL * count if count > 0 else b"\x81" + key + b"\x90"


def _junk(role: str, step: str, size: int) -> bytes:
    kind = first_read(role, step)
    whole: Model
    if kind is Sealed:
        whole = Sealed(session=SESSION, ciphertext=b"")
    elif kind is Frame:
        whole = Frame(session=SESSION, counter=1, ack=0, salt=bytes(32), ciphertext=b"")
    elif kind is Signed:
        whole = Signed(version=PROTOCOL, payload=b"", signer=bytes(32), signature=bytes(64))
    else:
        return bytes(size)
    field = "payload" if kind is Signed else "ciphertext"
    return pack(whole.model_copy(update={field: bytes(size - len(pack(whole)) - 4)}))


def _keys(count: int) -> Iterator[bytes]:
    letters = string.ascii_letters + string.digits
    return ("".join(key).encode() for key in itertools.islice(itertools.product(letters, repeat=4), count))


def _counted(kind: bytes, count: int) -> bytes:
    return kind + count.to_bytes(4, "big")
