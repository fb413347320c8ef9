"""The decision log, as a worker keeps it: follow its head, and make it grow by what the stream holds.

No worker leads. Each checks every newer head against the one that it has seen before; each takes in what the stream
has got since, signs the new head, and stores it by compare-and-set: of several, one wins, and the others look again.
This goes on beside the sessions, in batches; nothing waits for the tree. A head that does not fit what this worker has
seen is reported, and never built upon; while the log stands still, nothing new is granted. A tree that is full is
closed by whoever appends next, who begins another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from secrets import randbelow

import structlog

from attestgate.bus.api import Bus, BusError, Conflict, StoredMessage
from attestgate.bus.layout import LOG, TREE
from attestgate.manager.audit.alarms import Alarms
from attestgate.manager.audit.follow import follow, in_parts, went_back
from attestgate.manager.audit.head import ACTION, HEAD, MOST, Head, open_head, put_tiles, room
from attestgate.manager.audit.intake import OVERDUE_S, Intake
from attestgate.manager.audit.last_head import LastHead, Seen
from attestgate.manager.audit.merkle import Frontier, leaf_hash
from attestgate.manager.audit.seam import put_seam
from attestgate.schemas.audit import Continued, open_decision
from attestgate.schemas.base import Reason, Refusal, pack
from attestgate.schemas.checkpoint import Checkpoint, open_checkpoint, origin_of, sign_checkpoint
from attestgate.schemas.signing import Signer, TrustedKeys

log = structlog.get_logger(__name__)

LINGER_MS = 50
"""After the first new entry, for others to join its batch, and one to two times that, so that workers spread out."""
LOOK_S = 2.0
"""How often a worker without entries of its own looks: another may have died before it took in its last."""
CERTAIN = 2
"""Consecutive looks that must find the same problem: a cluster between two leaders may show an older head once."""
VERIFIED_AT_ONCE = 16
"""Entries whose signatures are verified before the sessions have their turn."""
TELL_EVERY = 30
"""Looks after which a problem that lasts is reported again."""


@dataclass(frozen=True)
class Status:
    """For metrics: entries in the log's trees, age in seconds of the oldest not yet in one, whether the head fits."""

    size: int
    pending_s: float
    consistent: bool


