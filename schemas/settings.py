"""The settings of every process: one TOML file each, overridden by ATTESTGATE_... variables, unknown keys are errors.

What an agent must not be lied to about is not here but in `Measured`, a file of its own that is part of the enclave's
measurement; the environment cannot override it. docs/settings.md maps the prototype's names to these.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from schemas.base import Hex32, Id, Refusal, first_message, where
from schemas.enrolment import OperatorRole

Profile = Literal["production", "development"]
SuiteSetting = Literal["mlkem768-x25519", "x25519"]


_folder: ContextVar[Path] = ContextVar("folder", default=Path())
"""Folder of the settings file that is being read."""


def _beside_file(path: Path) -> Path:
    return _folder.get() / path


FilePath = Annotated[Path, AfterValidator(_beside_file)]
"""A path; a relative one counts from the folder of the settings file."""


class Part(BaseModel):
    """A table within a settings file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Timing(Part):
    """Spans in seconds. A lease counts from the moment the question was asked, never from the answer."""

    lease_s: Annotated[int, Field(ge=2, le=3600)] = 30
    recheck_s: Annotated[int, Field(ge=1, le=3600)] = 10
    evidence_window_s: Annotated[int, Field(ge=1, le=600)] = 10
    skew_s: Annotated[int, Field(ge=0, le=60)] = 5
    certificate_s: Annotated[int, Field(ge=60, le=86400)] = 3600

    @model_validator(mode="after")
    def _lease_covers_recheck(self) -> Self:
        if self.lease_s <= self.recheck_s:
            raise ValueError("lease_s must be longer than recheck_s, or every lease ends before it can be renewed")
        return self


class BusSettings(Part):
    """Where the bus is, and the credentials file for it."""

    url: str
    credentials: FilePath


class OperatorSettings(Part):
    """An operator or policy author whose signature is taken: a name, a role, an Ed25519 public key in hexadecimal."""

    name: Id
    role: OperatorRole
    identity: Hex32


class AttestationSettings(Part):
    """The attestation service, and the root certificate (PEM or DER) that quotes must chain to.

    Intel's root is known by its fingerprint. Any other is a simulated one: it has to be meant (`allow_simulated`), and
    is refused in production.
    """

    pccs_url: str
    root: FilePath
    allow_simulated: bool = False
    when_down: Literal["cache", "refuse"] = "cache"


class GatewaySet(Part):
    """The gateways in front of the controller, as applications are told of them."""

    name: Id
    address: str
    reports_before_ready: Annotated[int, Field(ge=1, le=64)] = 1


class ProcessSettings(BaseSettings):
    """Ground of every settings file."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix="ATTESTGATE_", env_nested_delimiter="__")
    profile: Profile = "production"
    bus: BusSettings


class ManagerSettings(ProcessSettings):
    """A manager worker."""

    name: Id = "manager"
    state_dir: FilePath
    identity: FilePath
    storage_keys: FilePath
    salt: FilePath
    pki: FilePath
    pki_passphrase: FilePath
    trust_domain: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,253}$")]
    operators: Annotated[list[OperatorSettings], Field(min_length=1)]
    attestation: AttestationSettings
    gateways: GatewaySet
    timing: Timing = Timing()
    suite: SuiteSetting = "mlkem768-x25519"

    @model_validator(mode="after")
    def _simulated_only_by_name(self) -> Self:
        if self.attestation.allow_simulated and self.profile == "production":
            raise ValueError('attestation.allow_simulated is refused while profile = "production"')
        return self


class GatewaySettings(ProcessSettings):
    """A gateway worker, beside one nginx."""

    id: Id
    gateway_set: Id
    identity: FilePath
    manager_identity: Annotated[list[Hex32], Field(min_length=1)]
    nginx_socket: FilePath
    longest_lease_s: Annotated[int, Field(ge=2, le=3600)] = 60
    reconcile_s: Annotated[int, Field(ge=1, le=3600)] = 30


class OperatorFile(ProcessSettings):
    """What an operator's commands need: the bus, a name, and the key that signs."""

    name: Id
    identity: FilePath
    answer_s: Annotated[int, Field(ge=1, le=600)] = 15


