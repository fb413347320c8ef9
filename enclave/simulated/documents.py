"""The authority's state and the two JSON documents it publishes, with Intel's field names.

Source: Intel, PCS API version 4 (TCB info v3, QE identity v2).
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

from attestgate.schemas.base import Model

PckCa = Literal["platform", "processor"]
UpperHex = Annotated[str, StringConstraints(pattern=r"^(?:[0-9A-F]{2})*$")]
TcbStatus = Literal[
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
]


class _Intel(Model):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class Component(_Intel):
    """One of sixteen component SVNs."""

    svn: int = Field(ge=0, le=255)


class Tcb(_Intel):
    """A platform TCB: the minimum that a PCK certificate's TCB must reach."""

    sgxtcbcomponents: tuple[Component, ...] = Field(min_length=16, max_length=16, alias="sgxtcbcomponents")
    pcesvn: int = Field(ge=0, le=0xFFFF)

    @classmethod
    def of(cls, cpusvn: bytes, pcesvn: int) -> Tcb:
        """The TCB of a platform with this CPUSVN (16 bytes) and PCESVN."""
        return cls(sgxtcbcomponents=tuple(Component(svn=svn) for svn in cpusvn), pcesvn=pcesvn)


class QeTcb(_Intel):
    """A quoting enclave's TCB."""

    isvsvn: int = Field(ge=0, le=0xFFFF)


class TcbLevel(_Intel):
    """A platform TCB and its status."""

    tcb: Tcb
    tcb_date: str
    tcb_status: TcbStatus
    advisory_ids: tuple[str, ...] | None = Field(default=None, alias="advisoryIDs")


class QeTcbLevel(_Intel):
    """A quoting enclave's TCB and its status."""

    tcb: QeTcb
    tcb_date: str
    tcb_status: TcbStatus
    advisory_ids: tuple[str, ...] | None = Field(default=None, alias="advisoryIDs")


class TcbInfo(_Intel):
    """TCB info without its dates."""

    id: Literal["SGX"] = "SGX"
    version: Literal[3] = 3
    fmspc: UpperHex
    pce_id: UpperHex
    tcb_type: int = 0
    tcb_evaluation_data_number: int = Field(ge=0)
    tcb_levels: tuple[TcbLevel, ...]


class QeIdentity(_Intel):
    """QE identity without its dates."""

    id: Literal["QE"] = "QE"
    version: Literal[2] = 2
    tcb_evaluation_data_number: int = Field(ge=0)
    miscselect: UpperHex
    miscselect_mask: UpperHex
    attributes: UpperHex
    attributes_mask: UpperHex
    mrsigner: UpperHex
    isvprodid: int
    tcb_levels: tuple[QeTcbLevel, ...]


class Documents(Model):
    """Everything the authority publishes, without dates and signatures. A change shows in the next answer."""

    tcb_info: TcbInfo
    qe_identity: QeIdentity
    crl_number: int = Field(ge=0)
    revoked_pcks: tuple[str, ...] = ()
    """Serial numbers of PCK certificates, in hexadecimal, with either CA."""
    revoked_cas: tuple[str, ...] = ()
    """Serial numbers of certificates that the root issued."""
    lifetime_s: int = Field(gt=0)


def dated(document: TcbInfo | QeIdentity, issued: datetime, lifetime: timedelta) -> bytes:
    """The exact bytes that are signed and published: compact JSON in Intel's order of fields."""
    body = document.model_dump(mode="json", by_alias=True, exclude_none=True)
    dates = {"issueDate": _time(issued), "nextUpdate": _time(issued + lifetime)}
    whole = {"id": body.pop("id"), "version": body.pop("version"), **dates, **body}
    return json.dumps(whole, separators=(",", ":")).encode()


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
