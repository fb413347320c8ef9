"""Statements in force under the keys of one bucket: read from the bus and from this worker's own memory, and put there.

Of each author the newest statement is kept, and of those in the settings the highest `order` is in force. The bus can
set a bucket back; a worker then goes by what it has kept itself, says so, and puts it back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog
from pydantic import BaseModel

from attestgate.bus.api import MAX_CONFLICTS, Bucket, Conflict, Entry, compare_and_set
from attestgate.manager.events.emitter import Emit, plain
from attestgate.manager.local.statements import Statements
from attestgate.schemas.base import Reason, Refusal, pack, unpack
from attestgate.schemas.binding import PROTOCOL
from attestgate.schemas.enrolment import MAX_AUTHORS
from attestgate.schemas.in_force import IN_FORCE, InForce, Standing, Standings, digest_of, place_of
from attestgate.schemas.signing import Purpose, Signed, Signer, TrustedKeys

log = structlog.get_logger(__name__)
M = TypeVar("M", bound=BaseModel)
BELIEVED = 20_000
"""Statements whose signatures are not checked again, by their SHA-256: about 100 bytes of memory each."""
Tell = Callable[[Reason], Awaitable[None]]
"""Is told what the bus has set back."""
Enter = Callable[[], Awaitable[None]]
"""Enters an order in the decision log. Raises Refusal, BusError."""


@dataclass(frozen=True)
class Held(Generic[M]):
    """An author's statement as a manager put it in force. `says` is None where the author is not in the settings."""

    standing: Standing
    said: InForce
    says: M | None = None

    @property
    def author(self) -> bytes:
        """The author's public key."""
        return self.standing.statement.signer


class RollbackAlarm:
    """A worker's word that the bus was set back. `emit` publishes its events."""

    def __init__(self, worker: str, emit: Emit) -> None:
        self._worker = worker
        self._emit = emit

    async def tell(self, reason: Reason) -> None:
        """Say what was set back. Raises BusError."""
        log.error("rolled back", reason=reason.sentence())
        await self._emit("manager", self._worker, "rolled-back", reasons=plain([reason]))

    async def record(self, reason: Reason) -> None:
        """Say which record of a session was set back, and is refused. Raises BusError."""
        log.error("record rolled back", reason=reason.sentence())
        await self._emit("manager", self._worker, "record-rolled-back", reasons=plain([reason]))


ByAuthor = dict[bytes, Held[M]]


