"""Floors from one gateway to another, for one that has lost its own: signed by the first, merged by maximum."""

from __future__ import annotations

import hashlib

from attestgate.manager.gateway.floors import Floors, Row
from attestgate.manager.gateway.floors_file import FloorsFile, FloorsNotWritten
from attestgate.schemas.base import Model, Refusal, pack, unpack, unpack_own
from attestgate.schemas.floors import EXPORT, MAX_EXPORT, ExportFile, FloorsExport
from attestgate.schemas.signing import Signer, TrustedKeys


class _Rows(Model):
    rows: list[Row]


def export_floors(file: FloorsFile, gateway: str, identity: Signer, at: int) -> bytes:
    """The export of a gateway's file, as of Unix second `at`. Its worker may run meanwhile. Raises Refusal."""
    rows = pack(_Rows(rows=file.rows()))
    said = FloorsExport(gateway=gateway, at=at, floors=file.counter, sha256=hashlib.sha256(rows).digest())
    signed = identity.sign(EXPORT, f"gateway/{gateway}", said)
    return pack(ExportFile(gateway=gateway, signed=signed, rows=rows))


def open_export(data: bytes, trusted: TrustedKeys) -> tuple[FloorsExport, list[Row]]:
    """The floors in an export. Raises Refusal (`message.*`, `signature.*`, `floors.export`)."""
    file = unpack(ExportFile, data, limit=MAX_EXPORT)
    said = trusted.read(EXPORT, file.signed, f"gateway/{file.gateway}")
    found = hashlib.sha256(file.rows).digest()
    if found != said.sha256:
        raise Refusal.because(
            "floors.export",
            "rows",
            expected=f"SHA-256 {said.sha256.hex()}, as signed",
            found=found.hex(),
            action="copy the export again",
        )
    return said, unpack_own(_Rows, file.rows).rows


def import_floors(file: FloorsFile, rows: list[Row]) -> int:
    """Raise a file's floors to these, where they are higher. Returns how many were. Raises Refusal `file.access`."""
    floors = Floors(file.rows(), operators=(), longest_lease_s=0)
    raised = floors.merge(rows)
    try:
        if raised:
            file.write(raised)
    except FloorsNotWritten as error:
        raise Refusal.because(
            "file.access",
            "floors",
            expected="a file that can be written",
            found=str(error),
            action="check the room on its disk, and that no gateway worker uses it",
        ) from None
    return len(raised)
