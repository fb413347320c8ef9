"""Lists and quotes made here, through the command line: each bank and several, the tail, boot_aggregate."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from struct import pack
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from attestgate.manager.verification.ima.measurement_list import entries, replay
from attestgate.manager.verification.tpm.quote import RSAPSS, RSASSA
from attestgate.schemas.host_policy import Bank, Replay
from tests.support.ima.command import run
from tests.support.ima.lists import document, frame, ng
from tests.support.tpm.quotes import EC_KEY, NONCE, attest, ecdsa, rsa_signature
from tests.support.tpm.quotes import RSA_KEY as RSA
from tests.support.tpm.quotes import pem as public

ALGORITHMS = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C}
FILES = b"".join(frame(b"ima-ng", ng(), b"/bin/%d\0" % number) for number in range(2))
TAIL = frame(b"ima-ng", ng(), b"/bin/tail\0")


@dataclass
class Boot:
    """A host whose boot_aggregate is over `aggregate`, quoted in `banks` after `measured`."""

    aggregate: Bank
    banks: list[Bank]
    boot: dict[int, int] = field(default_factory=lambda: dict.fromkeys(range(10), 7))
    quoted: tuple[int, ...] = tuple(range(11))

    @property
    def start(self) -> bytes:
        """The first entry."""
        covered = range(8 if self.aggregate == "sha1" else 10)
        size = hashlib.new(self.aggregate).digest_size
        digest = hashlib.new(self.aggregate, bytes([7]) * size * len(covered)).digest()
        return frame(b"ima-ng", ng(digest, self.aggregate.encode()), b"boot_aggregate\0")

    def judged(self, folder: Path, measured: bytes, listed: bytes, known: bytes, status: int) -> dict[str, Any]:
        """What `verify ima` says of a list, with a quote made when `measured` was on it."""
        selection, values = pack(">I", len(self.banks)), b""
        bits = sum(1 << index for index in self.quoted).to_bytes(3, "little")
        for bank in self.banks:
            selection += pack(">HB", ALGORITHMS[bank], 3) + bits
            size = hashlib.new(bank).digest_size
            pcrs = {index: bytes([value]) * size for index, value in self.boot.items()}
            pcrs[10] = bytes.fromhex(replay(Replay.start(bank), entries(measured)).pcr10[bank])
            values += b"".join(pcrs[index] for index in self.quoted)
        message = attest(selection=selection, digest=hashlib.sha256(values).digest())
        parts = {
            "list": listed,
            "policy": document(known).text().encode(),
            "tpm-quote": message,
            "tpm-signature": EC_KEY.sign(message, ec.ECDSA(hashes.SHA256())),
            "tpm-pcrs": values,
            "ak": public(EC_KEY.public_key()),
        }
        return verified(folder, parts, status)


def verified(folder: Path, parts: dict[str, bytes], status: int) -> dict[str, Any]:
    """What `verify ima` says of these files."""
    for name, data in parts.items():
        (folder / name).write_bytes(data)
    options = [part for name in parts if name != "list" for part in (f"--{name}", folder / name)]
    return run(folder / "list", *options, "--nonce", NONCE.hex(), status=status)


def shown_codes(shown: dict[str, Any]) -> list[str]:
    return [reason["code"] for reason in shown["reasons"]]


BOOTS = [
    Boot("sha1", ["sha1"]),
    Boot("sha256", ["sha256"]),
    Boot("sha384", ["sha384"]),
    Boot("sha1", ["sha1", "sha256"]),
    Boot("sha256", ["sha384", "sha256", "sha1"]),
]


@pytest.mark.parametrize("host", BOOTS, ids=lambda host: "+".join(host.banks))
def test_a_list_is_anchored_in_every_bank_and_its_tail_is_judged(host: Boot, tmp_path: Path) -> None:
    measured, listed = host.start + FILES, host.start + FILES + TAIL
    shown = host.judged(tmp_path, measured, listed, FILES + TAIL, 0)
    assert (shown["entries"], shown["anchored_entries"], shown["boot_state"]) == (4, 3, "not_judged")
    assert shown["pcr10"] == replay(Replay.start(), entries(listed)).pcr10
    shown = host.judged(tmp_path, measured, listed, FILES, 1)
    assert shown_codes(shown) == ["ima.unknown"] and shown["anchored_entries"] == 3
    assert [entry["index"] for entry in shown["unknown"]] == [3], "an unknown tail refuses"
    shown = host.judged(tmp_path, listed, measured, FILES, 1)
    assert shown_codes(shown) == ["ima.replay"] and shown["anchored_entries"] == 0, "more was measured than is listed"


@pytest.mark.parametrize("host", BOOTS, ids=lambda host: "+".join(host.banks))
def test_boot_aggregate_covers_pcr_0_to_9_and_in_sha1_0_to_7(host: Boot, tmp_path: Path) -> None:
    listed = host.start + FILES
    for index in (0, 7, 8, 9):
        other = Boot(host.aggregate, host.banks, {**host.boot, index: 8})
        covered = index < (8 if host.aggregate == "sha1" else 10)
        shown = other.judged(tmp_path, listed, listed, FILES, 1 if covered else 0)
        assert shown_codes(shown) == (["ima.boot_aggregate"] if covered else []), index


def test_without_pcr_0_to_9_in_the_quote_boot_aggregate_is_judged_by_the_policy(tmp_path: Path) -> None:
    host = Boot("sha256", ["sha256"], quoted=(0, 1, 10))
    listed = host.start + FILES
    assert shown_codes(host.judged(tmp_path, listed, listed, FILES, 1)) == ["ima.unknown"]
    assert host.judged(tmp_path, listed, listed, listed, 0)["boot_state"] == "not_judged"


@pytest.mark.parametrize("scheme", ["ecdsa", "rsassa", "rsapss"])
def test_every_scheme_as_a_structure(scheme: str, tmp_path: Path) -> None:
    host = Boot("sha256", ["sha256"])
    listed = host.start + FILES
    host.judged(tmp_path, listed, listed, FILES, 0)
    message = (tmp_path / "tpm-quote").read_bytes()
    rsa = {"rsassa": RSASSA, "rsapss": RSAPSS}.get(scheme)
    parts = {name: (tmp_path / name).read_bytes() for name in ("list", "policy", "tpm-quote", "tpm-pcrs")}
    parts["tpm-signature"] = ecdsa(message) if rsa is None else rsa_signature(rsa, message)
    parts["ak"] = public((EC_KEY if rsa is None else RSA).public_key())
    assert verified(tmp_path, parts, 0)["anchored_entries"] == 3
    parts["ak"] = public((RSA if rsa is None else EC_KEY).public_key())
    assert shown_codes(verified(tmp_path, parts, 1))[0] == "tpm.signature"
