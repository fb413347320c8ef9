"""The base of every model: strict models, secrets that are never shown, reasons for a refusal."""

from __future__ import annotations

import hmac
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Self, TypeVar

import msgpack
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    SerializationInfo,
    StringConstraints,
    ValidationError,
)
from pydantic_core import PydanticCustomError, core_schema

from attestgate.schemas.bounds import Bounds, bounds_of

PIECE = 64 * 1024
MAX_MESSAGE = 8 * 1024 * 1024
"""Largest payload on the bus, in bytes (nats-server's `max_payload` is set to it)."""

MAX_DOCUMENT = 16 * 1024 * 1024
"""Largest JSON document that is read where its reader names no other limit, in bytes."""

Id = Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$", max_length=63)]
"""Name of a host, application, gateway or operator: a DNS label, so it is safe in subjects, paths and URIs."""

Hex = Annotated[str, StringConstraints(pattern=r"^(?:[0-9a-f]{2})*$", max_length=128)]
"""At most 64 bytes in a JSON document: lower-case hexadecimal."""

Hex32 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$", max_length=64)]
SessionId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$", max_length=32)]
"""16 bytes in hexadecimal: of a session, a hash of the hello that opened it (manager.sessions.handshake.session_id)."""

Bytes32 = Annotated[bytes, Field(min_length=32, max_length=32)]
Bytes64 = Annotated[bytes, Field(min_length=64, max_length=64)]
MAX_TIME = 253_402_300_799
"""The last second of the year 9999, and of datetime."""
Seconds = Annotated[int, Field(ge=0, le=MAX_TIME)]
"""Unix time, or a span, in whole seconds."""
Instant = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""A Unix second of any age, as a verdict repeats it."""
Count = Annotated[int, Field(ge=0, lt=2**63)]
Label = Annotated[str, StringConstraints(max_length=64)]
"""A short text: a name, a state, a version."""
Text = Annotated[str, StringConstraints(max_length=300)]
"""A line of text."""


def _fail_fast(schema: Any) -> None:
    """Make every list and map of a schema stop at its first wrong item."""
    if isinstance(schema, dict):
        if schema.get("type") in ("list", "tuple", "set", "frozenset", "dict"):
            schema["fail_fast"] = True
        for key, part in schema.items():
            if key not in ("metadata", "serialization", "cls", "default"):
                _fail_fast(part)
    elif isinstance(schema, list):
        for part in schema:
            _fail_fast(part)


class FirstFault(BaseModel):
    """A model whose lists and maps are read up to their first wrong item."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        # Else pydantic builds one error for each wrong item: half a million of them from one MiB.
        schema = handler(source)
        _fail_fast(schema)
        return schema


class Model(FirstFault):
    """A value at a boundary: strict types, unknown keys are errors, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, ser_json_bytes="hex", val_json_bytes="hex")


class Secret:
    """Secret bytes that no repr, str, log or JSON shows. `reveal()` is the only access, and `pack` for the wire."""

    __slots__ = ("_value",)
    LONGEST = 4096
    """Longest secret that a message may hold, in bytes: a private key in PEM."""

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
            if isinstance(value, bytes) and len(value) <= cls.LONGEST:
                return cls(value)
            raise PydanticCustomError("secret", "secret bytes expected")

        def unwrap(secret: Secret, info: SerializationInfo) -> bytes:
            if info.mode != "python":
                raise TypeError("a secret cannot be written as JSON")
            return secret.reveal()

        return core_schema.no_info_plain_validator_function(
            wrap,
            metadata={"maximum": cls.LONGEST},
            serialization=core_schema.plain_serializer_function_ser_schema(unwrap, info_arg=True),
        )


SHOWN = 300
"""Longest text of a reason, in characters; a longer one is cut."""


def shown(value: object) -> str:
    """A value as a reason shows it: bytes in hexadecimal, control characters escaped, at most `SHOWN` characters."""
    # Cut before it is formatted too: what is shown may be a stranger's, and of any size.
    try:
        text = value[:SHOWN].hex() if isinstance(value, bytes) else str(value)
    except (ValueError, RecursionError):  # an integer of too many digits, a list that is too deep
        text = f"{type(value).__name__} too large to show"
    text = printable(text[: SHOWN + 1])
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def printable(text: str) -> str:
    """A text as one line, control characters escaped: a terminal would obey them, whoever sent them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _cut(text: object) -> object:
    """A text of a reason as it may be sent: not too long, and in UTF-8 (a path may have bytes that are none)."""
    if not isinstance(text, str):
        return text
    text = text[: SHOWN + 1].encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


