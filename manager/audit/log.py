"""The decision log, as a worker keeps it: follow its head, and make it grow by what the stream holds.

No worker leads. Each checks every newer head against the one that it has seen before; each takes in what the stream
has got since, signs the new head, and stores it by compare-and-set: of several, one wins, and the others look again.
This goes on beside the sessions, in batches; nothing waits for the tree. A head that does not fit what this worker has
seen is reported, and never built upon; while the log stands still, nothing new is granted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from secrets import randbelow

import structlog

from attestgate.bus.api import Bus, BusError, Conflict, StoredMessage
from attestgate.bus.layout import LOG, TREE
from attestgate.manager.audit.alarms import Alarms
from attestgate.manager.audit.head import ACTION, HEAD, Head, leaves_from, open_head, put_tiles
from attestgate.manager.audit.intake import OVERDUE_S, Intake
from attestgate.manager.audit.last_head import LastHead
from attestgate.manager.audit.merkle import Frontier, leaf_hash
from attestgate.schemas.audit import open_decision
from attestgate.schemas.base import Reason, Refusal, pack
from attestgate.schemas.checkpoint import Checkpoint, origin_of, sign_checkpoint
from attestgate.schemas.signing import Signer, TrustedKeys

log = structlog.get_logger(__name__)

LINGER_MS = 50
"""After the first new entry, for others to join its batch, and one to two times that, so that workers spread out."""
LOOK_S = 2.0
"""How often a worker without entries of its own looks: another may have died before it took in its last."""
CERTAIN = 2
"""Consecutive looks that must find the same problem: a cluster between two leaders may show an older head once."""
VERIFIED_AT_ONCE, HASHED_AT_ONCE = 16, 2000
"""Entries whose signatures are verified, and leaf hashes that are taken over, before the sessions have their turn."""
TELL_EVERY = 30
"""Looks after which a problem that lasts is reported again."""


@dataclass(frozen=True)
class Status:
    """For metrics: entries in the tree, age in seconds of the oldest not yet in it, whether the head fits."""

    size: int
    pending_s: float
    consistent: bool


class DecisionLog:
    """One worker's part in the log. `managers`: whose heads and entries are trusted, its own identity among them."""

    def __init__(
        self,
        bus: Bus,
        intake: Intake,
        memory: LastHead,
        identity: Signer,
        managers: TrustedKeys,
        alarms: Alarms,
        now: Callable[[], float],
    ) -> None:
        self._bus = bus
        self._bucket = bus.bucket(TREE.name)
        self._intake = intake
        self._memory = memory
        self._identity = identity
        self._managers = managers
        self._signers = set(managers.by_role["manager"])
        self._origin = origin_of(identity.deployment)
        self._alarms = alarms
        self._now = now
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
        return Status(self._memory.seen.size, self._intake.age_s(), self._troubles < CERTAIN)

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
        if page:
            await self._append(page)
        return more

    async def _look(self) -> bool:
        try:
            more = await self.grow()
        except Conflict:
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
        await asyncio.sleep((LINGER_MS + randbelow(LINGER_MS)) / 1000)

    async def _follow(self) -> None:
        """Take over a newer head, if it extends the one seen before. Raises Refusal (`log.*`), BusError."""
        entry = await self._bucket.get(HEAD)
        seen = self._memory.seen
        if entry is None or entry.value is None:
            if seen.note:
                raise _went_back("the log", seen.size, "no head")
            return
        if entry.value == self._value:
            self._revision = entry.revision
            return
        head, checkpoint = open_head(entry.value, self._signers)
        self._check_newer(checkpoint)
        leaves = await leaves_from(self._bus, seen.size, head, checkpoint.size)
        frontier = seen.frontier
        async for part in _in_parts(leaves):
            frontier = frontier.extended(part)
        # The leaf hashes on the bus are signed by nobody: they count because they lead from the tree seen before to the
        # signed root.
        if (frontier.size, frontier.root()) != (checkpoint.size, checkpoint.root):
            raise _forked(seen.size, checkpoint, frontier.root())
        self._value, self._revision = entry.value, entry.revision
        await self._keep(head, frontier, checkpoint.cursor, leaves)

    def _check_newer(self, checkpoint: Checkpoint) -> None:
        seen = self._memory.seen
        # Stops the head of another deployment, signed by a manager identity that both trust.
        if checkpoint.origin != self._origin:
            raise Refusal.because(
                "log.origin",
                "checkpoint",
                expected=self._origin,
                found=checkpoint.origin,
                action="this is another deployment's log: check the bus, and trust_domain in the settings",
            )
        if checkpoint.size < seen.size:
            raise _went_back("the log", seen.size, str(checkpoint.size))
        # A cursor that went back would have entries taken into the tree a second time.
        if checkpoint.cursor < seen.cursor:
            raise _went_back("its cursor", seen.cursor, str(checkpoint.cursor))

    async def _append(self, page: list[StoredMessage]) -> None:
        """Append the entries of a page to the tree. Raises Conflict, BusError."""
        leaves = await self._entries(page)
        rest = await put_tiles(self._bucket, self._head, self._memory.seen.size)
        frontier, cursor = self._memory.seen.frontier.extended(leaves), page[-1].sequence
        checkpoint = Checkpoint(
            origin=self._origin, size=frontier.size, root=frontier.root(), cursor=cursor, at=int(self._now())
        )
        head = Head(note=sign_checkpoint(self._identity.key, checkpoint), leaves=rest + b"".join(leaves))
        value = pack(head)
        if self._revision:
            self._revision = await self._bucket.update(HEAD, value, self._revision)
        else:
            self._revision = await self._bucket.create(HEAD, value)
        self._value = value
        await self._keep(head, frontier, cursor, leaves)

    async def _keep(self, head: Head, frontier: Frontier, cursor: int, leaves: list[bytes]) -> None:
        self._head = head
        async for part in _in_parts(leaves):
            self._intake.taken(part, cursor)
        await self._memory.keep(head.note, frontier, cursor)

    async def _entries(self, page: list[StoredMessage]) -> list[bytes]:
        """The leaf hashes of a page's entries: what no manager signed, and what came twice, is left out."""
        known = set(self._head.hashes)
        leaves: list[bytes] = []
        for number, stored in enumerate(page):
            if number % VERIFIED_AT_ONCE == VERIFIED_AT_ONCE - 1:
                await asyncio.sleep(0)
            try:
                # For this subject: under another, a true entry would pass for a decision about somebody else.
                open_decision(stored.subject, stored.data, self._managers)
            except Refusal as refusal:
                await self._alarms.stranger(stored, refusal)
                continue
            leaf = leaf_hash(stored.data)
            if leaf not in known:
                known.add(leaf)
                leaves.append(leaf)
        return leaves


async def _in_parts(leaves: list[bytes]) -> AsyncIterator[list[bytes]]:
    """Leaf hashes, few at a time, at least once: a worker that is new may have millions to take over."""
    for start in range(0, max(len(leaves), 1), HASHED_AT_ONCE):
        if start:
            await asyncio.sleep(0)
        yield leaves[start : start + HASHED_AT_ONCE]


def _standing_still(found: str) -> Reason:
    return Reason(
        code="log.standing-still",
        field="decision log",
        expected="a log that takes in its entries: without it nothing new is granted",
        found=found,
        action=ACTION,
    )


def _went_back(what: str, seen: int, found: str) -> Refusal:
    return Refusal.because(
        "log.rolled-back",
        what,
        expected=f"at least {seen}, as this worker has seen it",
        found=found,
        action=ACTION,
    )


def _forked(seen: int, checkpoint: Checkpoint, root: bytes) -> Refusal:
    return Refusal.because(
        "log.forked",
        f"the tree of {checkpoint.size} entries",
        expected=f"one that goes on from the {seen} that this worker has seen: root {root.hex()}",
        found=f"root {checkpoint.root.hex()}",
        action=ACTION,
    )