class DecisionLog:
    """One worker's part in the log. `managers`: whose heads and entries are trusted, its own identity among them.

    `most`: entries of a tree, full tiles of them.
    """

    def __init__(
        self,
        bus: Bus,
        intake: Intake,
        memory: LastHead,
        identity: Signer,
        managers: TrustedKeys,
        alarms: Alarms,
        now: Callable[[], float],
        most: int = MOST,
    ) -> None:
        self._bus = bus
        self._bucket = bus.bucket(TREE.name)
        self._intake = intake
        self._memory = memory
        self._identity = identity
        self._managers = managers
        self._signers = set(managers.by_role["manager"])
        self._alarms = alarms
        self._now = now
        self._most = most
        self._head = Head(note="", leaves=b"")
        self._value, self._revision = b"", 0
        """The head on the bus, as it was last read or written."""
        self._troubles, self._trouble = 0, ""
        intake.taken((), memory.seen.cursor)

    @property
    def checkpoint(self) -> str:
        """The newest head that this worker has checked, as a signed note; empty before the first."""
        return self._memory.seen.note

    def status(self) -> Status:
        """For metrics."""
        seen = self._memory.seen
        return Status(seen.before + seen.size, self._intake.age_s(), self._troubles < CERTAIN)

    @property
    def standing_still(self) -> Reason | None:
        """Why nothing new may be granted: the log takes in no entries. None while it does."""
        if self._troubles >= CERTAIN:
            return _standing_still(self._trouble)
        if self._intake.late:
            return _standing_still(f"an entry that has waited for more than {OVERDUE_S} s")
        return None

    async def run(self) -> None:
        """Follow the head and append, until cancelled."""
        while True:
            self._intake.news.clear()
            more = await self._look()
            await self._intake.try_again()
            if late := self._intake.overdue():
                await self._alarms.overdue(late)
            if not more:
                await self._pause()

    async def grow(self) -> bool:
        """Check the present head, and append the next page of the stream. Returns whether there may be more.

        Raises Refusal for a head that does not fit what was seen before, Conflict where another was first, BusError.
        """
        await self._follow()
        seen = self._memory.seen
        page, more = await self._bus.page(LOG.name, seen.cursor)
        if not page:
            return more
        if not room(seen.size, self._most):
            await self._begin()
            return True
        return await self._append(page) or more

    async def _look(self) -> bool:
        try:
            more = await self.grow()
        except Conflict:
            # Another worker was first. A bus that says so each time makes no loop of it.
            await _linger()
            return True
        except BusError as error:
            log.warning("decision log not updated, retrying", error=str(error))
            return False
        except Refusal as refusal:
            self._troubles += 1
            self._trouble = refusal.reasons[0].sentence()
            if self._troubles % TELL_EVERY == CERTAIN:
                await self._alarms.inconsistent(refusal.reasons)
            return False
        except Exception:  # a fault of ours, or of this machine's disk, must not end the worker
            log.exception("fault in the decision log")
            return False
        self._troubles = 0
        return more

    async def _pause(self) -> None:
        """Until there is something new; where the head does not fit, nothing new hurries the next look."""
        if self._troubles:
            await asyncio.sleep(LOOK_S)
            return
        try:
            async with asyncio.timeout(LOOK_S):
                await self._intake.news.wait()
        except TimeoutError:
            return
        await _linger()

    async def _follow(self) -> None:
        """Take over a newer head, if it extends the one seen before. Raises Refusal (`log.*`), BusError."""
        entry = await self._bucket.get(HEAD)
        seen = self._memory.seen
        if entry is None or entry.value is None:
            if seen.note:
                raise went_back("the log", seen.size, "no head")
            return
        if entry.value == self._value:
            self._revision = entry.revision
            return
        head, checkpoint = open_head(entry.value, self._signers)
        seen, new = await follow(self._bus, self._managers, seen, head, checkpoint)
        self._value, self._revision = entry.value, entry.revision
        await self._keep(head, seen, *new)

    async def _append(self, page: list[StoredMessage]) -> bool:
        """Append the entries of a page that the tree has room for; whether some are left. Raises Conflict, BusError."""
        seen = self._memory.seen
        leaves, cursor = await self._entries(page, room(seen.size, self._most))
        rest = await put_tiles(self._bucket, self._head, seen.tree, seen.size)
        frontier = seen.frontier.extended(leaves)
        await self._store(seen, frontier, cursor, b"".join(leaves), rest, self._head.seam)
        return cursor < page[-1].sequence

    async def _begin(self) -> None:
        """Close the tree, which is full, and begin the next with the entry that names it. Raises Conflict, BusError."""
        seen = self._memory.seen
        # All of it is in tiles from here on: the next head holds none of its leaf hashes.
        await put_tiles(self._bucket, self._head, seen.tree, seen.size)
        closed, entries = open_checkpoint(seen.note, self._signers), seen.before + seen.size
        seam = await put_seam(self._bus, self._identity, self._managers, closed, entries)
        leaf = leaf_hash(seam)
        new = Seen(tree=seen.tree + 1, before=entries, first=leaf.hex())
        # In the stream, it comes after entries that are still to be taken in: the cursor stays where it is.
        await self._store(new, Frontier().extended([leaf]), seen.cursor, leaf, b"", seam)

    async def _store(
        self, seen: Seen, frontier: Frontier, cursor: int, leaves: bytes, rest: bytes, seam: bytes
    ) -> None:
        """Sign and store the next head: its own leaf hashes are the `rest`, and the new. Raises Conflict, BusError."""
        origin = origin_of(self._identity.deployment, seen.tree)
        checkpoint = Checkpoint(
            origin=origin, size=frontier.size, root=frontier.root(), cursor=cursor, at=int(self._now())
        )
        note = sign_checkpoint(self._identity.key, checkpoint)
        head = Head(note=note, leaves=rest + leaves, seam=seam)
        value = pack(head)
        if self._revision:
            self._revision = await self._bucket.update(HEAD, value, self._revision)
        else:
            self._revision = await self._bucket.create(HEAD, value)
        self._value = value
        await self._keep(head, seen.grown(note, frontier, cursor), leaves)

    async def _keep(self, head: Head, seen: Seen, *new: bytes) -> None:
        self._head = head
        for leaves in new:
            async for part in in_parts(leaves):
                self._intake.taken(part, seen.cursor)
        await self._memory.keep(seen)

    async def _entries(self, page: list[StoredMessage], most: int) -> tuple[list[bytes], int]:
        """The leaf hashes of a page's entries, at most so many, and the sequence up to which that is.

        Left out is what no manager signed, what came twice, and what continues a tree: it is in the log already.
        """
        known = set(self._head.hashes)
        leaves: list[bytes] = []
        cursor = self._memory.seen.cursor
        for number, stored in enumerate(page):
            if len(leaves) == most:
                break
            cursor = stored.sequence
            if number % VERIFIED_AT_ONCE == VERIFIED_AT_ONCE - 1:
                await asyncio.sleep(0)
            try:
                # For this subject: under another, a true entry would pass for a decision about somebody else.
                decision = open_decision(stored.subject, stored.data, self._managers)
            except Refusal as refusal:
                await self._alarms.stranger(stored, refusal)
                continue
            leaf = leaf_hash(stored.data)
            if leaf not in known and not isinstance(decision.fact, Continued):
                known.add(leaf)
                leaves.append(leaf)
        return leaves, cursor


async def _linger() -> None:
    await asyncio.sleep((LINGER_MS + randbelow(LINGER_MS)) / 1000)


def _standing_still(found: str) -> Reason:
    return Reason(
        code="log.standing-still",
        field="decision log",
        expected="a log that takes in its entries: without it nothing new is granted",
        found=found,
        action=ACTION,
    )
