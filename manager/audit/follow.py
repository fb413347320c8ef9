"""What makes a head on the bus the next one: its tree goes on from the one that a worker has seen, or continues it.

The leaf hashes on the bus are signed by nobody: they count because they lead from the tree seen before to a signed
root. Where the tree was closed meanwhile, they first lead to the root that the seam names, and the seam is the next
tree's first leaf.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from attestgate.bus.api import Bus
from attestgate.manager.audit.head import ACTION, Head, leaves_from, split
from attestgate.manager.audit.last_head import Seen
from attestgate.manager.audit.merkle import HASH, Frontier, leaf_hash
from attestgate.manager.audit.seam import open_seam, wrong_seam
from attestgate.schemas.audit import Continued
from attestgate.schemas.base import Refusal
from attestgate.schemas.checkpoint import Checkpoint, origin_of
from attestgate.schemas.signing import TrustedKeys

HASHED_AT_ONCE = 2000
"""Leaf hashes that are taken over before the sessions have their turn."""


async def follow(
    bus: Bus, managers: TrustedKeys, seen: Seen, head: Head, checkpoint: Checkpoint
) -> tuple[Seen, tuple[bytes, bytes]]:
    """The log as a newer head shows it, and the leaf hashes that are new, of the closed tree and of this one.

    Raises Refusal (`log.*`), BusError.
    """
    _check_newer(seen, checkpoint, origin_of(managers.deployment))
    begins, closed = seen, b""
    if checkpoint.tree > seen.tree:
        fact = open_seam(head.seam, checkpoint, managers)
        closed = await _rest(bus, seen, fact, checkpoint.tree - 1)
        begins = Seen(tree=checkpoint.tree, before=fact.entries, first=leaf_hash(head.seam).hex())
    frontier, leaves = await _grown(bus, begins, checkpoint.size, checkpoint.root, head.leaves)
    # No signature covers the seam beside a head, and the next head is given the same.
    seam = leaf_hash(head.seam).hex() if head.seam else None
    if seam != begins.first:
        raise wrong_seam(f"leaf hash {begins.first}", f"leaf hash {seam} beside the head")
    if seam is not None and not begins.size and leaves[:HASH].hex() != seam:
        raise wrong_seam(f"leaf hash {seam}, as beside the head", f"leaf hash {leaves[:HASH].hex()}")
    return begins.grown(head.note, frontier, checkpoint.cursor), (closed, leaves)


def went_back(what: str, seen: object, found: str) -> Refusal:
    """The bus shows less than a worker has seen."""
    expected = f"at least {seen}, as this worker has seen it"
    return Refusal.because("log.rolled-back", what, expected=expected, found=found, action=ACTION)


async def in_parts(leaves: bytes) -> AsyncIterator[list[bytes]]:
    """Leaf hashes, few at a time, at least once: a worker that is new may have millions to take over."""
    part = HASHED_AT_ONCE * HASH
    for start in range(0, max(len(leaves), 1), part):
        if start:
            await asyncio.sleep(0)
        yield split(leaves[start : start + part])


def _check_newer(seen: Seen, checkpoint: Checkpoint, log: str) -> None:
    # Stops the head of another deployment, signed by a manager identity that both trust.
    if checkpoint.log != log:
        raise Refusal.because(
            "log.origin",
            "checkpoint",
            expected=log,
            found=checkpoint.origin,
            action="this is another deployment's log: check the bus, and trust_domain in the settings",
        )
    if checkpoint.tree < seen.tree:
        raise went_back("the log", f"tree {seen.tree}", f"tree {checkpoint.tree}")
    if checkpoint.tree == seen.tree and checkpoint.size < seen.size:
        raise went_back("the log", seen.size, str(checkpoint.size))
    # A cursor that went back would have entries taken into the tree a second time.
    if checkpoint.cursor < seen.cursor:
        raise went_back("its cursor", seen.cursor, str(checkpoint.cursor))


async def _rest(bus: Bus, seen: Seen, fact: Continued, tree: int) -> bytes:
    """The leaf hashes of a closed tree that are new: all of them, for a worker that has seen no log yet."""
    if not seen.note:
        seen = Seen(tree=tree, before=fact.entries - fact.size)
    if seen.tree < tree:
        raise Refusal.because(
            "log.gone",
            "the log",
            expected=f"tree {seen.tree}, which this worker has seen, or the one after it",
            found=f"tree {tree + 1}, with only tree {tree} before it",
            action="this worker was away for longer than a tree lasts: docs/decision-log.md says how it goes on",
        )
    if fact.size < seen.size:
        raise went_back(f"tree {tree}", seen.size, f"closed at {fact.size}")
    _, leaves = await _grown(bus, seen, fact.size, bytes.fromhex(fact.root))
    if fact.entries != seen.before + fact.size:
        raise wrong_seam(f"{seen.before + fact.size} entries so far", str(fact.entries))
    return leaves


async def _grown(bus: Bus, seen: Seen, size: int, root: bytes, tail: bytes = b"") -> tuple[Frontier, bytes]:
    """A tree as it is at this size and root, and its leaf hashes that are new."""
    leaves = await leaves_from(bus, seen.tree, seen.size, size, tail)
    frontier = seen.frontier
    async for part in in_parts(leaves):
        frontier = frontier.extended(part)
    if (frontier.size, frontier.root()) != (size, root):
        raise Refusal.because(
            "log.forked",
            f"tree {seen.tree} of {size} entries",
            expected=f"one that goes on from the {seen.size} that this worker has seen: root {frontier.root().hex()}",
            found=f"root {root.hex()}",
            action=ACTION,
        )
    return frontier, leaves
