"""Whose signatures count: the operators and policy authors that the settings name."""

from __future__ import annotations

from collections.abc import Mapping

from attestgate.schemas.base import Refusal
from attestgate.schemas.enrolment import COMMAND, MANIFEST, MANIFESTS, Command, PolicyManifest, commands_of
from attestgate.schemas.settings import OperatorSettings
from attestgate.schemas.signing import AuthorRole, Signed, TrustedKeys


class Signers:
    """Operators and policy authors, by the keys in a worker's settings, and the managers' own keys."""

    def __init__(self, trust_domain: str, operators: list[OperatorSettings], managers: set[bytes]) -> None:
        def keys(role: str) -> dict[bytes, str]:
            return {bytes.fromhex(o.identity): o.name for o in operators if o.role == role}

        self._names = keys("operator")
        by_role: Mapping[AuthorRole, set[bytes]] = {
            "manager": managers,
            "operator": set(self._names),
            "policy-author": set(keys("policy-author")),
        }
        self.trusted = TrustedKeys(trust_domain, by_role)

    def check_named(self, name: str) -> None:
        """Raises Refusal `command.subject` for a name that is no operator's: the first check on a command."""
        if name not in self._names.values():
            raise Refusal.because(
                "command.subject",
                "operator",
                expected="an operator whom the managers' settings name",
                found=name,
                action="add the operator to the managers' settings, or revoke that credential",
            )

    def name_of(self, key: bytes) -> str:
        """The name that belongs to an operator's key. Raises Refusal `signature.signer`."""
        self.trusted.check_signer(COMMAND, key)
        return self._names[key]

    def commands_of(self, key: bytes) -> str:
        """Where the commands of an operator's key belong. Raises Refusal `signature.signer`."""
        return commands_of(self.name_of(key))

    def read_command(self, signed: Signed) -> Command:
        """A command, believed for its operator's signature. Raises Refusal (`signature.*`, `message.*`)."""
        return self.trusted.read(COMMAND, signed, self.commands_of(signed.signer))

    def read_manifest(self, signed: Signed) -> PolicyManifest:
        """A policy manifest, believed for its author's signature. Raises Refusal (`signature.*`, `message.*`)."""
        return self.trusted.read(MANIFEST, signed, MANIFESTS)
