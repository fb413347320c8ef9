"""Coverage-guided fuzzing of everything that reads SGX evidence, with atheris: for a person to run by hand.

    python -m tests.sgx.fuzz CORPUS [-max_total_time=600]

atheris is not among this project's dependencies: install it beside them. CORPUS is a folder; it is given a simulated
quote, its collateral and an IAS report to begin with, and keeps what libFuzzer finds interesting. A finding is an
exception that is no refusal, or a verdict that accepts what was changed.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from attestgate.manager.verification.offline.quote import NamedPolicy, verify_ias, verify_quote
from attestgate.manager.verification.sgx.quote import parse
from attestgate.schemas.base import Refusal
from tests.support.sgx.ias import authority, report
from tests.support.sgx.simulated import NOW, SimulatedSgx

JUNK = b"junk"


def target(sgx: SimulatedSgx) -> Callable[[bytes], None]:
    """What is called with each input: the first byte says what it is given as."""
    quote, collateral = sgx.quote(), sgx.collateral().model_dump_json(exclude_none=True).encode()
    trusted = [sha256(sgx.authority.root_der).hexdigest()]
    identity = parse(quote).identity
    root = authority()[0].public_bytes(Encoding.PEM)

    def one_input(data: bytes) -> None:
        kind, rest = data[:1], data[1:]
        if kind == b"c":
            verdict = verify_quote(quote, rest, NamedPolicy(), trusted, NOW)
            assert verdict.accepted == (not verdict.reasons)
        elif kind == b"i":
            assert not verify_ias(rest, JUNK, JUNK, root, NamedPolicy(), (), NOW).accepted
        elif kind == b"p":
            try:
                parse(rest)
            except Refusal as refusal:
                assert refusal.reasons
        else:
            verdict = verify_quote(rest, collateral, NamedPolicy(), trusted, NOW)
            assert not verdict.accepted or verdict.quote_id == identity

    return one_input


def seeds(sgx: SimulatedSgx) -> dict[str, bytes]:
    """What the corpus begins with."""
    return {
        "quote": b"q" + sgx.quote(),
        "parse": b"p" + sgx.quote(),
        "collateral": b"c" + sgx.collateral().model_dump_json(exclude_none=True).encode(),
        "ias": b"i" + report(),
    }


def main() -> None:
    """Fuzz until libFuzzer is told to stop."""
    atheris: Any = importlib.import_module("atheris")  # not a dependency: only here

    corpus = Path(sys.argv[1])
    corpus.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        sgx = SimulatedSgx(Path(folder))
        for name, data in seeds(sgx).items():
            (corpus / name).write_bytes(data)
        atheris.instrument_all()
        atheris.Setup(sys.argv, target(sgx))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
