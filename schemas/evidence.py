"""Evidence besides the quote: how a piece of the measurement list is encoded, and what of it the quote covers."""

from __future__ import annotations

import hashlib
import zlib

from attestgate.schemas.base import Refusal, pack
from attestgate.schemas.binding import evidence_hash
from attestgate.schemas.messages import MAX_LIST, MeasurementList
from attestgate.schemas.tpm import TpmQuote


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


def unpack_measurements(measurements: MeasurementList) -> bytes:
    """The piece of the list. Raises Refusal `evidence.list`; never inflates to more than `MAX_LIST` bytes."""
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(measurements.zlib, MAX_LIST)
    except zlib.error:
        raise _bad("zlib data", "bytes that do not decompress") from None
    if inflate.unconsumed_tail or not inflate.eof or inflate.unused_data or len(data) != measurements.size:
        raise _bad(f"{measurements.size} bytes", f"{len(data)} bytes, or more")
    whole = measurements.offset == 0
    if whole and hashlib.sha256(data).digest() != measurements.whole:
        raise _bad("the list that its hash names", "another list")
    return data


def _bad(expected: str, found: str) -> Refusal:
    return Refusal.because(
        "evidence.list",
        "measurement list",
        expected=expected,
        found=found,
        action="run manager and agent of one version: the list was changed in transit, or is encoded otherwise",
    )
