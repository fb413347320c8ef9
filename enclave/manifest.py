"""An enclave's manifest: the trusted files and the identity it is signed with.

The counterpart of a Gramine manifest on the simulated platform. Everything named here is measured, and so is the file
itself.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from packaging.requirements import InvalidRequirement, Requirement
from pydantic import Field, StringConstraints, field_validator

from attestgate.schemas.base import Model, Refusal, parse_json

Module = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]*\*?$")]
UInt16 = Annotated[int, Field(ge=0, le=0xFFFF)]

_STEERS_THE_LOADER = re.compile(
    r"^(PYTHON|LD_|GLIBC_|MALLOC_|OPENSSL_|SSL_)|^ATTESTGATE_(ENCLAVE_FD|MEASURED)$|^[A-Z]\*$",
    re.IGNORECASE,  # as settings read the environment
)


class Manifest(Model):
    """An enclave's declaration.

    `environment` names the variables that are passed in from outside, a trailing `*` standing for any ending; settings
    that the agent's security depends on belong in the measured settings instead.
    """

    entry: Module
    """Run as `python -m`."""
    packages: Annotated[tuple[Module, ...], Field(min_length=1)]
    """Packages under the code root, each trusted as a whole; `a.b` is the folder a/b."""
    distributions: tuple[str, ...] = ()
    """Installed distributions, trusted with all their requirements."""
    environment: tuple[Variable, ...] = ()
    isv_prod_id: UInt16
    isv_svn: UInt16
    debug: bool = False
    measured_settings: bool
    """Whether a file of settings is part of the measurement."""

    @field_validator("environment")
    @classmethod
    def _harmless(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if _STEERS_THE_LOADER.search(name):
                raise ValueError(f"{name} would steer the interpreter or the platform")
        return names

    @field_validator("distributions")
    @classmethod
    def _names(cls, distributions: tuple[str, ...]) -> tuple[str, ...]:
        for name in distributions:
            try:
                Requirement(name)
            except InvalidRequirement:
                raise ValueError(f"{name!r} is not the name of a distribution") from None
        return distributions

    def passed(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The variables of an environment that are passed in from outside."""
        return {name: value for name, value in environment.items() if self._admits(name)}

    def _admits(self, variable: str) -> bool:
        if _STEERS_THE_LOADER.search(variable):
            return False
        return any(
            variable == name or (name[-1] == "*" and variable.startswith(name[:-1])) for name in self.environment
        )


def parse_manifest(text: bytes, source: str) -> Manifest:
    """A manifest from its TOML; `source` names it in a refusal. Raises Refusal (`file.*`)."""
    try:
        document = json.dumps(tomllib.loads(text.decode("utf-8")))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, TypeError) as error:
        raise Refusal.because(
            "file.toml", source, expected="a TOML document", found=error, action="correct the file"
        ) from None
    return parse_json(Manifest, document, source=source)


def read_manifest(path: Path) -> tuple[Manifest, bytes]:
    """A manifest and the exact bytes it was read from. Raises Refusal (`file.*`)."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise Refusal.because(
            "file.read", str(path), expected="a readable manifest", found=error.strerror, action="check the path"
        ) from None
    return parse_manifest(text, str(path)), text
