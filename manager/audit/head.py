"""The contents of the bucket `log`: the newest tree's head under `head`, full tiles of 256 leaf hashes beside it.

The head holds the newest leaf hashes itself, so that one compare-and-set makes the tree grow. A tile is written from
leaf hashes of a stored head, before the next head drops them: every worker that writes it writes the same bytes.

A tree that has `MOST` entries is closed, all of it in tiles, and the log goes on in the next. The bucket has room for
two: each writes its tiles over those of the last but one, under the same keys. Nothing has to be deleted, and a deleted
key would keep its place in the bucket.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from attestgate.bus.api import Bucket, Bus
from attestgate.bus.layout import TREE
from attestgate.manager.audit.merkle import HASH
from attestgate.schemas.audit import MAX_ENTRY
from attestgate.schemas.base import Model, Refusal, unpack
from attestgate.schemas.checkpoint import MAX_NOTE, Checkpoint, open_checkpoint

HEAD = "head"
ACTION = "docs/decision-log.md says what to do when the log does not verify"
"""What there is to do about whatever is wrong with the log."""
TILE = 256
"""Leaf hashes of a full tile, as in C2SP tlog-tiles."""
MOST = 15_250 * TILE
"""Entries of a tree that is closed: two trees fit into the bucket, and the stream holds fewer entries than one."""
MAX_LEAVES = 256 * 1024
"""Bytes of leaf hashes in a head: the bucket's largest value."""


class Head(Model):
    """A signed checkpoint, and the leaf hashes that are in no tile yet, one after another.

    `seam`: the entry that the tree begins with, where it continues another.
    """

    note: Annotated[str, Field(max_length=MAX_NOTE)]
    leaves: Annotated[bytes, Field(max_length=MAX_LEAVES)]
    seam: Annotated[bytes, Field(max_length=MAX_ENTRY)] = b""

    @property
    def hashes(self) -> list[bytes]:
        """The same, one by one."""
        return split(self.leaves)


def open_head(value: bytes, signers: set[bytes]) -> tuple[Head, Checkpoint]:
    """What a bucket holds as the head, believed for its signature. Raises Refusal (`log.*`, `signature.*`)."""
    head = unpack(Head, value)
    checkpoint = open_checkpoint(head.note, signers)
    tiled = checkpoint.size * HASH - len(head.leaves)
    if tiled < 0 or tiled % (TILE * HASH):
        raise _wrong("head", f"the newest of {checkpoint.size} leaf hashes", f"{len(head.leaves)} bytes")
    return head, checkpoint


def room(size: int, most: int) -> int:
    """How many more entries a tree takes before it is closed: at `most`; where it has more, at the next full tile."""
    return most - size if size < most else -size % TILE


def closable(size: int) -> bool:
    """Whether a tree of this size may be closed: all its leaf hashes are in full tiles then."""
    return size > 0 and size % TILE == 0


async def leaves_from(bus: Bus, tree: int, start: int, size: int, tail: bytes = b"") -> bytes:
    """The leaf hashes from index `start` on of a tree of `size`, one after another; the last, `tail`, are in no tile.

    Raises Refusal `log.leaves` where the bus has fewer, BusError.
    """
    bucket = bus.bucket(TREE.name)
    tiled = size - len(tail) // HASH
    found = [await _tile(bucket, tile_key(number, tree)) for number in range(start // TILE, tiled // TILE)]
    skipped = start - start // TILE * TILE if start < tiled else start - tiled
    return b"".join([*found, tail])[skipped * HASH :]


async def put_tiles(bucket: Bucket, head: Head, tree: int, size: int) -> bytes:
    """Store the full tiles among a standing head's own leaf hashes. Returns what is left of them. Raises BusError."""
    whole, bytes_a_tile = len(head.leaves) // (TILE * HASH), TILE * HASH
    first = (size * HASH - len(head.leaves)) // bytes_a_tile
    for number in range(whole):
        await bucket.put(tile_key(first + number, tree), head.leaves[number * bytes_a_tile :][:bytes_a_tile])
    return head.leaves[whole * bytes_a_tile :]


async def _tile(bucket: Bucket, key: str) -> bytes:
    entry = await bucket.get(key)
    value = entry.value if entry is not None else None
    if value is None or len(value) != TILE * HASH:
        found = "no such tile" if value is None else f"{len(value)} bytes"
        raise _wrong(key, f"{TILE} leaf hashes of {HASH} bytes", found)
    return value


def tile_key(number: int, tree: int = 1) -> str:
    """The key of a tile, which it shares with every second tree's."""
    return f"leaves.{number}" if tree % 2 else f"leaves-even.{number}"


def split(value: bytes) -> list[bytes]:
    """Concatenated hashes, one by one."""
    return [value[at : at + HASH] for at in range(0, len(value), HASH)]


def _wrong(what: str, expected: str, found: str) -> Refusal:
    return Refusal.because(
        "log.leaves",
        f"bucket {TREE.name}: {what}",
        expected=expected,
        found=found,
        action=ACTION,
    )
