"""Who is enrolled: read from the bus, believed for an operator's signature alone, and never older than seen before."""

from __future__ import annotations

import hashlib
from typing import TypeVar

from attestgate.bus.api import Bus, Conflict, Entry
from attestgate.manager.local.high_water import HighWater
from attestgate.manager.policy.signers import Signers
from attestgate.schemas.base import Refusal, pack, unpack
from attestgate.schemas.enrolment import (
    AppEnrolment,
    Command,
    Enrol,
    GatewayEnrolment,
    HostEnrolment,
    Revoke,
    SubjectKind,
)
from attestgate.schemas.signing import Signed

E = TypeVar("E", HostEnrolment, AppEnrolment, GatewayEnrolment)
BELIEVED = 20_000
"""Enrolments whose signature is not checked again, by their SHA-256: about 100 bytes of memory each."""


class Enrolments:
    """Reads enrolments; remembers how new they were, so that the bus cannot roll them back."""

    def __init__(self, bus: Bus, signers: Signers, high_water: HighWater) -> None:
        self._bucket = bus.bucket("enrolment")
        self._signers = signers
        self._high_water = high_water
        self._believed: dict[bytes, None] = {}

    async def host(self, id: str) -> HostEnrolment:
        """A host's enrolment. Raises Refusal (`enrolment.*`)."""
        return await self._subject("host", id, HostEnrolment)

    async def app(self, id: str) -> AppEnrolment:
        """An application's enrolment. Raises Refusal (`enrolment.*`)."""
        return await self._subject("app", id, AppEnrolment)

    async def gateway(self, id: str) -> GatewayEnrolment:
        """A gateway's enrolment. Raises Refusal (`enrolment.*`)."""
        return await self._subject("gateway", id, GatewayEnrolment)

    async def check_known(self, kind: SubjectKind, id: str) -> None:
        """Raises Refusal for an id that nobody ever enrolled: a mistyped revocation must not look like one."""
        key = f"{kind}.{id}"
        if await self._bucket.get(key) is None and not self._high_water.get(f"enrolment.{key}"):
            raise Refusal.because(
                "enrolment.unknown",
                f"{kind} id",
                expected=f"an enrolled {kind}",
                found=id,
                action="check the spelling: attestgate sessions shows who is there",
            )

    async def put(self, kind: SubjectKind, id: str, signed: Signed) -> None:
        """Put a command about a subject in force, unless there is a newer one. Raises Refusal `command.sequence`.

        What the bus holds counts only if it can be read; what it may not go back to, this worker remembers.
        """
        key, sequence = f"{kind}.{id}", self._signers.read_command(signed).sequence
        while True:
            entry = await self._bucket.get(key)
            standing = self._sequence(entry)
            newest = max(self._high_water.get(f"enrolment.{key}"), standing)
            # The same command again may go in again, after a kill; another one of the same microsecond may not, since
            # nobody could say which of the two is in force.
            repeat = entry is not None and entry.value == pack(signed)
            if sequence < newest or (sequence == standing and not repeat):
                raise Refusal.because(
                    "command.sequence",
                    f"{kind} {id}",
                    expected=f"a command newer than {newest}",
                    found=str(sequence),
                    action="another operator's command is newer: review it, and sign again",
                )
            try:
                if entry is None:
                    await self._bucket.create(key, pack(signed))
                else:
                    await self._bucket.update(key, pack(signed), entry.revision)
            except Conflict:
                continue
            self._high_water.raise_to(f"enrolment.{key}", sequence)
            return

    def _sequence(self, entry: Entry | None) -> int:
        """The sequence of the command that a bucket holds; 0 for what is not believed."""
        if entry is None or entry.value is None:
            return 0
        try:
            return self._command(entry.value).sequence
        except Refusal:
            return 0

    async def _subject(self, kind: SubjectKind, id: str, model: type[E]) -> E:
        key = f"{kind}.{id}"
        entry = await self._bucket.get(key)
        if entry is None or entry.value is None:
            self._high_water.check(f"enrolment.{key}", 0)
            raise Refusal.because(
                "enrolment.unknown",
                f"{kind} id",
                expected=f"an enrolled {kind}",
                found=id,
                action=f"enrol it: attestgate enrol {kind} {id}",
            )
        command = self._command(entry.value)
        action = command.action
        self._high_water.check(f"enrolment.{key}", command.sequence)
        if isinstance(action, Revoke) and (action.kind, action.id) == (kind, id):
            raise Refusal.because(
                "enrolment.revoked",
                f"{kind} id",
                expected=f"an enrolled {kind}",
                found=f"{id}, revoked by {command.operator}: {action.reason}",
                action=f"enrol it again once that is resolved: attestgate enrol {kind} {id}",
            )
        if not isinstance(action, Enrol) or not isinstance(action.subject, model) or action.subject.id != id:
            raise Refusal.because(
                "enrolment.misplaced",
                key,
                expected=f"the enrolment of {kind} {id}",
                found="a signed statement about something else",
                action="find out who may write the bucket enrolment",
            )
        return action.subject

    def _command(self, value: bytes) -> Command:
        """A command from the bucket. The same bytes are checked once. Raises as Signers.read_command does."""
        signed, name = unpack(Signed, value), hashlib.sha256(value).digest()
        # The cache cannot outlive a signer: operators come from settings read once at start, and the key is the hash of
        # payload and signature.
        if name in self._believed:
            return unpack(Command, signed.payload)
        command = self._signers.read_command(signed)
        self._believed[name] = None
        if len(self._believed) > BELIEVED:
            del self._believed[next(iter(self._believed))]
        return command