class PlatformSettings(Part):
    """The platform that the agent runs on. A simulated one is used only where it is asked for by name."""

    kind: Literal["gramine", "simulated"] = "gramine"
    socket: FilePath | None = None

    @model_validator(mode="after")
    def _socket_when_simulated(self) -> Self:
        if (self.kind == "simulated") != (self.socket is not None):
            raise ValueError('socket belongs to kind = "simulated", and must be given there')
        return self


class AgentSettings(ProcessSettings):
    """What both agents have. `measured` is the file that is part of the measurement."""

    id: Id
    platform: PlatformSettings = PlatformSettings()
    measured: FilePath
    retry_s: Annotated[int, Field(ge=1, le=600)] = 2


class HostSettings(AgentSettings):
    """A host agent. `volumes` is its own table: the manager names an index, never a path.

    `tpm` is where `attestgate tpm serve` listens on this host's loopback, if its TPM is enrolled.
    """

    tpm: Annotated[str, Field(pattern=r"^(127\.0\.0\.1|localhost):[0-9]{1,5}$")] | None = None
    measurement_list: FilePath = Path("/sys/kernel/security/ima/binary_runtime_measurements")
    volumes: Annotated[list[FilePath], Field(max_length=1024)]


class AppSettings(AgentSettings):
    """An application agent. `volume` is the data volume it shares with its host's agent."""

    host: Id
    volume: FilePath
    status_file: FilePath | None = None


class Measured(Part):
    """What an agent must not be lied to about; part of its measurement.

    `manager_identity`: Ed25519 public keys, hexadecimal. `gateway_ca`: PEM. `program`: a Python file beside this one,
    run by the application's agent (its content is measured with the code).
    """

    manager_identity: Annotated[list[Hex32], Field(min_length=1)]
    suites: Annotated[list[SuiteSetting], Field(min_length=1)]
    sealing: Literal["mrsigner"] = "mrsigner"
    gateway_ca: str = ""
    gateway_name: str = ""
    program: str = ""


S = TypeVar("S", bound=ProcessSettings)


def load_settings(kind: type[S], path: Path) -> S:
    """A process's settings from its TOML file, then the environment. Raises Refusal (`settings.*`)."""

    class FromFile(kind):  # type: ignore[misc, valid-type]
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], **sources: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (sources["env_settings"], TomlConfigSettingsSource(settings_cls, toml_file=path))

    with _reading(kind, path):
        settings: S = FromFile()
        return settings


def load_measured(path: Path) -> Measured:
    """The measured settings. Nothing overrides them. Raises Refusal (`settings.*`)."""
    with _reading(Measured, path):
        return Measured.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))


@contextmanager
def _reading(kind: type[BaseModel], path: Path) -> Iterator[None]:
    """Turn what can be wrong with a settings file into a refusal that names the file and the key."""
    token = _folder.set(path.parent.absolute())
    try:
        path.read_bytes()  # a missing file is an error here, an empty source to pydantic-settings
        yield
    except OSError as error:
        raise Refusal.because(
            "settings.read",
            str(path),
            expected="a readable TOML file",
            found=error.strerror or type(error).__name__,
            action="check the path and its permissions",
        ) from None
    except ValidationError as error:
        raise Refusal.because(
            "settings.key",
            f"{path}: {where(error)}",
            expected=f"the keys of {kind.__name__}",
            found=first_message(error),
            action="correct that key; docs/settings.md lists them all",
        ) from None
    except ValueError as error:  # tomllib and undecodable text
        raise Refusal.because(
            "settings.toml", str(path), expected="TOML in UTF-8", found=str(error), action="correct the file"
        ) from None
    finally:
        _folder.reset(token)
