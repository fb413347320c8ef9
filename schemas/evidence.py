"""Evidence besides the quote: how a piece of the measurement list is encoded, and what of it the quote covers."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator

from attestgate.schemas.base import Refusal, pack
from attestgate.schemas.binding import evidence_hash
from attestgate.schemas.messages import MAX_LIST, MeasurementList
from attestgate.schemas.tpm import TpmQuote

PIECE = 64 * 1024
"""Most bytes of a list that are decompressed at a time: some 400 entries."""
SLICE = 16 * 1024
"""Compressed bytes given to zlib at a time."""


def host_evidence_hash(measurements: MeasurementList, tpm: TpmQuote | None) -> bytes:
    """SHA-512 that a host's quote covers: the list's piece with its place and hashes, and the TPM quote if any."""
    return evidence_hash(pack(measurements), *([] if tpm is None else [pack(tpm)]))


def app_evidence_hash(certificate_request: bytes = b"", *, proxy: bool = False) -> bytes:
    """SHA-512 that an application's quote covers: its certificate request, and whether it is a proxy.

    In a recheck it covers neither: both are unchanged.
    """
    return evidence_hash(certificate_request, *([b"proxy"] if proxy else []))


def pack_measurements(whole: bytes, offset: int) -> MeasurementList:
    """What a list has beyond `offset`, ready to send. A list shorter than that is sent whole, from 0."""
    start = offset if offset <= len(whole) else 0
    return MeasurementList(
        offset=start,
        size=len(whole) - start,
        prefix=hashlib.sha256(whole[:start]).digest(),
        whole=hashlib.sha256(whole).digest(),
        zlib=zlib.compress(whole[start:], level=6),
    )


def measured_pieces(measurements: MeasurementList) -> Iterator[bytes]:
    """The piece of the list, decompressed at most `PIECE` bytes at a time. Raises Refusal `evidence.list`.

    It never decompresses further than the size that the evidence states. Size and hash are known to be right only when
    the last bytes have come: nothing may be concluded from the bytes before.
    """
    inflate, whole, size = zlib.decompressobj(), hashlib.sha256(), 0
    most = min(measurements.size, MAX_LIST)
    # In slices, since zlib copies what it has not consumed each time.
    for start in range(0, len(measurements.zlib), SLICE):
        if inflate.eof:
            raise _bad("zlib data", "more bytes after its end")
        rest = measurements.zlib[start : start + SLICE]
        while True:
            data = _inflated(inflate, rest)
            size += len(data)
            if size > most:
                raise _bad(f"{measurements.size} bytes", f"{size} bytes, or more")
            whole.update(data)
            yield data  # also where it is empty: compressed bytes can be many and say nothing
            rest = inflate.unconsumed_tail
            if not rest and len(data) < PIECE:
                break
    if not inflate.eof or inflate.unused_data or size != measurements.size:
        raise _bad(f"{measurements.size} bytes", f"{size} bytes, or more")
    if measurements.offset == 0 and whole.digest() != measurements.whole:
        raise _bad("the list that its hash names", "another list")


def _inflated(inflate: zlib._Decompress, data: bytes) -> bytes:
    try:
        return inflate.decompress(data, PIECE)
    except zlib.error:
        raise _bad("zlib data", "bytes that do not decompress") from None


def _bad(expected: str, found: str) -> Refusal:
    return Refusal.because(
        "evidence.list",
        "measurement list",
        expected=expected,
        found=found,
        action="run manager and agent of one version: the list was changed in transit, or is encoded otherwise",
    )
