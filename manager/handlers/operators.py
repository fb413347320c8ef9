"""Operators' commands: verified, applied once, answered with an event.

All effects of a command are idempotent; its sequence is stored after them, so if a worker is killed in between, the
next one repeats them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from attestgate.bus.api import Bucket, Bus, Conflict
from attestgate.manager.audit.orders import Orders
from attestgate.manager.events.emitter import Emit, plain
from attestgate.manager.handlers.quarantine import Quarantine
from attestgate.manager.local.high_water import HighWater
from attestgate.manager.local.slices import aside
from attestgate.manager.policy.enrolments import Enrolments
from attestgate.manager.policy.policies import MANIFEST, TRIAL, Policies
from attestgate.manager.policy.signers import Signers
from attestgate.manager.records.current import CurrentSessions
from attestgate.manager.records.session_messages import SessionMessages
from attestgate.manager.sessions.inter_session import Order
from attestgate.schemas.base import Count, Label, Model, Reason, Refusal, pack, unpack
from attestgate.schemas.binding import Role
from attestgate.schemas.enrolment import (
    Action,
    Command,
    Drop,
    Enrol,
    OperatorRole,
    PolicyManifest,
    PutPolicy,
    RecheckNow,
    Retry,
    Revoke,
    TryPolicy,
)
from attestgate.schemas.sgx import policy_name
from attestgate.schemas.signing import Signed

MAY: dict[type, OperatorRole] = {
    Enrol: "operator",
    Revoke: "operator",
    RecheckNow: "operator",
    PutPolicy: "operator",
    TryPolicy: "operator",
    Retry: "operator",
    Drop: "operator",
}
"""The role that each command requires. A policy's authority is the signature of its manifest, not the command's."""


class NewestCommand(Model):
    """The newest command applied for one operator: its sequence, and the SHA-256 of the signed message."""

    sequence: Count
    message: Label = ""


class Operators:
    """Handles operators' commands."""

    def __init__(
        self,
        bus: Bus,
        signers: Signers,
        enrolments: Enrolments,
        policies: Policies,
        current: CurrentSessions,
        messages: SessionMessages,
        quarantine: Quarantine,
        high_water: HighWater,
        orders: Orders,
        emit: Emit,
        now: Callable[[], float],
    ) -> None:
        self._high_water = high_water
        self._quarantine = quarantine
        self._signers = signers
        self._enrolments = enrolments
        self._policies = policies
        self._orders = orders
        self._current = current
        self._messages = messages
        self._emit = emit
        self._now = now
        self._sequences = bus.bucket("operators")
        self._documents = bus.bucket("policies")

    async def take(self, name: str, data: bytes) -> None:
        """Apply a command received on operator `name`'s subject; a refusal is published as an event as well.

        Raises Refusal (`command.*`, `signature.*`), BusError.
        """
        message = await aside(len(data), _name, data)
        try:
            command = await self._take(name, data, message)
        except Refusal as refusal:
            await self._emit("op", name, "refused", message=message, reasons=plain(refusal.reasons))
            raise
        await self._emit("op", name, "applied", message=message, sequence=command.sequence, command=command.action.do)

    async def _take(self, name: str, data: bytes, message: str) -> Command:
        self._signers.check_named(name)
        signed = unpack(Signed, data)
        command = await aside(len(data), self._signers.read_command, signed)
        entry = await self._sequences.get(command.operator)
        applied = unpack(NewestCommand, entry.value) if entry and entry.value is not None else NewestCommand(sequence=0)
        mark = f"operator.{command.operator}"
        highest = max(applied.sequence, self._high_water.get(mark))
        _check(command, name, highest, int(self._now()))
        if signed.signer not in self._signers.identities(MAY[type(command.action)]):
            raise _refused("role", MAY[type(command.action)], "no such role", "ask an operator with that role")
        # The same sequence must mean the same bytes, or a second command would be reported as applied without being so.
        if command.sequence == highest:
            if applied.message != message:
                raise _overtaken(command, highest)
            return command
        await self._apply(command.action, command, signed)
        await self._orders.note(command, data)
        await _note(self._sequences, command.operator, NewestCommand(sequence=command.sequence, message=message))
        self._high_water.raise_to(mark, command.sequence)
        return command

    async def _apply(self, action: Action, command: Command, signed: Signed) -> None:
        match action:
            case Enrol():
                await self._enrolments.put(action.subject.kind, action.subject.id, signed)
            case Revoke():
                await self._enrolments.check_known(action.kind, action.id)
                await self._enrolments.put(action.kind, action.id, signed)
                if action.kind != "gateway":
                    reason = _revoked(action, command.operator)
                    await self._order(action.kind, action.id, "revoke", reason, command)
            case RecheckNow():
                await self._enrolments.check_known(action.kind, action.id)
                await self._order(action.kind, action.id, "recheck", None, command)
            case PutPolicy():
                await self._put_policy(action, MANIFEST)
            case TryPolicy():
                await self._put_policy(action, TRIAL)
            case Retry():
                await self._quarantine.retry(action.message)
            case Drop():
                await self._quarantine.drop(action.message)

    async def _put_policy(self, action: PutPolicy | TryPolicy, key: str) -> None:
        signed = pack(action.manifest)
        manifest = self._policies.read_manifest(signed)
        documents = await aside(sum(map(len, action.documents)), _by_name, action.documents)
        missing = {manifest.sgx_policy, manifest.host_policy, manifest.runtime_policy} - documents.keys()
        if missing:
            raise _refused("policy", "every document of the manifest", f"{sorted(missing)} missing", "send them too")
        while True:
            # Read before the check: a manifest put in force from here on is seen by the check, or makes a conflict.
            entry = await self._documents.get(key)
            await self._check_newer(manifest)
            for name, document in documents.items():
                await self._documents.put(name, document)
            try:
                if entry is None:
                    await self._documents.create(key, signed)
                else:
                    await self._documents.update(key, signed, entry.revision)
                return
            except Conflict:
                continue

    async def _check_newer(self, manifest: PolicyManifest) -> None:
        """Raises Refusal `command.policy` for an older manifest than the one in force."""
        entry = await self._documents.get(MANIFEST)
        if entry is None or entry.value is None:
            return
        try:
            before = self._policies.read_manifest(entry.value)
        except Refusal:  # not believed, so not in force; older policies meet each worker's high-water mark
            return
        if manifest != before and manifest.version <= before.version:
            raise _refused("policy", f"a version above {before.version}", str(manifest.version), "raise the version")

    async def _order(self, role: Role, id: str, what: str, reason: Reason | None, command: Command) -> None:
        """Send an order to every session of a subject, including one that is not trusted yet."""
        for key in await self._current.keys(role, id):
            session = await self._current.session(key)
            if session is not None:
                order = Order(reasons=[reason] if reason else [])
                once = f"{command.operator}-{command.sequence}-{session}"
                await self._messages.send(role, session, what, order, message_id=once)


