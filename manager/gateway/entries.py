"""The entries of nginx's dictionary, one for each admitted certificate and host session, and how two states differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from attestgate.schemas.admission import Integrity
from attestgate.schemas.base import Hex32, Id, Model, Seconds


class CertificateEntry(Model):
    """A certificate in nginx's dictionary, as compose/nginx/admission.js reads it."""

    kind: Literal["cert"] = "cert"
    sequence: int
    since: Seconds
    """When it was issued: while that is ahead of nginx's clock, it admits nobody."""
    until: Seconds
    sha256: Hex32
    identity: str
    host_key: str
    """The key of its host session."""
    integrity: Integrity
    marks: str
    allow: list[str]


class HostEntry(Model):
    """A host session in nginx's dictionary."""

    kind: Literal["host"] = "host"
    sequence: int
    since: Seconds
    until: Seconds
    host: Id


DictionaryEntry = CertificateEntry | HostEntry


@dataclass(frozen=True)
class DictionaryChanges:
    """What to change in nginx's dictionary."""

    remove: list[str]
    put: dict[str, DictionaryEntry]


def difference(wanted: Mapping[str, DictionaryEntry], present: Mapping[str, str]) -> DictionaryChanges:
    """The changes that make a dictionary holding `present` (JSON text by key) hold `wanted`, byte for byte."""
    return DictionaryChanges(
        remove=[key for key in present if key not in wanted],
        put={key: entry for key, entry in wanted.items() if present.get(key) != entry.model_dump_json()},
    )
