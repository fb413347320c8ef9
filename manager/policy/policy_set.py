"""A policy set on disk: three documents and the manifest that will name them, signed away from the bus.

The set is a JSON file beside the documents; signing makes a bundle that any operator may carry to the bus.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from attestgate.manager.verification.ima.policy_dsse import PolicyKey, read_key
from attestgate.manager.verification.ima.runtime_policy import load as load_runtime_policy
from attestgate.schemas.base import Model, Refusal, parse_json, read_json
from attestgate.schemas.enrolment import MANIFEST, MANIFESTS, PolicyManifest, PutPolicy
from attestgate.schemas.host_policy import HostPolicy
from attestgate.schemas.settings import TrustDomainName
from attestgate.schemas.sgx import policy_name, read_policy
from attestgate.schemas.signing import Signer

MAX_DOCUMENT = 7 * 1024 * 1024


class PolicySet(Model):
    """The set's file. Paths count from its folder; `version` must rise with every set put in force.

    `trust_domain` is the deployment's, as in the managers' settings: what is signed is for no other.
    """

    trust_domain: TrustDomainName
    version: Annotated[int, Field(ge=1, lt=2**63)]
    sgx_policy: str
    host_policy: str
    runtime_policy: str
    min_tcb_evaluation: Annotated[int, Field(ge=0)] = 0
    min_crl_number: Annotated[int, Field(ge=0)] = 0
    allow_proxy: bool = False
    allow_manager_keys: bool = False


def sign_set(path: Path, author: Ed25519PrivateKey, policy_keys: Sequence[PolicyKey] = ()) -> PutPolicy:
    """Read a set, check that its documents load and belong together, sign its manifest. Raises Refusal."""
    described = read_json(PolicySet, path)
    sgx = _read(path.parent / described.sgx_policy)
    host = _read(path.parent / described.host_policy)
    runtime = _read(path.parent / described.runtime_policy)
    read_policy(sgx, source=described.sgx_policy)
    load_runtime_policy(runtime, source=described.runtime_policy, authors=policy_keys)
    named = parse_json(HostPolicy, host, source=described.host_policy).runtime_policy
    if named != policy_name(runtime):
        raise Refusal.because(
            "file.fields",
            f"{described.host_policy}: runtime_policy",
            expected=f"the SHA-256 of {described.runtime_policy}, {policy_name(runtime)}",
            found=named,
            action="write that hash into the host policy",
        )
    manifest = PolicyManifest(
        version=described.version,
        sgx_policy=policy_name(sgx),
        host_policy=policy_name(host),
        runtime_policy=policy_name(runtime),
        min_tcb_evaluation=described.min_tcb_evaluation,
        min_crl_number=described.min_crl_number,
        allow_proxy=described.allow_proxy,
        allow_manager_keys=described.allow_manager_keys,
    )
    signed = Signer(described.trust_domain, author).sign(MANIFEST, MANIFESTS, manifest)
    return PutPolicy(manifest=signed, documents=[sgx, host, runtime])


def read_policy_key(path: Path) -> PolicyKey:
    """A public key that runtime policies have to be signed with, from its PEM file. Raises Refusal."""
    return read_key(_read(path), source=str(path))


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Refusal.because(
            "file.read", str(path), expected="a policy document", found=error.strerror, action="check the path"
        ) from None
    if len(data) > MAX_DOCUMENT:
        raise Refusal.because(
            "file.read", str(path), expected=f"at most {MAX_DOCUMENT} bytes", found=str(len(data)), action="split it"
        )
    return data
