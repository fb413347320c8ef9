"""The Merkle tree of RFC 9162, section 2.1, over SHA-256: roots, inclusion proofs, consistency proofs.

A tree is given by its leaf hashes in their order. `Frontier` is the same tree with all forgotten that its growth does
not need: one root for each 1 in the binary form of its size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

HASH = 32
"""Bytes of a hash."""


def leaf_hash(entry: bytes) -> bytes:
    """An entry's leaf hash. 0 here and 1 for nodes: no node's hash can pass for an entry's."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash over two subtrees."""
    return sha256(b"\x01" + left + right).digest()


@dataclass(frozen=True)
class Frontier:
    """The roots of a tree's complete subtrees, the largest and leftmost first."""

    size: int = 0
    roots: tuple[bytes, ...] = ()

    def extended(self, leaves: Iterable[bytes]) -> Frontier:
        """The tree with more leaf hashes at its end."""
        size, roots = self.size, list(self.roots)
        for node in leaves:
            level = size
            while level & 1:
                node = node_hash(roots.pop(), node)
                level >>= 1
            roots.append(node)
            size += 1
        return Frontier(size, tuple(roots))

    def root(self) -> bytes:
        """The tree's root hash; of no leaves the hash of nothing."""
        if not self.roots:
            return sha256(b"").digest()
        root, *rest = reversed(self.roots)
        for left in rest:
            root = node_hash(left, root)
        return root


def root_of(leaves: Sequence[bytes]) -> bytes:
    """The root hash over leaf hashes."""
    return Frontier().extended(leaves).root()


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The audit path of leaf `index` (section 2.1.3.1), from the leaf upwards."""
    if len(leaves) == 1:
        return []
    split = _split(len(leaves))
    left, right = leaves[:split], leaves[split:]
    if index < split:
        return [*inclusion_proof(left, index), root_of(right)]
    return [*inclusion_proof(right, index - split), root_of(left)]


def includes(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether a path shows that `leaf` is leaf `index` of the tree of `size` with this root (section 2.1.3.2)."""
    # The path's length is not checked beforehand: it has to end just at the root (`last == 0`), no sooner, no later.
    if not 0 <= index < size:
        return False
    at, last, node = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            return False
        if at & 1 or at == last:
            node = node_hash(sibling, node)
            at, last = _up(at, last)
        else:
            node = node_hash(node, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and node == root


def consistency_proof(leaves: Sequence[bytes], size: int) -> list[bytes]:
    """What shows that the tree over `leaves` goes on from its first `size` (section 2.1.4.1); 0 < size <= all."""
    return _subproof(leaves, size, known=True)


def goes_on(size: int, root: bytes, later_size: int, later_root: bytes, path: Sequence[bytes]) -> bool:
    """Whether a path shows that the later tree begins with all of the earlier (section 2.1.4.2)."""
    if size == later_size:
        return root == later_root and not path
    if not 0 < size < later_size:
        return False
    nodes = [root, *path] if size & (size - 1) == 0 else list(path)
    at, last = size - 1, later_size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    if not nodes:
        return False
    old = new = nodes[0]
    for sibling in nodes[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            at, last = _up(at, last)
        else:
            new = node_hash(new, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and old == root and new == later_root


def _subproof(leaves: Sequence[bytes], size: int, *, known: bool) -> list[bytes]:
    """`known`: the verifier has the root over just these leaves already."""
    if size == len(leaves):
        return [] if known else [root_of(leaves)]
    split = _split(len(leaves))
    left, right = leaves[:split], leaves[split:]
    if size <= split:
        return [*_subproof(left, size, known=known), root_of(right)]
    return [*_subproof(right, size - split, known=False), root_of(left)]


def _split(size: int) -> int:
    """The largest power of two below a size of at least 2."""
    return 1 << (size - 1).bit_length() - 1


def _up(at: int, last: int) -> tuple[int, int]:
    """Past the levels at which a rightmost node has no sibling."""
    while at and not at & 1:
        at, last = at >> 1, last >> 1
    return at, last
