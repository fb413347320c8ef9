"""Flipped bits and random bytes: a verdict with reasons every time, never an exception, never another quote."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

import attestgate
from attestgate.manager.verification.offline.quote import NamedPolicy, verify_ias, verify_quote
from attestgate.manager.verification.sgx.quote import SIGNED_LENGTH, parse
from attestgate.schemas.sgx import SgxVerdict
from tests.sgx.fuzz import seeds, target
from tests.support.reasons import codes
from tests.support.sgx.ias import authority
from tests.support.sgx.recorded import Vector, judge_baseline, load_vector
from tests.support.sgx.simulated import NOW, SimulatedSgx

REPOSITORY = Path(attestgate.__file__).parents[2]
BLANK_TO_BLANK = {(0x00, 5)}
"""The one kind of bit without a meaning: the blank after the last certificate (a NUL) turned into another blank."""
CERTIFICATION_DATA = 1052


def flips(raw: bytes, every_bit_to: int, seed: int) -> Iterator[tuple[int, int]]:
    """Byte and bit: every bit of the first bytes and of all white space, one bit of each other byte."""
    choose = random.Random(seed)
    for at, byte in enumerate(raw):
        every = at < every_bit_to or (byte in b" \t\r\n\0" and at >= CERTIFICATION_DATA)
        for bit in range(8) if every else (choose.randrange(8),):
            yield at, bit


def flipped(raw: bytes, at: int, bit: int) -> bytes:
    changed = bytearray(raw)
    changed[at] ^= 1 << bit
    return bytes(changed)


def test_every_byte_of_a_quote_flipped(shared: SimulatedSgx) -> None:
    raw, collateral = shared.quote(), shared.collateral()
    identity, accepted = parse(raw).identity, []
    for at, bit in flips(raw, SIGNED_LENGTH + 4, seed=1):
        verdict = shared.appraise(flipped(raw, at, bit), collateral, mrenclaves=None, report_data=None)
        if verdict.accepted:
            accepted.append((at, bit))
            assert verdict.quote_id == identity
            assert (raw[at], bit) in BLANK_TO_BLANK
    assert accepted == [(len(raw) - 1, 5)]


@pytest.mark.parametrize(("folder", "at"), [("dcap-zkdcap-risc0", 1743465600), ("dcap-automata-quotev3", 1756080000)])
def test_every_byte_of_a_recorded_quote_flipped(vectors: Path, folder: str, at: int) -> None:
    vector = load_vector(vectors / folder)
    identity, accepted = parse(vector.quote).identity, []
    for where, bit in flips(vector.quote, 0, seed=2):
        verdict = _judged(vector, flipped(vector.quote, where, bit), at)
        if verdict.accepted:
            accepted.append((where, bit))
            assert verdict.quote_id == identity
    assert accepted == [(len(vector.quote) - 1, 5)]


def _judged(vector: Vector, quote: bytes, at: int) -> SgxVerdict:
    return judge_baseline(quote, vector.collateral, vector.root_der, at)


def test_ten_thousand_random_inputs_end_in_a_refusal(shared: SimulatedSgx) -> None:
    choose = random.Random(3)
    raw, collateral = shared.quote(), shared.collateral()
    for _ in range(10_000):
        head = raw[: choose.choice((0, 16, 48, 436, 564, 1012, 1052, 2000))]
        verdict = shared.appraise(head + choose.randbytes(choose.randrange(3000)), collateral)
        assert not verdict.accepted and codes(verdict)


@settings(deadline=None)  # the first call makes RSA keys
@given(st.binary(max_size=400), st.binary(max_size=400), st.binary(max_size=400), st.binary(max_size=400))
def test_random_bytes_for_everything_that_ias_takes(report: bytes, signature: bytes, chain: bytes, root: bytes) -> None:
    assert not verify_ias(report, signature, chain, root, NamedPolicy(), (), NOW).accepted
    genuine = authority()[0].public_bytes(Encoding.PEM)
    assert not verify_ias(report, signature, chain, genuine, NamedPolicy(), (), NOW).accepted


@pytest.fixture(scope="module")
def collateral_file(shared: SimulatedSgx) -> bytes:
    return shared.collateral().model_dump_json(exclude_none=True).encode()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mangled_collateral(shared: SimulatedSgx, collateral_file: bytes, data: st.DataObject) -> None:
    """Collateral as it comes from a file, with bytes of it changed: a verdict, whatever they are."""
    text = bytearray(collateral_file)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text) - 1))
        text[start : start + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    trusted = [hashlib.sha256(shared.authority.root_der).hexdigest()]
    verdict = verify_quote(shared.quote(), bytes(text), NamedPolicy(), trusted, NOW)
    assert verdict.accepted == (not codes(verdict))


def test_the_fuzz_target_takes_its_seeds(shared: SimulatedSgx) -> None:
    """What atheris is given to begin with must pass, and each kind of input must be read."""
    one_input = target(shared)
    taken = seeds(shared)
    for data in taken.values():
        one_input(data)
        one_input(data[:1])
        one_input(flipped(data, len(data) // 2, 3))
    assert {data[:1] for data in taken.values()} == {b"q", b"p", b"c", b"i"}


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed: make test-fuzz installs it"
)
@pytest.mark.stack
def test_atheris_finds_nothing_in_a_short_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.sgx.fuzz", str(tmp_path / "corpus"), "-runs=2000", "-max_len=8192"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env={**os.environ}, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
