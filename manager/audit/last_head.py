"""The newest tree head that a worker has seen, on its own disk: the bus must not go back behind it.

With the frontier of that tree, a later head is checked by the leaf hashes in between. Losing the file loses only that
protection: the worker then believes the head that the bus shows, once the leaf hashes there lead to it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

from pydantic import Field

from attestgate.manager.audit.merkle import Frontier
from attestgate.manager.local.atomic_file import atomic_write
from attestgate.schemas.base import Count, Hex32, Model, read_json
from attestgate.schemas.checkpoint import MAX_NOTE


class Seen(Model):
    """The newest head: its note, and the roots of its tree's complete subtrees.

    `tree` is its tree's number, `before` how many entries the trees before have, `first` the leaf hash with which its
    tree begins where it is not the log's first: the seam's.
    """

    note: Annotated[str, Field(max_length=MAX_NOTE)] = ""
    size: Count = 0
    cursor: Count = 0
    roots: Annotated[list[Hex32], Field(max_length=63)] = []
    tree: Count = 1
    before: Count = 0
    first: Hex32 | None = None

    @property
    def frontier(self) -> Frontier:
        """The tree as far as its growth needs it."""
        return Frontier(self.size, tuple(bytes.fromhex(root) for root in self.roots))

    def grown(self, note: str, frontier: Frontier, cursor: int) -> Seen:
        """A later head of the same tree."""
        roots = [root.hex() for root in frontier.roots]
        return self.model_copy(update={"note": note, "size": frontier.size, "cursor": cursor, "roots": roots})


class LastHead:
    """One file. Raises Refusal (`file.*`) for one that cannot be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seen = read_json(Seen, path) if path.exists() else Seen()

    async def keep(self, seen: Seen) -> None:
        """Remember a newer head at once; on disk when this returns, without holding up anybody else. Raises OSError."""
        self.seen = seen
        await asyncio.to_thread(atomic_write, self._path, self.seen.model_dump_json().encode())
