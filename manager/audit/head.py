"""The contents of the bucket `log`: the head under `head`, full tiles of 256 leaf hashes under `leaves.<n>`.

The head holds the newest leaf hashes itself, so that one compare-and-set makes the tree grow. A tile is written from
leaf hashes of a stored head, before the next head drops them: every worker that writes it writes the same bytes.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from attestgate.bus.api import Bucket, Bus
from attestgate.bus.layout import TREE
from attestgate.manager.audit.merkle import HASH
from attestgate.schemas.base import Model, Refusal, unpack
from attestgate.schemas.checkpoint import MAX_NOTE, Checkpoint, open_checkpoint

HEAD = "head"
ACTION = "docs/decision-log.md says what to do when the log does not verify"
"""What there is to do about whatever is wrong with the log."""
TILE = 256
"""Leaf hashes of a full tile, as in C2SP tlog-tiles."""


MAX_LEAVES = 256 * 1024
"""Bytes of leaf hashes in a head: the bucket's largest value."""


class Head(Model):
    """A signed checkpoint, and the leaf hashes that are in no tile yet, one after another."""

    note: Annotated[str, Field(max_length=MAX_NOTE)]
    leaves: Annotated[bytes, Field(max_length=MAX_LEAVES)]

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


async def leaves_from(bus: Bus, start: int, head: Head, size: int) -> list[bytes]:
    """The leaf hashes from index `start` on of the tree that a head of `size` describes.

    Raises Refusal `log.leaves` where the bus has fewer, BusError.
    """
    bucket = bus.bucket(TREE.name)
    tail = head.hashes
    tiled = size - len(tail)
    found: list[bytes] = []
    for number in range(start // TILE, tiled // TILE):
        found += await _tile(bucket, number)
    skipped = start - start // TILE * TILE if start < tiled else start - tiled
    return [*found, *tail][skipped:]


async def put_tiles(bucket: Bucket, head: Head, size: int) -> bytes:
    """Store the full tiles among a standing head's own leaf hashes. Returns what is left of them. Raises BusError."""
    whole, bytes_a_tile = len(head.leaves) // (TILE * HASH), TILE * HASH
    first = (size * HASH - len(head.leaves)) // bytes_a_tile
    for number in range(whole):
        await bucket.put(tile_key(first + number), head.leaves[number * bytes_a_tile :][:bytes_a_tile])
    return head.leaves[whole * bytes_a_tile :]


async def _tile(bucket: Bucket, number: int) -> list[bytes]:
    entry = await bucket.get(tile_key(number))
    value = entry.value if entry is not None else None
    if value is None or len(value) != TILE * HASH:
        found = "no such tile" if value is None else f"{len(value)} bytes"
        raise _wrong(tile_key(number), f"{TILE} leaf hashes of {HASH} bytes", found)
    return split(value)


def tile_key(number: int) -> str:
    """The key of a tile."""
    return f"leaves.{number}"


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