class StatementsInForce(Generic[M]):
    """One bucket. `manager` signs what this worker puts in force; `trusted` has the managers and the authors."""

    def __init__(
        self,
        name: str,
        bucket: Bucket,
        purpose: Purpose[M],
        author_place: Callable[[bytes], str],
        manager: Signer,
        trusted: TrustedKeys,
        memory: Statements,
        tell: Tell,
    ) -> None:
        """`author_place` is where the statements of an author, by public key, belong."""
        self._name = name
        self._bucket = bucket
        self._purpose = purpose
        self._author_place = author_place
        self._manager = manager
        self._trusted = trusted
        self._memory = memory
        self._tell = tell
        self._believed: dict[bytes, None] = {}

    async def newest(self, key: str, entry: Entry | None) -> Held[M] | None:
        """What is in force, given what was read of the bucket; None if there is nothing.

        Raises Refusal: why what stands there does not count. BusError.
        """
        on_bus, merged = self._merged(key, entry)
        best = _in_force(merged)
        if best is not _in_force(on_bus):
            best = _in_force(await self._put_back(key))
        if best is None and entry is not None and entry.value is not None:
            self._check(key, entry.value)
        return best

    async def known(self, key: str) -> bool:
        """Whether anything ever stood under a key, as far as the bus or this worker knows. Raises BusError."""
        return bool(await self._bucket.get(key)) or bool(self._memory.of(place_of(self._name, key)))

    async def newest_order(self, key: str, but: Signed | None = None) -> int:
        """The highest order in force, not counting the statement `but`; 0 if there is none. Raises BusError."""
        _, merged = self._merged(key, await self._bucket.get(key))
        return max((one.said.order for one in merged.values() if one.says and one.standing.statement != but), default=0)

    async def put(
        self,
        key: str,
        statement: Signed,
        says: M,
        said: InForce,
        check: Callable[[Held[M]], None],
        seen: Collection[bytes] | None = None,
        enter: Enter | None = None,
    ) -> None:
        """Put an author's statement in force; `says` is what was read of it.

        `check` is given what is in force so far, and raises Refusal if that has to stay. `enter` is awaited before
        anything is in force, once nothing refuses it. Raises Refusal `command.unseen` if something else stands there
        than what was `seen`; what `enter` raises; BusError.
        """
        in_force = self._manager.sign(IN_FORCE, place_of(self._name, key), said)
        own = Held(Standing(statement=statement, in_force=in_force), said, says)
        for _ in range(MAX_CONFLICTS):
            entry = await self._bucket.get(key)
            _, merged = self._merged(key, entry)
            newest = _in_force(merged)
            # The same statement again, after a kill: the worker before has put it in force.
            if newest is not None and newest.standing.statement == statement:
                return
            if newest is not None:
                check(newest)
            if seen is not None:
                _check_seen(place_of(self._name, key), merged.values(), seen)
            if enter is not None:
                await enter()
            if await self._store(key, entry, merged | {own.author: own}):
                self._keep(key, own)
                return
        raise Conflict(f"{key}: {MAX_CONFLICTS} compare-and-sets lost")

    async def _put_back(self, key: str) -> ByAuthor[M]:
        """The newest of what the bus and this worker have, on the bus again."""
        # Read anew: another task or worker may just have put there what was missing.
        entry = await self._bucket.get(key)
        on_bus, merged = self._merged(key, entry)
        best = _in_force(merged)
        if best is not None and best is not _in_force(on_bus) and await self._store(key, entry, merged):
            reason = _rolled_back(place_of(self._name, key), best.said, _in_force(on_bus))
            await self._tell(reason)
        return merged

    async def _store(self, key: str, entry: Entry | None, by_author: ByAuthor[M]) -> bool:
        """Whether the bucket took them; it does not if somebody else wrote first."""
        # Those of authors whom this worker's settings do not name stay: another's may name them already.
        standing = [one.standing for one in _ordered(by_author.values())[:MAX_AUTHORS]]
        return await compare_and_set(self._bucket, key, entry, pack(Standings(version=PROTOCOL, standing=standing)))

    def _merged(self, key: str, entry: Entry | None) -> tuple[ByAuthor[M], ByAuthor[M]]:
        """Of each author what the bus has, and the newest that it or this worker has."""
        kept = self._memory.of(place_of(self._name, key))
        on_bus = {} if entry is None or entry.value is None else self._read(key, entry.value)
        merged = dict(on_bus)
        for author, (order, value) in kept.items():
            if author not in on_bus or on_bus[author].said.order < order:
                merged |= self._read(key, value)
        for author, one in on_bus.items():
            if one.says is not None and (author not in kept or kept[author].order < one.said.order):
                self._keep(key, one)
        return on_bus, merged

    def _keep(self, key: str, held: Held[M]) -> None:
        value = pack(Standings(version=PROTOCOL, standing=[held.standing]))
        self._memory.keep(place_of(self._name, key), held.author, held.said.order, value)

    def _read(self, key: str, value: bytes) -> ByAuthor[M]:
        """What managers put in force under a key. What does not count for another reason is left out."""
        found = {}
        try:
            standings = unpack(Standings, value).standing
        except Refusal:
            return {}
        for standing in standings:
            try:
                held = self._held(key, standing)
            except Refusal:
                continue
            found[held.author] = held
        return found

    def _held(self, key: str, standing: Standing) -> Held[M]:
        """A standing, its signatures checked. The same bytes are checked once. Raises Refusal (`signature.*`, ...)."""
        # The cache cannot outlive a signer: settings are read once at start, and the key is the hash of all signatures.
        name = hashlib.sha256(key.encode() + b"\0" + pack(standing)).digest()
        if name in self._believed:
            return Held(
                standing,
                unpack(InForce, standing.in_force.payload),
                unpack(self._purpose.model, standing.statement.payload),
            )
        said = self._trusted.read(IN_FORCE, standing.in_force, place_of(self._name, key))
        if said.statement != digest_of(pack(standing.statement)):
            raise _another(place_of(self._name, key), said)
        if standing.statement.signer not in self._trusted.by_role[self._purpose.author]:
            return Held(standing, said)
        says = self._says(standing)
        self._believed[name] = None
        if len(self._believed) > BELIEVED:
            del self._believed[next(iter(self._believed))]
        return Held(standing, said, says)

    def _says(self, standing: Standing) -> M:
        return self._trusted.read(self._purpose, standing.statement, self._author_place(standing.statement.signer))

    def _check(self, key: str, value: bytes) -> None:
        """Raises Refusal: why nothing of a value counts."""
        for standing in unpack(Standings, value).standing:
            self._held(key, standing)
            self._says(standing)


def _in_force(by_author: ByAuthor[M]) -> Held[M] | None:
    ordered = _ordered(by_author.values())
    return ordered[0] if ordered and ordered[0].says is not None else None


def _ordered(held: Iterable[Held[M]]) -> list[Held[M]]:
    """Those whose authors count first, the highest order first; of the same order by key, not as the bus lists them."""
    return sorted(held, key=lambda one: (one.says is None, -one.said.order, one.author))


def _check_seen(place: str, standing: Iterable[Held[M]], seen: Collection[bytes]) -> None:
    """Raises Refusal `command.unseen`, also for an author who is not in the settings: his are often signed again."""
    unseen = next((one for one in _ordered(standing)[:MAX_AUTHORS] if one.said.statement not in seen), None)
    if unseen is not None:
        raise Refusal.because(
            "command.unseen",
            place,
            expected="a command by what stands there now",
            found=f"a newer statement of {unseen.said.operator}, {unseen.said.order}",
            action="list enrolments again, and sign by what is there: it is new, or the bus had shown an older state",
        )


def _rolled_back(place: str, kept: InForce, found: Held[M] | None) -> Reason:
    return Reason(
        code="rollback",
        field=place,
        expected=f"{kept.order}, which this worker has seen in force",
        found=str(found.said.order) if found is not None else "nothing in force",
        action="the bus was set back, and this worker has put it in force again: find out who did it",
    )


def _another(place: str, said: InForce) -> Refusal:
    return Refusal.because(
        "in-force.statement",
        place,
        expected=f"the statement {said.statement.hex()}, which a manager put in force",
        found="another statement beside the manager's",
        action="find out who may write the bucket",
    )
