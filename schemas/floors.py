"""A gateway's floors in one file, signed by it: what another gateway starts from when it has lost its own."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from attestgate.schemas.base import Bytes32, Count, Id, Model, Seconds
from attestgate.schemas.signing import Purpose, Signed

MAX_EXPORT = 1 << 30
"""Largest file in bytes: more than the floors of a million subjects."""


class FloorsExport(Model):
    """What the gateway signs: which file it is, from when, and after how many changes."""

    gateway: Id
    at: Seconds
    floors: Count
    sha256: Bytes32
    """Of `ExportFile.rows`."""


class ExportFile(Model):
    """The file. `gateway` and `rows` are believed once the signature is verified."""

    gateway: Id
    signed: Signed
    rows: Annotated[bytes, Field(max_length=MAX_EXPORT)]


EXPORT = Purpose("gateway floors", "gateway", FloorsExport)
