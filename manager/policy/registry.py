"""Who is enrolled and which policies are in force, read from the bus and believed for their signatures alone."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import structlog

from attestgate.bus.api import Bus, Conflict, Entry
from attestgate.bus.client.recent import Recent
from attestgate.manager.local.high_water import CRL_FLOOR, EVALUATION_FLOOR, HighWater
from attestgate.manager.verification.ima.policy_dsse import PolicyKey
from attestgate.manager.verification.ima.runtime_policy import LoadedPolicy
from attestgate.manager.verification.ima.runtime_policy import load as load_runtime_policy
from attestgate.schemas.base import Refusal, pack, parse_json, unpack
from attestgate.schemas.enrolment import (
    AppEnrolment,
    Command,
    Enrol,
    GatewayEnrolment,
    HostEnrolment,
    Kind,
    Operator,
    OperatorRole,
    PolicyManifest,
    Revoke,
)
from attestgate.schemas.host_policy import HostPolicy
from attestgate.schemas.settings import OperatorSettings
from attestgate.schemas.sgx import SgxPolicy, policy_name, read_policy
from attestgate.schemas.signing import Signed, verify
from attestgate.schemas.tpm import TpmClock, TpmEnrolment

log = structlog.get_logger(__name__)
E = TypeVar("E", HostEnrolment, AppEnrolment, GatewayEnrolment)
MANIFEST = "manifest"
"""Key of the manifest in force in the bucket `policies`; documents are there under their own hash."""


TRIAL = "trial"
"""Key of the manifest on trial: hosts are judged by it as well, with no effect but a note in the events.
It is over once its version, or a newer one, is in force."""

REMEMBERED = 4
"""Manifests whose signature is not checked again: the one in force, the one on trial, and those just before."""

BELIEVED = 20_000
"""Enrolments whose signature is not checked again, by their SHA-256: about 100 bytes of memory each."""


@dataclass(frozen=True)
class InForce:
    """The policies of one manifest, read and checked; and those on trial, if there are any."""

    manifest: PolicyManifest
    sgx: SgxPolicy
    host: HostPolicy
    runtime: LoadedPolicy
    trial: InForce | None = None

    @property
    def names(self) -> dict[str, str]:
        """Which documents a verdict rests on, by hash, and which manifest was on trial then."""
        manifest = self.manifest
        names = {"sgx": manifest.sgx_policy, "host": manifest.host_policy, "runtime": manifest.runtime_policy}
        return names if self.trial is None else names | {"trial": manifest_name(self.trial.manifest)}


def manifest_name(manifest: PolicyManifest) -> str:
    """The SHA-256 that names a manifest."""
    return policy_name(pack(manifest))


def operators_from(settings: list[OperatorSettings]) -> list[Operator]:
    """The operators that the settings name."""
    return [Operator(name=o.name, role=o.role, identity=bytes.fromhex(o.identity)) for o in settings]


class Registry:
    """Reads enrolments and policies; remembers how new they were, so that the bus cannot go back on them."""

    def __init__(
        self, bus: Bus, operators: list[Operator], high_water: HighWater, policy_keys: Sequence[PolicyKey] = ()
    ) -> None:
        self._enrolment = bus.bucket("enrolment")
        self._policies = bus.bucket("policies")
        self._newest = {key: Recent(self._policies, key) for key in (MANIFEST, TRIAL)}
        self._operators = operators
        self._high_water = high_water
        self._policy_keys = policy_keys
        self._believed: dict[bytes, None] = {}
        self._in_force: InForce | None = None
        self._manifests: dict[bytes, PolicyManifest] = {}
        self._trial: InForce | None = None

    async def follow(self) -> None:
        """Watch for manifest changes, in force and on trial, until cancelled."""
        await asyncio.gather(*(manifest.follow() for manifest in self._newest.values()))

    def identities(self, role: OperatorRole) -> set[bytes]:
        """The public keys of everyone with a role."""
        return {operator.identity for operator in self._operators if operator.role == role}

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

    def _command(self, value: bytes) -> Command:
        """A command from the bucket. The same bytes are checked once. Raises as `read_command` does.

        The cache cannot outlive a signer: operators come from settings read once at start, and the key is the hash of
        payload and signature.
        """
        signed, name = unpack(Signed, value), hashlib.sha256(value).digest()
        if name in self._believed:
            return unpack(Command, signed.payload)
        command = self.read_command(signed)
        self._believed[name] = None
        if len(self._believed) > BELIEVED:
            del self._believed[next(iter(self._believed))]
        return command

    async def host(self, id: str) -> HostEnrolment:
        """A host's enrolment. Raises Refusal (`enrolment.*`)."""
        return await self._subject("host", id, HostEnrolment)

    async def app(self, id: str) -> AppEnrolment:
        """An application's enrolment. Raises Refusal (`enrolment.*`)."""
        return await self._subject("app", id, AppEnrolment)

    async def gateway(self, id: str) -> GatewayEnrolment:
        """A gateway's enrolment. Raises Refusal (`enrolment.*`)."""
        return await self._subject("gateway", id, GatewayEnrolment)

    async def check_known(self, kind: Kind, id: str) -> None:
        """Raises Refusal for an id that nobody ever enrolled: a mistyped revocation must not look like one."""
        key = f"{kind}.{id}"
        if await self._enrolment.get(key) is None and not self._high_water.get(f"enrolment.{key}"):
            raise Refusal.because(
                "enrolment.unknown",
                f"{kind} id",
                expected=f"an enrolled {kind}",
                found=id,
                action="check the spelling: attestgate sessions shows who is there",
            )

    async def put(self, kind: Kind, id: str, signed: Signed) -> None:
        """Put a command about a subject in force, unless there is a newer one. Raises Refusal `command.sequence`.

        What the bus holds counts only if it can be read; what it may not go back to, this worker remembers.
        """
        key, sequence = f"{kind}.{id}", self.read_command(signed).sequence
        while True:
            entry = await self._enrolment.get(key)
            newest = max(self._high_water.get(f"enrolment.{key}"), self._sequence(entry))
            # The same command again may go in again, after a kill; another one of the same microsecond may not, since
            # nobody could say which of the two is in force.
            repeat = entry is not None and entry.value == pack(signed)
            if sequence < newest or (sequence == self._sequence(entry) and not repeat):
                raise Refusal.because(
                    "command.sequence",
                    f"{kind} {id}",
                    expected=f"a command newer than {newest}",
                    found=str(sequence),
                    action="another operator's command is newer: review it, and sign again",
                )
            try:
                if entry is None:
                    await self._enrolment.create(key, pack(signed))
                else:
                    await self._enrolment.update(key, pack(signed), entry.revision)
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

    async def _subject(self, kind: Kind, id: str, model: type[E]) -> E:
        key = f"{kind}.{id}"
        entry = await self._enrolment.get(key)
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

    def check_tpm(self, enrolled: TpmEnrolment, clock: TpmClock) -> None:
        """Raises Refusal `rollback` for a TPM that was reset less often than this worker has seen before."""
        name = hashlib.sha256(enrolled.ak).hexdigest()[:32]
        self._high_water.check(f"tpm.{name}.resets", clock.reset_count)

    async def policies(self) -> InForce:
        """The policies in force by the newest manifest. Raises Refusal (`policy.*`, `rollback`)."""
        entry = await self._newest[MANIFEST].get()
        if entry is None or entry.value is None:
            raise Refusal.because(
                "policy.none",
                "policy manifest",
                expected="a signed manifest",
                found="no manifest: without a policy everything is refused",
                action="put one in force: attestgate policy sign",
            )
        manifest = self.read_manifest(entry.value)
        self._high_water.check("policy", manifest.version)
        if self._in_force is None or self._in_force.manifest != manifest:
            self._in_force = await self._read(manifest)
            self._high_water.raise_to(EVALUATION_FLOOR, manifest.min_tcb_evaluation)
            self._high_water.raise_to(CRL_FLOOR, manifest.min_crl_number)
        return replace(self._in_force, trial=await self._on_trial(manifest))

    def read_manifest(self, signed: bytes) -> PolicyManifest:
        """A manifest, believed for its author's signature. The same bytes are checked once. Raises Refusal."""
        known = self._manifests.get(signed)
        if known is None:
            authors = self.identities("policy-author")
            known = verify(unpack(Signed, signed), PolicyManifest, "policy manifest", authors)
            self._manifests = dict([*self._manifests.items(), (signed, known)][-REMEMBERED:])
        return known

    async def _on_trial(self, in_force: PolicyManifest) -> InForce | None:
        """The policies on trial. One that cannot be read is none: a trial decides nothing, so it refuses nothing."""
        entry = await self._newest[TRIAL].get()
        if entry is None or entry.value is None:
            return None
        try:
            manifest = self.read_manifest(entry.value)
            if manifest.version <= in_force.version:
                return None
            if self._trial is None or self._trial.manifest != manifest:
                self._trial = await self._read(manifest)
        except Refusal as refusal:
            log.warning("policies on trial ignored", reasons=[reason.sentence() for reason in refusal.reasons])
            return None
        return self._trial

    async def _read(self, manifest: PolicyManifest) -> InForce:
        host_document = await self._document(manifest.host_policy)
        host = parse_json(HostPolicy, host_document, source="host policy")
        if host.runtime_policy != manifest.runtime_policy:
            raise Refusal.because(
                "policy.mismatch",
                "host policy: runtime_policy",
                expected=manifest.runtime_policy,
                found=host.runtime_policy,
                action="sign a manifest whose documents belong together",
            )
        return InForce(
            manifest=manifest,
            sgx=read_policy(await self._document(manifest.sgx_policy), source="SGX policy"),
            host=host,
            runtime=load_runtime_policy(await self._document(manifest.runtime_policy), authors=self._policy_keys),
        )

    async def _document(self, name: str) -> bytes:
        entry = await self._policies.get(name)
        if entry is None or entry.value is None or policy_name(entry.value) != name:
            raise Refusal.because(
                "policy.document",
                name,
                expected="the document with this SHA-256 in the bucket policies",
                found="no document" if entry is None or entry.value is None else "another document",
                action="put the manifest in force again together with its documents",
            )
        return entry.value