ReasonText = Annotated[str, StringConstraints(max_length=SHOWN), BeforeValidator(_cut)]
MAX_REASONS = 16
"""Most reasons in one message."""


class Reason(Model):
    """Why something was refused, in terms a person can act on. Never holds a secret.

    `code` is stable and dotted (`sgx.mrenclave`); `field` names what was checked; `action` says what to do.
    """

    code: ReasonText
    field: ReasonText
    expected: ReasonText
    found: ReasonText
    action: ReasonText

    def sentence(self) -> str:
        """One readable line."""
        return f"{self.code}: {self.field}: expected {self.expected}, found {self.found}; {self.action}"


def _first_reasons(reasons: object) -> object:
    return reasons[:MAX_REASONS] if isinstance(reasons, list) else reasons


Reasons = Annotated[list[Reason], Field(max_length=MAX_REASONS), BeforeValidator(_first_reasons)]
"""Of more than `MAX_REASONS`, the first."""


class Refusal(Exception):
    """A check failed. Carries the reasons found, at most `MAX_REASONS`; it is a result, not a crash."""

    def __init__(self, *reasons: Reason) -> None:
        if not reasons:
            raise ValueError("a refusal without a reason")
        reasons = reasons[:MAX_REASONS]
        super().__init__("; ".join(reason.sentence() for reason in reasons))
        self.reasons = reasons

    @classmethod
    def because(cls, code: str, field: str, *, expected: object, found: object, action: str) -> Self:
        """A refusal with one reason; values are shown by `shown`."""
        return cls(Reason(code=code, field=field, expected=shown(expected), found=shown(found), action=action))


M = TypeVar("M", bound=BaseModel)


def pack(model: BaseModel) -> bytes:
    """A model as msgpack, for the wire: a map of its fields in the order of the class."""
    return bytes(msgpack.packb(model.model_dump(mode="python"), use_bin_type=True))


def unpack(kind: type[M], data: bytes, *, limit: int = MAX_MESSAGE) -> M:
    """Read a model from msgpack. Raises Refusal (`message.*`) for anything that is not exactly one `kind`.

    The work and the memory are bounded by what the largest `kind` needs, whatever the bytes are (`schemas.bounds`).
    """
    bounds = bounds_of(kind)
    check_size(kind.__name__, data, min(limit, bounds.size))
    try:
        # A repeated key: the last one counts. Harmless, since hashes and signatures are over the bytes and nobody else
        # reads them; JSON documents, which people and other programs read, are refused for it (`parse_json`).
        value = decoded(data, bounds)
    except Exception as error:  # noqa: BLE001  see `decoded`
        raise _no_value(kind.__name__, error) from None
    return _valid(kind, value)


def unpack_own(kind: type[M], data: bytes) -> M:
    """Read a model from bytes that this deployment's managers encrypted: not a stranger's, so `kind` needs no limits.

    Raises Refusal as `unpack` does.
    """
    try:
        value = msgpack.unpackb(data, raw=False, strict_map_key=True)
    except Exception as error:  # noqa: BLE001  see `decoded`
        raise _no_value(kind.__name__, error) from None
    return _valid(kind, value)


def check_size(what: str, data: bytes, limit: int) -> None:
    """Raises Refusal `message.size` for more than `limit` bytes: the first check on anything received."""
    if len(data) > limit:
        raise Refusal.because(
            "message.size",
            what,
            expected=f"at most {limit} bytes",
            found=f"{len(data)} bytes",
            action="send less; if an agent of this version sent it, report it",
        )


def decoded(data: bytes, bounds: Bounds) -> Any:
    """One msgpack value within bounds. Raises ValueError, TypeError, UnicodeError, and what else msgpack raises."""
    return msgpack.unpackb(data, raw=False, strict_map_key=True, **_limits(bounds))


def _no_value(name: str, error: Exception) -> Refusal:
    return Refusal.because(
        "message.encoding",
        name,
        expected="one msgpack value, no larger than it may be",
        found=type(error).__name__,
        action="check the sender's version",
    )


