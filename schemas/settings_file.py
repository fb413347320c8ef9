"""Reads a settings file: its TOML, then ATTESTGATE_... variables; errors name the file and the key."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, TomlConfigSettingsSource

from attestgate.schemas.base import Reason, Refusal

_folder: ContextVar[Path] = ContextVar("folder", default=Path())
"""Folder of the settings file that is being read."""


def _beside_file(path: Path) -> Path:
    return _folder.get() / path


FilePath = Annotated[Path, AfterValidator(_beside_file)]
"""A path; a relative one is relative to the settings file's folder."""


class Part(BaseModel):
    """A table within a settings file."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


S = TypeVar("S", bound=BaseSettings)
P = TypeVar("P", bound=Part)


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


def load_part(kind: type[P], path: Path) -> P:
    """Settings from a TOML file alone, ignoring the environment. Raises Refusal (`settings.*`)."""
    with _reading(kind, path):
        return kind.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))


@contextmanager
def _reading(kind: type[BaseModel], path: Path) -> Iterator[None]:
    """Turn the errors of a settings file into a refusal that names the file and the key."""
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
        raise Refusal(*_wrong_keys(kind, path, error)) from None
    except ValueError as error:  # tomllib and undecodable text
        raise Refusal.because(
            "settings.toml", str(path), expected="TOML in UTF-8", found=str(error), action="correct the file"
        ) from None
    finally:
        _folder.reset(token)


def _wrong_keys(kind: type[BaseModel], path: Path, error: ValidationError) -> list[Reason]:
    """Each problem, by its key; never the value, which may be secret."""
    return [
        Reason(
            code="settings.key",
            field=f"{path}: {'.'.join(map(str, problem['loc'])) or '(whole)'}",
            expected=f"the keys of {kind.__name__}",
            found=problem["msg"],
            action="correct that key; docs/settings.md lists them all",
        )
        for problem in error.errors(include_input=False, include_url=False)
    ]
