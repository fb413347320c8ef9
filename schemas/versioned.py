"""The protocol's version, in what an older or newer party would send first: refused by name, not for its form."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from attestgate.schemas.base import Model, Refusal, shown
from attestgate.schemas.binding import PROTOCOL


class Versioned(Model):
    """A model of this version of the protocol. Raises Refusal `protocol.version` for one of another."""

    version: Annotated[int, Field(ge=PROTOCOL, le=PROTOCOL)]

    @model_validator(mode="before")
    @classmethod
    def _this_version(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("version") != PROTOCOL:
            raise Refusal.because(
                "protocol.version",
                cls.__name__,
                expected=f"version {PROTOCOL} of the protocol",
                # Version 1 had no such field.
                found=f"version {shown(fields.get('version', 1))}",
                action="upgrade managers, agents, gateways and operators together (docs/operations.md)",
            )
        return fields
