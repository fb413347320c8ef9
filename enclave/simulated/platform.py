"""One simulated machine: its identity, its TCB, its quoting enclave and the root secret of its sealing keys.

Its state is a folder, mode 0700. One authority may certify several machines; each has its own PPID and keys.
"""

from __future__ import annotations

from pathlib import Path
from secrets import token_bytes
from typing import Annotated

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import Field

from attestgate.enclave.api import SEALING_KEY_SIZE, KeyPolicy
from attestgate.enclave.simulated.authority import CPUSVN, FMSPC, PCEID, PCESVN, Authority
from attestgate.enclave.simulated.documents import PckCa
from attestgate.enclave.simulated.files import (
    new_folder,
    not_a,
    read_bytes,
    read_certificate,
    read_p256_key,
    write_key,
    write_private,
)
from attestgate.enclave.simulated.quoting_enclave import EnclaveIdentity, QuotingEnclave
from attestgate.enclave.simulated.sgx_extension import PckFacts, PlatformInstance
from attestgate.schemas.base import Model, Secret, read_json
from attestgate.schemas.binding import canonical, derive

Bytes16 = Annotated[bytes, Field(min_length=16, max_length=16)]
_FACTS, _CHAIN, _PCK_KEY, _ATTESTATION_KEY, _ROOT_SECRET = (
    "platform.json",
    "pck_chain.pem",
    "pck.key",
    "attestation.key",
    "root_sealing.secret",
)
_ROOT_SECRET_SIZE = 32
_SGX_TYPE: dict[PckCa, int] = {"platform": 1, "processor": 0}


class MachineFacts(Model):
    """The content of platform.json: the CA that certifies this machine and the facts in its PCK certificate."""

    ca: PckCa
    pck: PckFacts
    qe_id: Bytes16


def create(folder: Path, authority: Path, ca: PckCa = "platform") -> None:
    """Create a machine in an empty folder, up to date and certified by an authority's folder. Raises Refusal."""
    new_folder(folder)
    write_key(folder / _ATTESTATION_KEY, ec.generate_private_key(ec.SECP256R1()))
    write_private(folder / _ROOT_SECRET, token_bytes(_ROOT_SECRET_SIZE))
    pck = PckFacts(
        ppid=token_bytes(16),
        cpusvn=CPUSVN,
        pcesvn=PCESVN,
        pceid=PCEID,
        fmspc=FMSPC,
        sgx_type=_SGX_TYPE[ca],
        instance=PlatformInstance(id=token_bytes(16)) if ca == "platform" else None,
    )
    provision(folder, authority, MachineFacts(ca=ca, pck=pck, qe_id=token_bytes(16)))


def set_tcb(folder: Path, authority: Path, cpusvn: bytes, pcesvn: int = PCESVN) -> None:
    """Load another microcode: a new PCK certificate, other sealing keys, the same machine. Restart its daemon."""
    facts = read_facts(folder)
    pck = facts.pck.model_copy(update={"cpusvn": cpusvn, "pcesvn": pcesvn})
    provision(folder, authority, facts.model_copy(update={"pck": pck}))


def provision(folder: Path, authority: Path, facts: MachineFacts) -> None:
    """Have these facts of a machine certified, under a new PCK."""
    issuer = Authority(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = issuer.issue_pck(key.public_key(), facts.ca, facts.pck).public_bytes(Encoding.PEM)
    write_key(folder / _PCK_KEY, key)
    write_private(folder / _CHAIN, leaf + issuer.ca_chain(facts.ca))
    write_private(folder / _FACTS, facts.model_dump_json(indent=1).encode())


def read_facts(folder: Path) -> MachineFacts:
    """A machine's facts. Raises Refusal (`file.*`)."""
    return read_json(MachineFacts, folder / _FACTS)


def read_pck(folder: Path) -> x509.Certificate:
    """A machine's PCK certificate. Raises Refusal (`file.*`)."""
    return read_certificate(folder / _CHAIN)


class Platform:
    """A running machine. Raises Refusal (`file.*`) for a folder that is not a machine's."""

    def __init__(self, folder: Path) -> None:
        facts = read_facts(folder)
        secret = read_bytes(folder / _ROOT_SECRET)
        if len(secret) != _ROOT_SECRET_SIZE:
            raise not_a(folder / _ROOT_SECRET, f"secret of {_ROOT_SECRET_SIZE} bytes")
        pck_key = read_p256_key(folder / _PCK_KEY)
        if read_pck(folder).public_key() != pck_key.public_key():
            raise not_a(folder / _CHAIN, "certificate of this machine's PCK")
        self._root_secret = Secret(secret)
        self._cpusvn = facts.pck.cpusvn
        self._quoting_enclave = QuotingEnclave(
            read_p256_key(folder / _ATTESTATION_KEY),
            pck_key,
            read_bytes(folder / _CHAIN),
            qe_id=facts.qe_id,
            cpusvn=facts.pck.cpusvn,
            pcesvn=facts.pck.pcesvn,
        )

    def quote(self, enclave: EnclaveIdentity, report_data: bytes) -> bytes:
        """A quote over 64 bytes that a running enclave chooses."""
        return self._quoting_enclave.quote(enclave, report_data)

    def sealing_key(self, enclave: EnclaveIdentity, policy: KeyPolicy) -> Secret:
        """What EGETKEY would give: bound to the machine, its microcode, the enclave's attributes, product and SVN."""
        bound_to = enclave.mrenclave if policy == "mrenclave" else enclave.mrsigner
        info = canonical(
            "simulated sealing key",
            policy,
            bound_to,
            enclave.isv_prod_id,
            enclave.isv_svn,
            self._cpusvn,
            enclave.attributes,
        )
        return Secret(derive(self._root_secret, info, SEALING_KEY_SIZE))
