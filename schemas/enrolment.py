"""Enrolment records, operators' commands and the policy manifest, all signed.

Operators sign commands; a policy author, whose key is not on the bus, signs the manifest. Everything here travels over
the bus and is trusted for its signature only.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from attestgate.schemas.admission import Rules
from attestgate.schemas.base import MAX_MESSAGE, Bytes32, Hex32, Id, Model, Seconds
from attestgate.schemas.signing import Purpose, Signed
from attestgate.schemas.tpm import TpmEnrolment

SubjectKind = Literal["host", "app", "gateway"]
OperatorRole = Literal["operator", "policy-author", "viewer"]
Sequence = Annotated[int, Field(ge=1, lt=2**63)]
"""Increases with each command of an operator: Unix time in microseconds when it was signed."""
MAX_AUTHORS = 8
"""Authors whose newest statement is kept under one key."""


class HostEnrolment(Model):
    """A host: the measurements its agent may have, and the one SGX platform it runs on.

    `platform` is the PPID hashed with the deployment's salt. `tpm` is "none" until a TPM is enrolled.
    """

    kind: Literal["host"] = "host"
    id: Id
    mrenclaves: Annotated[list[Hex32], Field(min_length=1, max_length=2)]
    platform: Hex32
    platform_from: Literal["inventory"] = "inventory"
    tpm: Literal["none"] | TpmEnrolment = "none"

    @property
    def enrolled_tpm(self) -> TpmEnrolment | None:
        """The TPM that this host is pinned to, if it is."""
        return self.tpm if isinstance(self.tpm, TpmEnrolment) else None


class Placement(Model):
    """A host that an application may run on, and the index of its data volume in that host's own table."""

    host: Id
    volume: Annotated[int, Field(ge=0, lt=1024)]


class AppEnrolment(Model):
    """An application: exact measurements (two while an update rolls out), where it may run, what it may do.

    A request passes the gateway if any rule in `allow` allows it; without rules, none passes. With
    `certificate_key = "manager"`, as in the prototype, the manager generates the key pair: weaker, and marked.
    """

    kind: Literal["app"] = "app"
    id: Id
    mrenclaves: Annotated[list[Hex32], Field(min_length=1, max_length=2)]
    placements: Annotated[list[Placement], Field(min_length=1, max_length=1024)]
    allow: Rules = []
    certificate_key: Literal["enclave", "manager"] = "enclave"

    @field_validator("placements")
    @classmethod
    def _one_volume(cls, placements: list[Placement]) -> list[Placement]:
        if len({place.host for place in placements}) != len(placements):
            raise ValueError("a host is named twice: an application has one volume on each")
        return placements

    def volume(self, host: str) -> int | None:
        """The index of its volume on a host; None where it may not run there."""
        return next((place.volume for place in self.placements if place.host == host), None)


class GatewayEnrolment(Model):
    """A gateway worker: the Ed25519 key that signs its reports."""

    kind: Literal["gateway"] = "gateway"
    id: Id
    identity: Bytes32


class Enrol(Model):
    """Enrol, or replace, one subject."""

    do: Literal["enrol"] = "enrol"
    subject: Annotated[HostEnrolment | AppEnrolment | GatewayEnrolment, Field(discriminator="kind")]


class Revoke(Model):
    """Revoke a subject now; it stays out until it is enrolled again."""

    do: Literal["revoke"] = "revoke"
    kind: SubjectKind
    id: Id
    reason: Annotated[str, Field(min_length=1, max_length=200)]


class RecheckNow(Model):
    """Ask a live session for fresh evidence without waiting for its period."""

    do: Literal["recheck"] = "recheck"
    kind: Literal["host", "app"]
    id: Id


class PolicyManifest(Model):
    """The policies in force, by SHA-256, and floors below which collateral is refused.

    `allow_proxy`: applications whose enclave only forwards the requests of a program outside. `allow_manager_keys`:
    applications whose private key the manager generates.
    """

    version: Annotated[int, Field(ge=1, lt=2**63)]
    sgx_policy: Hex32
    host_policy: Hex32
    runtime_policy: Hex32
    min_tcb_evaluation: Annotated[int, Field(ge=0, lt=2**31)] = 0
    min_crl_number: Annotated[int, Field(ge=0, lt=2**63)] = 0
    allow_proxy: bool = False
    allow_manager_keys: bool = False


MANIFEST = Purpose("policy manifest", "policy-author", PolicyManifest)
MANIFESTS = "policies"
"""The place of every policy manifest: what its author signs may be tried and put in force, and a manager says which."""

Document = Annotated[bytes, Field(max_length=MAX_MESSAGE)]


class PutPolicy(Model):
    """Put a manifest in force, with the documents that it names by hash."""

    do: Literal["put-policy"] = "put-policy"
    manifest: Signed
    documents: Annotated[list[Document], Field(max_length=8)]


class TryPolicy(Model):
    """Also appraise every host against a manifest at its next recheck, and report it in the events: nothing else."""

    do: Literal["try-policy"] = "try-policy"
    manifest: Signed
    documents: Annotated[list[Document], Field(max_length=8)]


class Retry(Model):
    """Take a message out of quarantine and handle it again."""

    do: Literal["retry"] = "retry"
    message: Hex32


class Drop(Model):
    """Take a message out of quarantine and delete it."""

    do: Literal["drop"] = "drop"
    message: Hex32


Action = Annotated[Enrol | Revoke | RecheckNow | PutPolicy | TryPolicy | Retry | Drop, Field(discriminator="do")]


class Command(Model):
    """An operator's command. Applied once, in the order of `sequence`; refused after `expires_at`.

    `seen`: the operator has signed by what the bus showed of the subject, these statements by their SHA-256. A manager
    that knows of another refuses it: the bus had shown an older state.
    """

    sequence: Sequence
    expires_at: Seconds
    action: Action
    seen: Annotated[list[Bytes32], Field(max_length=MAX_AUTHORS)] | None = None


COMMAND = Purpose("command", "operator", Command)


def commands_of(operator: str) -> str:
    """The place of an operator's commands and of the answers to them."""
    return f"op/{operator}"


class Operator(Model):
    """An operator, from the managers' settings."""

    name: Id
    role: OperatorRole
    identity: Bytes32
