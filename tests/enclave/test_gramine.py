"""Gramine's enclave, on a folder that behaves like /dev/attestation, and the choice between platforms."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from attestgate.enclave.api import EnclaveError
from attestgate.enclave.providers.choice import Profile, open_enclave
from attestgate.enclave.providers.gramine import DEV_ATTESTATION, GramineEnclave
from attestgate.schemas.base import Refusal
from tests.support.reasons import refusal_code


class DevAttestation:
    """A quote is made when `quote` is opened, of whatever user_report_data holds then: the pair is process-wide."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "keys").mkdir()
        (folder / "attestation_type").write_text("dcap")
        (folder / "user_report_data").write_bytes(bytes(64))
        (folder / "keys" / "_sgx_mrenclave").write_bytes(b"e" * 16)
        (folder / "keys" / "_sgx_mrsigner").write_bytes(b"s" * 16)
        os.mkfifo(folder / "quote")

    def answer(self) -> None:
        """Serve one reader of `quote`."""
        with (self.folder / "quote").open("wb") as quote:
            quote.write(bytes(368) + (self.folder / "user_report_data").read_bytes() + b"signature")


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[DevAttestation]:
    yield DevAttestation(tmp_path)


def test_quote_carries_the_report_data(dev: DevAttestation) -> None:
    server = threading.Thread(target=dev.answer)
    server.start()
    quote = GramineEnclave(dev.folder).quote(b"r" * 64)
    server.join()
    assert quote == bytes(368) + b"r" * 64 + b"signature"


def test_threads_take_turns_with_the_pair(dev: DevAttestation) -> None:
    """Report data and quote alternate whoever asks, through whichever object."""
    enclaves = [GramineEnclave(dev.folder) for _ in range(2)]
    wanted = [bytes([number]) * 64 for number in range(12)]
    write, turns = Path.write_bytes, list[str]()

    def serve() -> None:
        with (dev.folder / "quote").open("wb") as quote:
            quote.write(bytes(368) + (dev.folder / "user_report_data").read_bytes())
            turns.append("quote")

    def write_and_serve(path: Path, data: bytes) -> int:
        turns.append("report data")
        done = write(path, data)
        threading.Thread(target=serve).start()
        return done

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(4) as threads:
        patch.setattr(Path, "write_bytes", write_and_serve)
        quotes = list(threads.map(lambda item: enclaves[item[0] % 2].quote(item[1]), enumerate(wanted)))
    assert [quote[368:432] for quote in quotes] == wanted
    assert turns == ["report data", "quote"] * len(wanted)


def test_quote_over_other_data_is_no_quote(dev: DevAttestation) -> None:
    (dev.folder / "quote").unlink()
    (dev.folder / "quote").write_bytes(bytes(500))
    with pytest.raises(EnclaveError, match="other report data"):
        GramineEnclave(dev.folder).quote(b"r" * 64)


def test_sealing_keys_by_policy(dev: DevAttestation) -> None:
    here = GramineEnclave(dev.folder)
    assert here.sealing_key("mrenclave").reveal() == b"e" * 16
    assert here.sealing_key("mrsigner").reveal() == b"s" * 16
    assert not here.simulated


def test_broken_platform_is_an_error_not_a_key(dev: DevAttestation) -> None:
    here = GramineEnclave(dev.folder)
    (dev.folder / "keys" / "_sgx_mrsigner").write_bytes(b"short")
    (dev.folder / "keys" / "_sgx_mrenclave").unlink()
    (dev.folder / "quote").unlink()
    for ask in (
        lambda: here.sealing_key("mrsigner"),
        lambda: here.sealing_key("mrenclave"),
        lambda: here.quote(bytes(64)),
    ):
        with pytest.raises(EnclaveError):
            ask()
    with pytest.raises(ValueError, match="64 bytes"):
        here.quote(bytes(32))


@pytest.mark.parametrize("kind", ["none", "epid", "", "\udcff"])
def test_only_dcap_will_do(dev: DevAttestation, kind: str) -> None:
    (dev.folder / "attestation_type").write_bytes(os.fsencode(kind))
    with pytest.raises(Refusal) as refused:
        GramineEnclave(dev.folder)
    assert refusal_code(refused) == "enclave.gramine"


@pytest.mark.skipif(DEV_ATTESTATION.exists(), reason="this machine runs the tests under Gramine")
@pytest.mark.parametrize("profile", ["production", "development"])
def test_no_device_no_enclave(profile: Profile) -> None:
    with pytest.raises(Refusal) as refused:
        open_enclave("gramine", profile)
    assert refusal_code(refused) == "enclave.gramine"


def test_production_refuses_the_simulated_platform() -> None:
    with pytest.raises(Refusal) as refused:
        open_enclave("simulated", "production")
    assert refusal_code(refused) == "enclave.profile"