def _by_name(documents: list[bytes]) -> dict[str, bytes]:
    return {policy_name(document): document for document in documents}


def _name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _check(command: Command, name: str, applied: int, now: int) -> None:
    if command.operator != name:
        raise _refused("subject", f"a command signed by {name}", command.operator, "publish on your own subject")
    if command.expires_at < now:
        raise _refused("expired", f"by {command.expires_at}", str(now), "sign it again; check both clocks")
    if command.sequence < applied:
        raise _overtaken(command, applied)


def _overtaken(command: Command, applied: int) -> Refusal:
    return _refused("sequence", f"above {applied}", str(command.sequence), "sign it again: another was applied first")


async def _note(sequences: Bucket, operator: str, applied: NewestCommand) -> None:
    while True:
        entry = await sequences.get(operator)
        try:
            if entry is None or entry.value is None:
                await sequences.create(operator, pack(applied))
            elif unpack(NewestCommand, entry.value).sequence < applied.sequence:
                await sequences.update(operator, pack(applied), entry.revision)
            return
        except Conflict:
            continue


def _revoked(action: Revoke, by: str) -> Reason:
    return Reason(
        code="operator.revoked",
        field=f"{action.kind} {action.id}",
        expected="an enrolment in force",
        found=f"revoked by {by}: {action.reason}",
        action="an operator has to enrol it again",
    )


def _refused(what: str, expected: str, found: str, action: str) -> Refusal:
    return Refusal.because(f"command.{what}", what, expected=expected, found=found, action=action)
