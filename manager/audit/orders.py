"""Entries of the decision log that belong to no session: operators' orders and admissions by hand, keys in force.

Applied or started again after a kill, a worker makes the same bytes again, and the stream has them once: an order is
dated by its own sequence, the issuing CA by its own certificate.
"""

from __future__ import annotations

import hashlib

from attestgate.manager.audit.intake import Intake, subject_of
from attestgate.manager.pki.authority import Issuer, key_id
from attestgate.manager.policy.policies import manifest_name
from attestgate.manager.policy.signers import Signers
from attestgate.schemas.audit import MANAGERS, BreakGlassFact, Decision, Fact, KeyInForce, Ordered, sign_decision
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

    async def note(self, operator: str, command: Command, message: str) -> None:
        """An operator's command that was applied, by its SHA-256; of no weight, no entry. Raises BusError."""
        ordered = _ordered(command, message)
        if ordered is None:
            return
        await self._put(
            Decision(
                id=message[:32],
                kind="op",
                subject=operator,
                at=command.sequence // 1_000_000,
                by=operator,
                fact=ordered,
            )
        )

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
        subject = subject_of(decision)
        await self._intake.put(subject, sign_decision(self._identity, subject, decision))


def _ordered(command: Command, message: str) -> Fact | None:
    """What an order grants or takes away; None for one that only asks, or tries."""
    action = command.action
    ordered = Ordered(command="enrol", message=message, sequence=command.sequence)
    match action:
        case Enrol():
            return ordered.model_copy(update={"about": f"{action.subject.kind}/{action.subject.id}"})
        case Revoke():
            about = f"{action.kind}/{action.id}"
            return ordered.model_copy(update={"command": "revoke", "about": about, "reason": action.reason})
        case PutPolicy():
            manifest = manifest_name(unpack(PolicyManifest, action.manifest.payload))
            return ordered.model_copy(update={"command": "put-policy", "manifest": manifest})
        case Drop():
            return ordered.model_copy(update={"command": "drop", "about": f"message/{action.message}"})
        case _:
            return None
