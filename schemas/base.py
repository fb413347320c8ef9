"""The base of every model: strict models, secrets that are never shown, reasons for a refusal."""

from __future__ import annotations

import hmac
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import msgpack
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import PydanticCustomError, core_schema

MAX_MESSAGE = 8 * 1024 * 1024
"""Largest payload on the bus, in bytes (nats-server's `max_payload` is set to it)."""

Id = Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")]
"""Name of a host, application, gateway or operator: a DNS label, so it is safe in subjects, paths and URIs."""

Hex = Annotated[str, StringConstraints(pattern=r"^(?:[0-9a-f]{2})*$")]
"""Bytes in a JSON document: lower-case hexadecimal."""

Hex32 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
SessionId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
"""16 bytes in hexadecimal: of a session, a hash of the hello that opened it (manager.sessions.handshake.session_id)."""

Bytes32 = Annotated[bytes, Field(min_length=32, max_length=32)]
Bytes64 = Annotated[bytes, Field(min_length=64, max_length=64)]
Seconds = Annotated[int, Field(ge=0, lt=2**40)]
"""Unix time, or a span, in whole seconds."""


class Model(BaseModel):
    """A value at a boundary: strict types, unknown keys are errors, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, ser_json_bytes="hex", val_json_bytes="hex")


class Secret:
    """Secret bytes that no repr, str, log or JSON shows. `reveal()` is the only access."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = bytes(value)

    def reveal(self) -> bytes:
        """The secret bytes."""
        return self._value

    def __len__(self) -> int:
        return len(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    def __hash__(self) -> int:
        raise TypeError("a secret cannot be a dictionary key")

    def __repr__(self) -> str:
        return "Secret(hidden)"

    def __reduce__(self) -> Any:
        raise TypeError("a secret cannot be pickled")

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> core_schema.CoreSchema:
        def wrap(value: Any) -> Secret:
            if isinstance(value, Secret):
                return value
            if isinstance(value, bytes):
                return cls(value)
            raise PydanticCustomError("secret", "secret bytes expected")

        return core_schema.no_info_plain_validator_function(
            wrap,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda secret: secret.reveal(), when_used="unless-none"
            ),
        )


class Reason(Model):
    """Why something was refused, in terms a person can act on. Never holds a secret.

    `code` is stable and dotted (`sgx.mrenclave`); `field` names what was checked; `action` says what to do.
    """

    code: str
    field: str
    expected: str
    found: str
    action: str

    def sentence(self) -> str:
        """One readable line."""
        return f"{self.code}: {self.field}: expected {self.expected}, found {self.found}; {self.action}"


class Refusal(Exception):
    """A check failed. Carries every reason found; it is a result, not a crash."""

    def __init__(self, *reasons: Reason) -> None:
        if not reasons:
            raise ValueError("a refusal without a reason")
        super().__init__("; ".join(reason.sentence() for reason in reasons))
        self.reasons = reasons

    @classmethod
    def because(cls, code: str, field: str, *, expected: object, found: object, action: str) -> Self:
        """A refusal with one reason; values are shown by `str` and cut to 300 characters."""
        return cls(Reason(code=code, field=field, expected=shown(expected), found=shown(found), action=action))


def shown(value: object) -> str:
    """A value as a reason shows it: bytes in hexadecimal, control characters escaped, at most 300 characters."""
    text = printable(value.hex() if isinstance(value, bytes) else str(value))
    return text if len(text) <= 300 else text[:297] + "..."


def printable(text: str) -> str:
    """A text as one line, control characters escaped: a terminal would obey them, whoever sent them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


M = TypeVar("M", bound=BaseModel)


def pack(model: BaseModel) -> bytes:
    """A model as msgpack, for the wire: a map of its fields in the order of the class."""
    return bytes(msgpack.packb(model.model_dump(mode="python"), use_bin_type=True))


def unpack(kind: type[M], data: bytes, *, limit: int = MAX_MESSAGE) -> M:
    """Read a model from msgpack. Raises Refusal (`message.*`) for anything that is not exactly one `kind`."""
    if len(data) > limit:
        raise Refusal.because(
            "message.size",
            kind.__name__,
            expected=f"at most {limit} bytes",
            found=f"{len(data)} bytes",
            action="send less",
        )
    try:
        # A repeated key: the last one counts. Harmless, since hashes and signatures are over the bytes and nobody else
        # reads them; JSON documents, which people and other programs read, are refused for it (`parse_json`).
        value = msgpack.unpackb(data, raw=False, strict_map_key=True)
    except Exception as error:  # noqa: BLE001  msgpack raises ValueError, TypeError, UnicodeError and its own kinds
        raise Refusal.because(
            "message.encoding",
            kind.__name__,
            expected="one msgpack value",
            found=type(error).__name__,
            action="check the sender's version",
        ) from None
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise Refusal.because(
            "message.fields",
            f"{kind.__name__}.{where(error)}",
            expected="a valid field",
            found=first_message(error),
            action="check the sender's version",
        ) from None


def where(error: ValidationError) -> str:
    """The dotted path of the first problem in a validation error."""
    return ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"]) or "(whole)"


def first_message(error: ValidationError) -> str:
    """The first problem in a validation error, without the input (which may be secret)."""
    return error.errors(include_input=False, include_url=False)[0]["msg"]


def read_at_most(path: Path, limit: int) -> bytes:
    """A file's bytes to its end, or `limit` + 1 of them. A pipe in its place does not block. Raises OSError."""
    with open(path, "rb", opener=_not_waiting) as file:
        return file.read(limit + 1) or b""


def _not_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_json(kind: type[M], path: Path) -> M:
    """Read a JSON document. Raises Refusal (`file.*`) that names the file and the key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        found = getattr(error, "strerror", None) or type(error).__name__
        raise Refusal.because(
            "file.read",
            str(path),
            expected="a readable text file",
            found=found,
            action="check the path and its permissions",
        ) from None
    return parse_json(kind, text, source=str(path))


def parse_json(kind: type[M], text: str | bytes, *, source: str) -> M:
    """Read a JSON document from text; `source` names it in the refusal."""
    try:
        # Stops a document that shows one value to its author's tools and another to this reader.
        json.loads(text, object_pairs_hook=_unique_keys)
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise not_valid(error, f"{source}: {where(error)}", kind.__name__) from None
    except (ValueError, RecursionError) as error:
        raise not_json(error, source) from None


def not_valid(error: ValidationError, field: str, what: str) -> Refusal:
    """The refusal of a document whose fields are not those of `what`."""
    return Refusal.because(
        "file.fields",
        field,
        expected=f"a valid {what}",
        found=first_message(error),
        action="correct the key in that file",
    )


def not_json(error: Exception, source: str) -> Refusal:
    """The refusal of a text that is no JSON document."""
    return Refusal.because(
        "file.json",
        source,
        expected="a JSON document without repeated keys",
        found=re.sub(r"\s+", " ", str(error)),
        action="correct the file",
    )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise ValueError("a key is repeated")
    return keys
