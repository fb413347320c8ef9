"""The newest command applied of each operator's key: no command takes effect twice, or after a newer one.

The managers' signed word is on the bus, for all workers, and a copy of it in each worker's own memory: neither the bus
nor a stranger can make it newer, and the bus can set it back for a worker that has not seen it only.
"""

from __future__ import annotations

from attestgate.bus.api import MAX_CONFLICTS, Bucket, Conflict, Entry, compare_and_set
from attestgate.manager.local.statements import Statements
from attestgate.schemas.base import Refusal, pack, unpack
from attestgate.schemas.in_force import IN_FORCE, InForce, place_of
from attestgate.schemas.signing import Signed, Signer, TrustedKeys

BUCKET = "operators"


class AppliedCommands:
    """The bucket `operators`, a key for each operator's key."""

    def __init__(self, bucket: Bucket, manager: Signer, trusted: TrustedKeys, memory: Statements) -> None:
        self._bucket = bucket
        self._manager = manager
        self._trusted = trusted
        self._memory = memory

    async def newest(self, operator: bytes) -> InForce | None:
        """The newest command applied that an operator's key signed. Raises BusError."""
        return self._newest(operator, await self._bucket.get(operator.hex()))

    async def note(self, operator: bytes, said: InForce) -> None:
        """A command was applied. Raises BusError."""
        place = place_of(BUCKET, operator.hex())
        value = pack(self._manager.sign(IN_FORCE, place, said))
        for _ in range(MAX_CONFLICTS):
            entry = await self._bucket.get(operator.hex())
            newest = self._newest(operator, entry)
            if newest is not None and newest.order >= said.order:
                return
            if await compare_and_set(self._bucket, operator.hex(), entry, value):
                self._memory.keep(place, operator, said.order, value)
                return
        raise Conflict(f"{place}: {MAX_CONFLICTS} compare-and-sets lost")

    def _newest(self, operator: bytes, entry: Entry | None) -> InForce | None:
        place = place_of(BUCKET, operator.hex())
        kept = self._memory.of(place).get(operator)
        values = [entry.value] if entry is not None and entry.value is not None else []
        found = [said for value in [*values, *([kept.value] if kept else [])] if (said := self._read(place, value))]
        newest = max(found, key=lambda said: said.order, default=None)
        if newest is not None and values and (kept is None or kept.order < newest.order):
            self._memory.keep(place, operator, newest.order, values[0])
        return newest

    def _read(self, place: str, value: bytes) -> InForce | None:
        """What no manager signed counts as absent: then a command's own expiry bounds how long it can come again."""
        try:
            return self._trusted.read(IN_FORCE, unpack(Signed, value), place)
        except Refusal:
            return None
