"""Which policies are in force and on trial: by their authors' signatures, and the managers' that say which is which."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from attestgate.bus.api import Bucket, Entry
from attestgate.bus.client.cached_key import CachedKey
from attestgate.manager.local.high_water import PolicyFloors
from attestgate.manager.local.marks import Marks
from attestgate.manager.local.slices import Slices, aside
from attestgate.manager.policy.in_force import Enter, Held, StatementsInForce
from attestgate.manager.verification.ima.policy_dsse import PolicyKey
from attestgate.manager.verification.ima.runtime_policy import LoadedPolicy, load_in_slices
from attestgate.schemas.base import Refusal, pack, parse_json
from attestgate.schemas.enrolment import PolicyManifest
from attestgate.schemas.host_policy import HostPolicy
from attestgate.schemas.in_force import InForce
from attestgate.schemas.sgx import SgxPolicy, policy_name, read_policy
from attestgate.schemas.signing import Signed

log = structlog.get_logger(__name__)
BUCKET = "policies"
MANIFEST = "manifest"
"""Key of the manifest in force in the bucket `policies`; documents are there under their own hash."""
TRIAL = "trial"
"""Key of the manifest on trial: hosts are judged by it as well, with no effect but a note in the events.
It is over once its version, or a newer one, is in force."""


@dataclass(frozen=True)
class InForcePolicies:
    """The policies of one manifest, read and checked; and those on trial, if there are any."""

    manifest: PolicyManifest
    sgx: SgxPolicy
    host: HostPolicy
    runtime: LoadedPolicy
    trial: InForcePolicies | None = None

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
    """Reads policies, and puts them in force or on trial."""

    def __init__(
        self,
        bucket: Bucket,
        manifests: StatementsInForce[PolicyManifest],
        floors: PolicyFloors,
        marks: Marks,
        slices: Slices,
        policy_keys: Sequence[PolicyKey] = (),
    ) -> None:
        self._bucket = bucket
        self._manifests = manifests
        self._newest = {key: CachedKey(bucket, key) for key in (MANIFEST, TRIAL)}
        self._floors = floors
        self._marks = marks
        self._slices = slices
        self._policy_keys = policy_keys
        self._reading = asyncio.Lock()
        self._in_force: InForcePolicies | None = None
        self._trial: InForcePolicies | None = None

    async def follow(self) -> None:
        """Watch for manifest changes until cancelled."""
        await asyncio.gather(*(manifest.follow() for manifest in self._newest.values()))

    async def in_force(self) -> InForcePolicies:
        """The policies in force by the newest manifest. Raises Refusal (`policy.*`)."""
        while True:
            manifest = await self._manifest_in_force()
            held = self._in_force
            if held is not None and held.manifest == manifest:
                return replace(held, trial=await self._on_trial(manifest))
            await self._put_in_force(manifest)  # takes its time: a newer one may be in force by then

    async def put(
        self, signed: Signed, manifest: PolicyManifest, documents: list[bytes], said: InForce, enter: Enter
    ) -> None:
        """Put a manifest in force, with its documents; `enter` as in StatementsInForce.put.

        Raises Refusal: `command.policy` for one that is not newer than that in force, or whose documents are not
        complete; as a policy's reader does for a document that does not load; BusError.
        """

        def check(held: Held[PolicyManifest]) -> None:
            _check_newer(signed, manifest, held)

        await self._put(MANIFEST, signed, manifest, documents, said, check, enter)

    async def try_out(self, signed: Signed, manifest: PolicyManifest, documents: list[bytes], said: InForce) -> None:
        """Put a manifest on trial, with its documents, in place of what is on trial. Raises as `put` does."""

        def check(held: Held[PolicyManifest]) -> None:
            if said.order <= held.said.order:
                raise _refused(f"a command newer than {held.said.order}", str(said.order), "sign it again")

        await self._put(TRIAL, signed, manifest, documents, said, check, None)

    async def newest(self) -> int:
        """The version of the manifest in force; 0 if there is none."""
        return await self._manifests.newest_order(MANIFEST)

    async def highest_version(self) -> int:
        """The highest version in force, or known to have been; 0 for none. Raises Refusal (`policy.*`), BusError."""
        held = await self._manifests.newest(MANIFEST, await self._bucket.get(MANIFEST))
        return max(self._marks.policy(), 0 if held is None else held.said.order)

    async def newest_trial(self, but: Signed) -> int:
        """The sequence of the command that put a manifest on trial, other than `but`; 0 if there is none."""
        return await self._manifests.newest_order(TRIAL, but)

    async def _put(
        self,
        key: str,
        signed: Signed,
        manifest: PolicyManifest,
        documents: list[bytes],
        said: InForce,
        check: Callable[[Held[PolicyManifest]], None],
        enter: Enter | None,
    ) -> None:
        in_force = await self._manifests.newest(MANIFEST, await self._bucket.get(MANIFEST))
        if in_force is not None:
            _check_newer(signed, manifest, in_force)
        by_name = await aside(sum(map(len, documents)), _by_name, documents)
        named = {manifest.sgx_policy, manifest.host_policy, manifest.runtime_policy}
        if missing := named - by_name.keys():
            raise _refused("every document of the manifest", f"{sorted(missing)} missing", "send them too")
        # No author has signed them: whoever may send a command could fill the bucket with them.
        if others := by_name.keys() - named:
            raise _refused("no other document", f"{sorted(others)}, which the manifest does not name", "leave them out")
        # Before anybody is judged by it: a document that nobody can read would have everybody refused.
        await self._load(manifest, by_name)
        for name, document in by_name.items():
            await self._bucket.put(name, document)
        await self._manifests.put(key, signed, manifest, said, check, enter=enter)

    async def _manifest_in_force(self) -> PolicyManifest:
        manifest = await self._manifest(MANIFEST, await self._newest[MANIFEST].get())
        if manifest is None:
            raise Refusal.because(
                "policy.none",
                "policy manifest",
                expected="a signed manifest",
                found="no manifest: without a policy everything is refused",
                action="put one in force: attestgate policy sign",
            )
        if manifest.version < self._marks.policy():
            raise Refusal.because(
                "policy.rollback",
                "policy manifest",
                expected=f"version {self._marks.policy()}, by which a gateway has a lease, or a later one",
                found=f"version {manifest.version}",
                action="put a higher version in force, if the author of that one was taken out;"
                " otherwise find out who hides it on the bus",
            )
        return manifest

    async def _manifest(self, key: str, entry: Entry | None) -> PolicyManifest | None:
        held = await self._manifests.newest(key, entry)
        return None if held is None else held.says

    async def _put_in_force(self, manifest: PolicyManifest) -> None:
        async with self._reading:  # by one for all that wait for it
            if self._in_force is None or self._in_force.manifest != manifest:
                self._in_force = await self._read(manifest)
                self._floors.tcb_evaluation = manifest.min_tcb_evaluation
                self._floors.crl_number = manifest.min_crl_number

    async def _on_trial(self, in_force: PolicyManifest) -> InForcePolicies | None:
        """The policies on trial. One that cannot be read is ignored: a trial decides nothing, so it refuses nothing."""
        try:
            manifest = await self._manifest(TRIAL, await self._newest[TRIAL].get())
            if manifest is None or manifest.version <= in_force.version:
                return None
            async with self._reading:
                if self._trial is None or self._trial.manifest != manifest:
                    self._trial = await self._read(manifest)
                return self._trial
        except Refusal as refusal:
            log.warning("policies on trial ignored", reasons=[reason.sentence() for reason in refusal.reasons])
            return None

    async def _read(self, manifest: PolicyManifest) -> InForcePolicies:
        names = (manifest.sgx_policy, manifest.host_policy, manifest.runtime_policy)
        return await self._load(manifest, {name: await self._document(name) for name in names})

    async def _load(self, manifest: PolicyManifest, documents: Mapping[str, bytes]) -> InForcePolicies:
        """The documents of a manifest, each within its limits, and together. Raises Refusal."""
        host = parse_json(HostPolicy, documents[manifest.host_policy], source="host policy")
        if host.runtime_policy != manifest.runtime_policy:
            raise Refusal.because(
                "policy.mismatch",
                "host policy: runtime_policy",
                expected=manifest.runtime_policy,
                found=host.runtime_policy,
                action="sign a manifest whose documents belong together",
            )
        sgx = read_policy(documents[manifest.sgx_policy], source="SGX policy")
        loading = load_in_slices(documents[manifest.runtime_policy], authors=self._policy_keys)
        return InForcePolicies(manifest=manifest, sgx=sgx, host=host, runtime=await self._slices.finish(loading))

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


def _by_name(documents: list[bytes]) -> dict[str, bytes]:
    return {policy_name(document): document for document in documents}


def _check_newer(signed: Signed, manifest: PolicyManifest, in_force: Held[PolicyManifest]) -> None:
    """Raises Refusal `command.policy` for an older manifest than the one in force, or another of its version."""
    if in_force.standing.statement != signed and manifest.version <= in_force.said.order:
        raise _refused(f"a version above {in_force.said.order}", str(manifest.version), "raise the version")


def _refused(expected: str, found: str, action: str) -> Refusal:
    return Refusal.because("command.policy", "policy", expected=expected, found=found, action=action)