def _limits(bounds: Bounds) -> dict[str, Any]:
    """What the decoder may build.

    Its own limits hold for each container before it is built; the hooks, called for each one that is complete, hold for
    all of them together: containers in containers multiply.
    """
    left = bounds.items - 1  # the outermost value

    def spend(count: int) -> None:
        nonlocal left
        left -= count
        if left < 0:
            raise ValueError("more values than the largest message has")

    def complete_list(items: list[Any]) -> list[Any]:
        spend(len(items))
        return items

    def complete_map(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        spend(2 * len(pairs))
        return dict(pairs)

    return {
        "max_array_len": bounds.elements,
        "max_map_len": bounds.keys,
        "max_str_len": bounds.text,
        "max_bin_len": bounds.data,
        "max_ext_len": 0,
        "list_hook": complete_list,
        "object_pairs_hook": complete_map,
    }


def _valid(kind: type[M], value: Any) -> M:
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
    """The dotted path of the first problem in a validation error; keys that a stranger chose are cut."""
    return shown(".".join(shown(part) for part in first_problem(error)["loc"]) or "(whole)")


def first_message(error: ValidationError) -> str:
    """The first problem in a validation error, without the input (which may be secret)."""
    return shown(first_problem(error)["msg"])


def first_problem(error: ValidationError) -> Any:
    """The first problem in a validation error, as pydantic describes it."""
    return error.errors(include_input=False, include_url=False, include_context=False)[0]


def read_at_most(path: Path, limit: int) -> bytes:
    """A file's bytes to its end, or `limit` + 1 of them. A pipe in its place does not block. Raises OSError."""
    with open(path, "rb", opener=_not_waiting) as file:
        return _in_pieces(file, limit)


def _in_pieces(file: BinaryIO, limit: int) -> bytes:
    """One read of so many bytes would take their memory before it knows how many there are."""
    pieces = bytearray()
    while len(pieces) <= limit and (piece := file.read(min(limit + 1 - len(pieces), PIECE))):
        pieces += piece
    return bytes(pieces)


def _not_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_json(kind: type[M], path: Path, *, limit: int = MAX_DOCUMENT) -> M:
    """Read a JSON document. Raises Refusal (`file.*`) that names the file and the key."""
    try:
        with path.open("rb") as file:
            text = _in_pieces(file, limit).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        found = getattr(error, "strerror", None) or type(error).__name__
        raise Refusal.because(
            "file.read",
            str(path),
            expected="a readable text file",
            found=found,
            action="check the path and its permissions",
        ) from None
    return parse_json(kind, text, source=str(path), limit=limit)


def parse_json(kind: type[M], text: str | bytes, *, source: str, limit: int = MAX_DOCUMENT) -> M:
    """Read a JSON document from text; `source` names it in the refusal."""
    if len(text) > limit:
        raise Refusal.because(
            "file.size", source, expected=f"at most {limit} bytes", found=f"{len(text)} bytes", action="shorten it"
        )
    try:
        # Stops a document that shows one value to its author's tools and another to this reader.
        value = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise not_json(error, source) from None
    # Before pydantic builds an error for each of them.
    if isinstance(value, dict) and kind.model_config.get("extra") == "forbid":
        fields = {field.alias or name for name, field in kind.model_fields.items()}
        unknown = next((key for key in value if key not in fields), None)
        if unknown is not None:
            raise _wrong_field(f"{source}: {shown(unknown)}", kind.__name__, "Extra inputs are not permitted")
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise not_valid(error, f"{source}: {where(error)}", kind.__name__) from None


def not_valid(error: ValidationError, field: str, what: str) -> Refusal:
    """The refusal of a document whose fields are not those of `what`."""
    return _wrong_field(field, what, first_message(error))


def _wrong_field(field: str, what: str, found: str) -> Refusal:
    return Refusal.because(
        "file.fields", field, expected=f"a valid {what}", found=found, action="correct the key in that file"
    )


def not_json(error: Exception, source: str) -> Refusal:
    """The refusal of a text that is no JSON document."""
    return Refusal.because(
        "file.json",
        source,
        expected="a JSON document without repeated keys",
        found=re.sub(r"\s+", " ", shown(error)),
        action="correct the file",
    )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise ValueError("a key is repeated")
    return keys
