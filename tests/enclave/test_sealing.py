"""Sealed data opens on its platform, for its purpose, whole; and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestgate.enclave.api import KeyPolicy
from attestgate.enclave.sealing import OVERHEAD, seal, unseal
from attestgate.schemas.base import Refusal, Secret
from tests.support.reasons import refusal_code


class Machine:
    """An enclave with keys of its own."""

    simulated = True

    def __init__(self, name: bytes) -> None:
        self._name = name

    def quote(self, report_data: bytes) -> bytes:
        return report_data

    def sealing_key(self, policy: KeyPolicy) -> Secret:
        return Secret((self._name + policy.encode()).ljust(16)[:16])


HERE, ELSEWHERE = Machine(b"here"), Machine(b"else")


@given(st.binary(max_size=200), st.sampled_from(["mrenclave", "mrsigner"]), st.text(max_size=20))
def test_opens_again(data: bytes, policy: KeyPolicy, purpose: str) -> None:
    blob = seal(HERE, policy, purpose, data)
    assert unseal(HERE, policy, purpose, blob) == data
    assert len(blob) == len(data) + OVERHEAD


def test_never_twice_the_same() -> None:
    assert seal(HERE, "mrsigner", "k", b"data") != seal(HERE, "mrsigner", "k", b"data")


@pytest.mark.parametrize(
    ("machine", "policy", "purpose"),
    [(ELSEWHERE, "mrsigner", "k"), (HERE, "mrenclave", "k"), (HERE, "mrsigner", "other")],
    ids=["platform", "policy", "purpose"],
)
def test_opens_nowhere_else(machine: Machine, policy: KeyPolicy, purpose: str) -> None:
    blob = seal(HERE, "mrsigner", "k", b"secret")
    with pytest.raises(Refusal) as refused:
        unseal(machine, policy, purpose, blob)
    assert refusal_code(refused) == "seal.open"


def test_every_bit_counts() -> None:
    blob = seal(HERE, "mrsigner", "k", b"secret")
    for position in range(len(blob)):
        spoilt = bytearray(blob)
        spoilt[position] ^= 1
        with pytest.raises(Refusal):
            unseal(HERE, "mrsigner", "k", bytes(spoilt))


@given(st.binary(max_size=300))
def test_anything_else_is_refused(blob: bytes) -> None:
    with pytest.raises(Refusal):
        unseal(HERE, "mrsigner", "k", blob)


@given(st.integers(0, OVERHEAD + 5))
def test_cut_short_is_refused(length: int) -> None:
    blob = seal(HERE, "mrsigner", "k", b"secret")
    with pytest.raises(Refusal):
        unseal(HERE, "mrsigner", "k", blob[:length])
