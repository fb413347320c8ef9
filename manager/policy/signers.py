"""Whose signatures count: the operators and policy authors that the settings name."""

from __future__ import annotations

from attestgate.schemas.base import Refusal
from attestgate.schemas.enrolment import Command, Operator, OperatorRole
from attestgate.schemas.settings import OperatorSettings
from attestgate.schemas.signing import Signed, verify


class Signers:
    """Operators and policy authors, by the keys in a worker's settings."""

    def __init__(self, operators: list[OperatorSettings]) -> None:
        self._operators = [Operator(name=o.name, role=o.role, identity=bytes.fromhex(o.identity)) for o in operators]

    def check_named(self, name: str) -> None:
        """Raises Refusal `command.subject` for a name that is no operator's: the first check on a command."""
        if not any(operator.name == name for operator in self._operators):
            raise Refusal.because(
                "command.subject",
                "operator",
                expected="an operator whom the managers' settings name",
                found=name,
                action="add the operator to the managers' settings, or revoke that credential",
            )

    def identities(self, role: OperatorRole) -> set[bytes]:
        """The public keys of everyone with a role."""
        return {operator.identity for operator in self._operators if operator.role == role}

    def operator_of(self, signer: bytes, claimed: str) -> str:
        """The operator whose key this is: `claimed`, if that is a name of the key, or else the first of its names."""
        names = [o.name for o in self._operators if o.role == "operator" and o.identity == signer]
        return claimed if claimed in names else names[0]

    def read_command(self, signed: Signed) -> Command:
        """A command, believed for its operator's signature. Raises Refusal (`signature.*`, `command.*`)."""
        command = verify(signed, Command, "command", self.identities("operator") | self.identities("policy-author"))
        named = [o for o in self._operators if o.identity == signed.signer and o.name == command.operator]
        if not named:
            raise Refusal.because(
                "command.operator",
                "operator",
                expected="the name that belongs to the signing key",
                found=command.operator,
                action="sign with your own key",
            )
        return command
