"""The policies of a stack on one machine: learned from a known-good host's list, simulated evidence allowed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from attestgate.manager.verification.ima.measurement_list import entries
from attestgate.manager.verification.ima.runtime_policy import learn
from attestgate.schemas.enrolment import MANIFEST, MANIFESTS, PolicyManifest, PutPolicy
from attestgate.schemas.sgx import policy_name
from attestgate.schemas.signing import Signer


@dataclass(frozen=True)
class LearnedPolicies:
    """Three documents that belong together."""

    sgx: bytes
    host: bytes
    runtime: bytes

    @classmethod
    def learn(cls, measurement_list: Path, *, accept_unanchored: bool = True) -> LearnedPolicies:
        """All on this list is known good; a list that no TPM vouches for is accepted or not (verdicts say so)."""
        known, _ = learn([entries(measurement_list.read_bytes())])
        runtime = known.text().encode()
        host = {"version": 1, "runtime_policy": policy_name(runtime), "accept_unanchored": accept_unanchored}
        sgx = {"version": 1, "isv_prod_id": 1, "min_isv_svn": 1}
        return cls(sgx=json.dumps(sgx).encode(), host=json.dumps(host).encode(), runtime=runtime)

    def command(self, author: Signer, version: int) -> PutPolicy:
        """The command that puts them in force, its manifest signed by a policy author."""
        manifest = PolicyManifest(
            version=version,
            sgx_policy=policy_name(self.sgx),
            host_policy=policy_name(self.host),
            runtime_policy=policy_name(self.runtime),
        )
        return PutPolicy(
            manifest=author.sign(MANIFEST, MANIFESTS, manifest), documents=[self.sgx, self.host, self.runtime]
        )
