"""The decision log as the bus shows it now, whole: for those who check it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from attestgate.bus.api import Bus, StoredMessage
from attestgate.bus.layout import LOG, TREE
from attestgate.manager.audit.head import HEAD, Head, leaves_from, open_head, split
from attestgate.manager.audit.seam import open_seam
from attestgate.schemas.base import Refusal
from attestgate.schemas.checkpoint import Checkpoint
from attestgate.schemas.signing import TrustedKeys


@dataclass(frozen=True)
class Tree:
    """A tree of the log, as signed, and its leaf hashes. `first`: its first entry's number, from 0 in the whole log."""

    number: int
    first: int
    size: int
    root: bytes
    leaves: list[bytes]

    @property
    def end(self) -> int:
        """The number of the next tree's first entry."""
        return self.first + self.size


@dataclass(frozen=True)
class LogCopy:
    """A head, its tree and the closed one before it, and what the stream holds. Entries are numbered through all trees.

    `note` is the head as it was signed, `seam` the entry that its tree begins with, if it continues another.
    """

    note: str
    checkpoint: Checkpoint
    seam: bytes
    closed: Tree | None
    newest: Tree
    stored: list[StoredMessage]

    @property
    def trees(self) -> tuple[Tree, ...]:
        """Those that the bus has, the older first."""
        return (self.newest,) if self.closed is None else (self.closed, self.newest)

    @property
    def first(self) -> int:
        """The number of the first entry whose hash the bus has."""
        return self.trees[0].first

    @property
    def size(self) -> int:
        """How many entries the log has, in all its trees."""
        return self.newest.end

    @property
    def seams(self) -> set[int]:
        """The numbers of the entries that trees begin with: in the stream they come later than in their tree."""
        return {tree.first for tree in self.trees if tree.number > 1}

    def leaves(self) -> Iterator[bytes]:
        """The leaf hashes of all trees, from `first` on."""
        for tree in self.trees:
            yield from tree.leaves

    @cached_property
    def index(self) -> dict[bytes, int]:
        """The number of each leaf hash."""
        return {leaf: number for number, leaf in enumerate(self.leaves(), self.first)}


async def read_head(bus: Bus, signers: set[bytes]) -> str:
    """The signed head alone. Raises Refusal (`log.*`, `signature.*`), BusError."""
    head, _ = await _head(bus, signers)
    return head.note


async def read_log(bus: Bus, managers: TrustedKeys) -> LogCopy:
    """All of it. Raises Refusal (`log.*`, `signature.*`) for a head or tree that cannot be read, BusError."""
    head, checkpoint = await _head(bus, set(managers.by_role["manager"]))
    closed, number = None, checkpoint.tree
    if number > 1:
        fact = open_seam(head.seam, checkpoint, managers)
        before = split(await leaves_from(bus, number - 1, 0, fact.size))
        closed = Tree(number - 1, fact.entries - fact.size, fact.size, bytes.fromhex(fact.root), before)
    leaves = split(await leaves_from(bus, number, 0, checkpoint.size, head.leaves))
    newest = Tree(number, closed.end if closed else 0, checkpoint.size, checkpoint.root, leaves)
    stored: list[StoredMessage] = []
    after, more = 0, True
    while more:
        page, more = await bus.page(LOG.name, after)
        stored += page
        after = page[-1].sequence if page else after
    return LogCopy(head.note, checkpoint, head.seam, closed, newest, stored)


async def _head(bus: Bus, signers: set[bytes]) -> tuple[Head, Checkpoint]:
    entry = await bus.bucket(TREE.name).get(HEAD)
    if entry is None or entry.value is None:
        raise Refusal.because(
            "log.none",
            "decision log",
            expected="a head in the bucket log",
            found="no head",
            action="start a manager worker; if there was a log before, docs/decision-log.md says what to do",
        )
    return open_head(entry.value, signers)
