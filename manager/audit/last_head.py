"""The highest tree head that a worker has seen, on its own disk: the bus must not go back behind it.

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
    """The newest head: its note, and the roots of its tree's complete subtrees."""

    note: Annotated[str, Field(max_length=MAX_NOTE)] = ""
    size: Count = 0
    cursor: Count = 0
    roots: Annotated[list[Hex32], Field(max_length=63)] = []

    @property
    def frontier(self) -> Frontier:
        """The tree as far as its growth needs it."""
        return Frontier(self.size, tuple(bytes.fromhex(root) for root in self.roots))


class LastHead:
    """One file. Raises Refusal (`file.*`) for one that cannot be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seen = read_json(Seen, path) if path.exists() else Seen()

    async def keep(self, note: str, frontier: Frontier, cursor: int) -> None:
        """Remember a newer head at once; on disk when this returns, without holding up anybody else. Raises OSError."""
        roots = [root.hex() for root in frontier.roots]
        self.seen = Seen(note=note, size=frontier.size, cursor=cursor, roots=roots)
        await asyncio.to_thread(atomic_write, self._path, self.seen.model_dump_json().encode())
