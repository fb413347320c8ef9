"""The entries of nginx's dictionary, one for each admitted certificate and host session, and how two states differ."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from pydantic import TypeAdapter, ValidationError

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

    @property
    def subjects(self) -> tuple[str, ...]:
        """The application and the host, as a Revoke names them."""
        *_, host, _, app = self.identity.split("/")
        return f"app.{app}", f"host.{host}"


class HostEntry(Model):
    """A host session in nginx's dictionary."""

    kind: Literal["host"] = "host"
    sequence: int
    since: Seconds
    until: Seconds
    host: Id

    @property
    def subjects(self) -> tuple[str, ...]:
        """The host, as a Revoke names it."""
        return (f"host.{self.host}",)


DictionaryEntry = CertificateEntry | HostEntry
ENTRY: TypeAdapter[DictionaryEntry] = TypeAdapter(DictionaryEntry)


@dataclass(frozen=True)
class DictionaryChanges:
    """What to change in nginx's dictionary."""

    remove: list[str]
    put: dict[str, DictionaryEntry]


def entries_of(subjects: Collection[str], present: Mapping[str, str]) -> list[str]:
    """The keys of a dictionary holding `present` (JSON text by key) whose entries are of any of these subjects."""
    found = []
    for key, text in present.items():
        with suppress(ValidationError):  # what is no entry admits nobody
            if any(subject in subjects for subject in ENTRY.validate_json(text).subjects):
                found.append(key)
    return found


def difference(wanted: Mapping[str, DictionaryEntry], present: Mapping[str, str]) -> DictionaryChanges:
    """The changes that make a dictionary holding `present` (JSON text by key) hold `wanted`, byte for byte."""
    return DictionaryChanges(
        remove=[key for key in present if key not in wanted],
        put={key: entry for key, entry in wanted.items() if present.get(key) != entry.model_dump_json()},
    )
