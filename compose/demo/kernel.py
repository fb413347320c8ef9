"""The host's kernel as the demo simulates it: a measurement list in a file, and the TPM that it extends, if any.

The list is a recorded one. A software TPM that is extended with its template digests then gives fresh quotes that
anchor a real list. Only entry 0, boot_aggregate, has to be recomputed: it is the hash of that TPM's own PCR 0-9.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path
from struct import pack

from attestgate.compose.demo.software_tpm import SoftwareTpm
from attestgate.compose.local.recorded import CLEAN, DRIFT
from attestgate.host_agent.tpm import Tpm
from attestgate.manager.verification.ima.measurement_list import frames
from attestgate.manager.verification.tpm.enrolment import challenge, enrolment, golden_from, read_bundle
from attestgate.schemas.tpm import TpmAnswer, TpmEnrolment

FIRMWARE = tuple(hashlib.sha256(b"firmware %d" % index).digest() for index in range(10))
"""What PCR 0-9 are extended with at each boot."""
BOOTED = tuple(hashlib.sha256(bytes(32) + measured).digest() for measured in FIRMWARE)
"""PCR 0-9 after that."""


class Kernel:
    """One host's kernel. `tpm` is None where the machine has no TPM; `tpm_service` is the address of its quotes."""

    def __init__(self, measurement_list: Path, tpm: SoftwareTpm | None = None) -> None:
        self.measurement_list = measurement_list
        self.tpm = tpm
        self.tpm_service = ""
        self._clean, self._drift = CLEAN.read_bytes(), DRIFT.read_bytes()
        if tpm is not None:
            self._clean, self._drift = with_boot(self._clean, BOOTED), with_boot(self._drift, BOOTED)

    async def boot(self) -> None:
        """Boot, again or for the first time: PCRs from zero, a clean list."""
        self._write(self._clean)
        if self.tpm is not None:
            self.tpm.reboot()
            await asyncio.to_thread(self.tpm.measure, FIRMWARE, self._clean)

    async def drift(self) -> None:
        """Measure an unknown program as a kernel does: first into the list, then into the TPM."""
        self._write(self._drift)
        if self.tpm is not None:
            await asyncio.to_thread(self.tpm.measure, (), self._drift[len(self._clean) :])

    def _write(self, measured: bytes) -> None:
        """Replace the list atomically."""
        new = self.measurement_list.with_suffix(".new")
        new.write_bytes(measured)
        new.replace(self.measurement_list)


def enrolled(software: SoftwareTpm) -> TpmEnrolment:
    """A TPM's enrolment, the operator's and the host's part, with its boot as golden. Raises Refusal."""
    roots = read_bundle([path.read_bytes() for path in software.roots])
    with Tpm(software.tcti) as tpm:
        asked, kept = challenge(tpm.describe(), roots, int(time.time()))
        answer = TpmAnswer(credential=tpm.activate(asked).hex())
        quoted = tpm.quote(b"golden", "sha256")
    return enrolment(kept, answer, [golden_from(quoted.message, quoted.pcrs)])


def with_boot(measured: bytes, pcrs: tuple[bytes, ...]) -> bytes:
    """A list as a host with these PCR 0-9 would have it: entry 0 is recomputed for them, the rest is unchanged."""
    aggregate = hashlib.sha256(b"".join(pcrs)).digest()
    data = b"".join(pack("<I", len(field)) + field for field in (b"sha256:\0" + aggregate, b"boot_aggregate\0", b""))
    template_hash = hashlib.sha1(data, usedforsecurity=False).digest()
    first = pack("<I", 10) + template_hash + pack("<I", 7) + b"ima-sig" + pack("<I", len(data)) + data
    _, *rest = frames(measured, "little")
    return first + b"".join(rest)
