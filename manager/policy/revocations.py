"""Operators' Revoke commands in the bucket `admissions`, as they were signed: a gateway obeys one without any manager.

A gateway that has seen one keeps it, whatever becomes of the key here: it counts until a later Enrol. So a key is
removed only to keep the bucket small.
"""

from __future__ import annotations

import structlog

from attestgate.bus.api import MAX_CONFLICTS, Bus, Conflict, compare_and_set
from attestgate.manager.policy.signers import Signers
from attestgate.schemas.admission import BUCKET, REVOKE, revoke_key
from attestgate.schemas.base import Refusal, pack, unpack
from attestgate.schemas.enrolment import Command, Revoke, SubjectKind
from attestgate.schemas.signing import Signed

log = structlog.get_logger(__name__)


class Revocations:
    """What a manager puts there, and takes away."""

    def __init__(self, bus: Bus, signers: Signers) -> None:
        self._bucket = bus.bucket(BUCKET)
        self._signers = signers

    async def post(self, signed: Signed, command: Command, action: Revoke) -> None:
        """Have gateways obey a Revoke, unless the bucket has a later one of the same operator. Raises BusError."""
        key = revoke_key(action.kind, action.id, signed.signer)
        for _ in range(MAX_CONFLICTS):
            entry = await self._bucket.get(key)
            before = self._read(key, entry.value) if entry is not None and entry.value is not None else None
            if before is not None and before.sequence >= command.sequence:
                return
            if await compare_and_set(self._bucket, key, entry, pack(signed)):
                return
        raise Conflict(f"{key}: {MAX_CONFLICTS} compare-and-sets lost")

    async def clear(self, kind: SubjectKind, id: str, enrolled: int) -> None:
        """Remove what an Enrol of this sequence ends. Raises BusError."""
        for key in await self._bucket.keys(f"{REVOKE}{kind}.{id}.*"):
            entry = await self._bucket.get(key)
            before = self._read(key, entry.value) if entry is not None and entry.value is not None else None
            if before is None or before.sequence < enrolled:
                await self._bucket.delete(key)

    def read(self, key: str, signed: Signed) -> Command:
        """A Revoke of the subject that its key names. Raises Refusal (`signature.*`, `message.*`, `revoke.key`)."""
        command = self._signers.read_command(signed)
        action = command.action
        if not isinstance(action, Revoke) or revoke_key(action.kind, action.id, signed.signer) != key:
            raise Refusal.because(
                "revoke.key",
                key,
                expected="an operator's revocation of the subject that the key names",
                found=f"a command to {action.do}",
                action="find out who may write the bucket",
            )
        return command

    def _read(self, key: str, value: bytes) -> Command | None:
        """What stands there; None for what no operator in the settings signed, or not for this key."""
        try:
            return self.read(key, unpack(Signed, value))
        except Refusal as refusal:
            log.warning("revocation in the bucket ignored", reason=refusal.reasons[0].sentence())
            return None
