"""Which policies are in force and on trial: read from the bus, believed for their author's signature alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import structlog

from attestgate.bus.api import Bus
from attestgate.bus.client.cached_key import CachedKey
from attestgate.manager.local.high_water import CRL_FLOOR, EVALUATION_FLOOR, HighWater
from attestgate.manager.local.slices import Slices
from attestgate.manager.policy.signers import Signers
from attestgate.manager.verification.ima.policy_dsse import PolicyKey
from attestgate.manager.verification.ima.runtime_policy import LoadedPolicy, load_in_slices
from attestgate.schemas.base import Refusal, pack, parse_json, unpack
from attestgate.schemas.enrolment import PolicyManifest
from attestgate.schemas.host_policy import HostPolicy
from attestgate.schemas.sgx import SgxPolicy, policy_name, read_policy
from attestgate.schemas.signing import Signed, verify

log = structlog.get_logger(__name__)
MANIFEST = "manifest"
"""Key of the manifest in force in the bucket `policies`; documents are there under their own hash."""
TRIAL = "trial"
"""Key of the manifest on trial: hosts are judged by it as well, with no effect but a note in the events.
It is over once its version, or a newer one, is in force."""

REMEMBERED = 4
"""Manifests whose signature is not checked again: the one in force, the one on trial, and those just before."""


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


class Policies:
    """Reads policies; remembers how new they were, so that the bus cannot roll them back."""

    def __init__(
        self,
        bus: Bus,
        signers: Signers,
        high_water: HighWater,
        slices: Slices,
        policy_keys: Sequence[PolicyKey] = (),
    ) -> None:
        self._bucket = bus.bucket("policies")
        self._newest = {key: CachedKey(self._bucket, key) for key in (MANIFEST, TRIAL)}
        self._signers = signers
        self._high_water = high_water
        self._slices = slices
        self._policy_keys = policy_keys
        self._reading = asyncio.Lock()
        self._in_force: InForce | None = None
        self._manifests: dict[bytes, PolicyManifest] = {}
        self._trial: InForce | None = None

    async def follow(self) -> None:
        """Watch for manifest changes until cancelled."""
        await asyncio.gather(*(manifest.follow() for manifest in self._newest.values()))

    async def in_force(self) -> InForce:
        """The policies in force by the newest manifest. Raises Refusal (`policy.*`, `rollback`)."""
        while True:
            manifest = await self._manifest_in_force()
            held = self._in_force
            if held is not None and held.manifest == manifest:
                return replace(held, trial=await self._on_trial(manifest))
            await self._put_in_force(manifest)  # takes its time: a newer one may be in force by then

    async def _manifest_in_force(self) -> PolicyManifest:
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
        return manifest

    async def _put_in_force(self, manifest: PolicyManifest) -> None:
        async with self._reading:  # by one for all that wait for it
            if self._in_force is None or self._in_force.manifest != manifest:
                self._in_force = await self._read(manifest)
                self._high_water.raise_to(EVALUATION_FLOOR, manifest.min_tcb_evaluation)
                self._high_water.raise_to(CRL_FLOOR, manifest.min_crl_number)

    def read_manifest(self, signed: bytes) -> PolicyManifest:
        """A manifest, believed for its author's signature. The same bytes are checked once. Raises Refusal."""
        known = self._manifests.get(signed)
        if known is None:
            authors = self._signers.identities("policy-author")
            known = verify(unpack(Signed, signed), PolicyManifest, "policy manifest", authors)
            self._manifests = dict([*self._manifests.items(), (signed, known)][-REMEMBERED:])
        return known

    async def _on_trial(self, in_force: PolicyManifest) -> InForce | None:
        """The policies on trial. One that cannot be read is ignored: a trial decides nothing, so it refuses nothing."""
        entry = await self._newest[TRIAL].get()
        if entry is None or entry.value is None:
            return None
        try:
            manifest = self.read_manifest(entry.value)
            if manifest.version <= in_force.version:
                return None
            async with self._reading:
                if self._trial is None or self._trial.manifest != manifest:
                    self._trial = await self._read(manifest)
                return self._trial
        except Refusal as refusal:
            log.warning("policies on trial ignored", reasons=[reason.sentence() for reason in refusal.reasons])
            return None

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
        sgx = read_policy(await self._document(manifest.sgx_policy), source="SGX policy")
        document = await self._document(manifest.runtime_policy)
        runtime = await self._slices.finish(load_in_slices(document, authors=self._policy_keys))
        return InForce(manifest=manifest, sgx=sgx, host=host, runtime=runtime)

    async def _document(self, name: str) -> bytes:
        entry = await self._bucket.get(name)
        if entry is None or entry.value is None or policy_name(entry.value) != name:
            raise Refusal.because(
                "policy.document",
                name,
                expected="the document with this SHA-256 in the bucket policies",
                found="no document" if entry is None or entry.value is None else "another document",
                action="put the manifest in force again together with its documents",
            )
        return entry.value
