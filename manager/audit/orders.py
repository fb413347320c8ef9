"""Entries of the decision log that belong to no session: operators' orders and admissions by hand, keys in force.

Applied or started again after a kill, a worker makes the same bytes again, and the stream has them once: an order is
dated by its own sequence, the issuing CA by its own certificate.
"""

from __future__ import annotations

import hashlib

from attestgate.bus import subjects
from attestgate.manager.audit.intake import Intake, subject_of
from attestgate.manager.pki.authority import Issuer, key_id
from attestgate.manager.policy.policies import manifest_name
from attestgate.manager.policy.signers import Signers
from attestgate.schemas.audit import (
    MANAGERS,
    BreakGlassFact,
    Decision,
    Fact,
    FailedFact,
    KeyInForce,
    Ordered,
    sign_decision,
)
from attestgate.schemas.base import Refusal, unpack
from attestgate.schemas.break_glass import BREAK_GLASS, at_gateways
from attestgate.schemas.enrolment import Command, Drop, Enrol, PolicyManifest, PutPolicy, Revoke
from attestgate.schemas.signing import Signed, Signer


class Orders:
    """Hands such entries in. `gateways` is the set for which break-glass must be signed."""

    def __init__(self, intake: Intake, identity: Signer, signers: Signers, gateways: str) -> None:
        self._intake = intake
        self._identity = identity
        self._signers = signers
        self._gateways = gateways

    async def enter(self, operator: str, command: Command, message: str) -> None:
        """An operator's command, named by its SHA-256, that is about to grant. Raises BusError."""
        await self._put(_order(operator, command, message[:32], _granted(command, message)))

    async def note(self, operator: str, command: Command, message: str) -> None:
        """An operator's command that has taken away. One that only asks, or tries, has no entry."""
        if (taken := _taken(command, message)) is not None:
            subject, entry = self._signed(_order(operator, command, message[:32], taken))
            await self._intake.keep(subject, entry)

    async def entered(self, operator: str, message: str) -> bool:
        """Whether a command has an entry. Raises BusError."""
        return await self._intake.has(subjects.decision("op", operator, message[:32]))

    async def failed(self, operator: str, command: Command, message: str) -> None:
        """A command that was entered is refused, and never took effect. Raises BusError."""
        id = hashlib.sha256(f"failed {message}".encode()).hexdigest()[:32]
        await self._put(_order(operator, command, id, FailedFact(message=message)))

    async def issuing_ca(self, issuer: Issuer) -> None:
        """The CA that certificates are issued under from here on. Raises BusError."""
        name = key_id(issuer.certificate)
        at = int(issuer.certificate.not_valid_before_utc.timestamp())
        await self.key(f"issuing-ca {name}", KeyInForce(key="issuing-ca", name=name), at)

    async def key(self, once: str, fact: KeyInForce, at: int) -> None:
        """A key in force since Unix second `at`; `once` names what is logged once only. Raises BusError."""
        id = hashlib.sha256(once.encode()).hexdigest()[:32]
        await self._put(Decision(id=id, kind="manager", subject=MANAGERS, at=at, by=MANAGERS, fact=fact))

    async def broken_glass(self, gateway: str, signed: Signed) -> None:
        """An operator's admission by hand at a gateway, as it was signed.

        Raises Refusal (`signature.*`; `break-glass.operator` for one in another's name, once it is entered), BusError.
        """
        # Not any signer: with a gateway's key alone one could fill the log, in every operator's name.
        admission = self._signers.trusted.read(BREAK_GLASS, signed, at_gateways(self._gateways))
        # The gateway compares keys only, so the admission is in force whatever name it bears: it is entered, in the
        # name of the key. A stolen key neither writes in another operator's name nor keeps its use out of the log.
        operator = self._signers.name_of(signed.signer)
        statement = hashlib.sha256(signed.payload).hexdigest()
        fact = BreakGlassFact(
            operator=operator,
            signer=signed.signer.hex(),
            statement=statement,
            serial=admission.serial,
            identity=admission.identity,
            expires_at=admission.expires_at,
            reason=admission.reason,
        )
        id = hashlib.sha256(f"{gateway} {statement}".encode()).hexdigest()[:32]
        await self._put(
            Decision(id=id, kind="gateway", subject=gateway, at=admission.issued_at, by=operator, fact=fact)
        )
        if admission.operator != operator:
            raise Refusal.because(
                "break-glass.operator",
                "operator",
                expected=operator,
                found=admission.operator,
                action=f"find out who has the key of {operator}: it signed an admission in another's name",
            )

    async def _put(self, decision: Decision) -> None:
        await self._intake.put(*self._signed(decision))

    def _signed(self, decision: Decision) -> tuple[str, bytes]:
        subject = subject_of(decision)
        return subject, sign_decision(self._identity, subject, decision)


def _order(operator: str, command: Command, id: str, fact: Fact) -> Decision:
    at = command.sequence // 1_000_000
    return Decision(id=id, kind="op", subject=operator, at=at, by=operator, fact=fact)


def _granted(command: Command, message: str) -> Ordered:
    match command.action:
        case Enrol(subject=subject):
            about = f"{subject.kind}/{subject.id}"
            return Ordered(command="enrol", message=message, sequence=command.sequence, about=about)
        case PutPolicy(manifest=signed):
            manifest = manifest_name(unpack(PolicyManifest, signed.payload))
            return Ordered(command="put-policy", message=message, sequence=command.sequence, manifest=manifest)
        case action:
            raise AssertionError(f"{action.do} grants nothing")


def _taken(command: Command, message: str) -> Ordered | None:
    match command.action:
        case Revoke(kind=kind, id=id, reason=reason):
            about = f"{kind}/{id}"
            return Ordered(command="revoke", message=message, sequence=command.sequence, about=about, reason=reason)
        case Drop(message=dropped):
            about = f"message/{dropped}"
            return Ordered(command="drop", message=message, sequence=command.sequence, about=about)
        case _:
            return None
