"""How large a value of a model can be: what a decoder may spend on bytes that nobody has vouched for yet.

Derived from the model's own field limits, so that a limit is written once, at its field. A field without a limit has no
bounds: `bounds_of` raises `Unbounded`, and tests/schemas holds that no model that meets foreign bytes does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel

INTEGER = 9
"""Bytes of the longest integer or float in msgpack."""
UTF8 = 4
"""Bytes of the longest character."""
_NOT_ASCII = re.compile(r"\[\^|\\[dDwWsSpP]|[^\x00-\x7f]")
"""What can make a pattern match a character outside ASCII, beside a dot outside a class."""
_CLASS = re.compile(r"\[(?:\\.|[^\]\\])*\]|\\.")
_SAME = ("function-after", "function-before", "default", "nullable")
_FIXED: Mapping[str, int] = {"bool": 1, "none": 1, "int": INTEGER, "float": INTEGER}
_TIME = 64
"""Characters of the longest time in JSON."""


class Unbounded(TypeError):
    """A model has a field without a maximum."""


@dataclass(frozen=True)
class Bounds:
    """The most that the encoding (msgpack) of a value takes. Sizes are bytes.

    `items` counts every value within it and every key; `keys` and `elements` are those of its widest map and list,
    `text` and `data` its longest string and byte string.
    """

    size: int
    items: int = 1
    keys: int = 0
    elements: int = 0
    text: int = 0
    data: int = 0

    def times(self, count: int) -> Bounds:
        """Of as many such values in a row."""
        return Bounds(self.size * count, self.items * count, self.keys, self.elements, self.text, self.data)

    def and_(self, other: Bounds) -> Bounds:
        """Of this value followed by another."""
        return _both(self, other, self.size + other.size, self.items + other.items)

    def or_(self, other: Bounds) -> Bounds:
        """Of either."""
        return _both(self, other, max(self.size, other.size), max(self.items, other.items))


NOTHING = Bounds(0, 0)


def _both(left: Bounds, right: Bounds, size: int, items: int) -> Bounds:
    return Bounds(
        size,
        items,
        max(left.keys, right.keys),
        max(left.elements, right.elements),
        max(left.text, right.text),
        max(left.data, right.data),
    )


@cache
def bounds_of(kind: type[BaseModel]) -> Bounds:
    """The bounds of a model. Raises Unbounded, with the path of the field that has no maximum."""
    return _of(kind.__pydantic_core_schema__, kind.__name__, {})


def _of(schema: Any, path: str, named: Mapping[str, Any]) -> Bounds:
    kind = schema["type"]
    if kind == "definitions":
        return _of(schema["schema"], path, {part["ref"]: part for part in schema["definitions"]})
    if kind == "definition-ref":
        found = named.get(schema["schema_ref"])
        if found is None:
            raise Unbounded(f"{path}: a value that may hold itself")
        others = {ref: part for ref, part in named.items() if part is not found}
        return _of(found, path, others)
    if "maximum" in schema.get("metadata", {}):  # a field whose schema says nothing of its size (base.Secret)
        return _string(schema["metadata"]["maximum"], 1, "data")
    if kind in _FIXED:
        if kind == "int" and not _both_ends(schema):
            raise Unbounded(f"{path}: an integer without both limits")
        return Bounds(_FIXED[kind])
    if kind == "str":
        return _string(_maximum(schema, path), 1 if _ascii(schema.get("pattern")) else UTF8, "text")
    if kind == "datetime":
        return _string(_TIME, 1, "text")
    if kind == "bytes":
        return _string(_maximum(schema, path), 1, "data")
    if kind in _SAME:
        return _of(schema["schema"], path, named)
    if kind == "literal":
        return _either([_string(len(str(value).encode()), 1, "text") for value in schema["expected"]])
    if kind in ("union", "tagged-union"):
        choices = schema["choices"].values() if kind == "tagged-union" else schema["choices"]
        return _either([_of(c[0] if isinstance(c, tuple) else c, path, named) for c in choices])
    return _container(schema, path, named)


def _container(schema: Any, path: str, named: Mapping[str, Any]) -> Bounds:
    match schema["type"]:
        case "model":
            inner = schema["schema"]
            if schema.get("root_model"):
                return _of(inner, path, named)
            return _fields(inner if "fields" in inner else inner["schema"], path, named)
        case "list":
            count = _maximum(schema, path)
            inside = _of(schema["items_schema"], f"{path}[]", named).times(count)
            return inside.and_(Bounds(5, elements=count))
        case "tuple":
            count = _maximum(schema, path)
            inside = _of(schema["items_schema"][0], f"{path}[]", named).times(count)
            return inside.and_(Bounds(5, elements=count))
        case "dict":
            count = _maximum(schema, path)
            pair = _of(schema["keys_schema"], f"{path} (key)", named).and_(
                _of(schema["values_schema"], f"{path} (value)", named)
            )
            return pair.times(count).and_(Bounds(5, keys=count))
        case other:
            raise Unbounded(f"{path}: a field of type {other}")


def _fields(schema: Any, path: str, named: Mapping[str, Any]) -> Bounds:
    found = Bounds(5, keys=len(schema["fields"]))
    for name, field in schema["fields"].items():
        key = _string(len(field.get("validation_alias", name)), 1, "text")
        found = found.and_(key).and_(_of(field["schema"], f"{path}.{name}", named))
    return found


def _string(length: int, width: int, kind: str) -> Bounds:
    size = length * width
    return Bounds(size + 5, text=size) if kind == "text" else Bounds(size + 5, data=size)


def _either(choices: list[Bounds]) -> Bounds:
    found = NOTHING
    for choice in choices:
        found = found.or_(choice)
    return found


def _maximum(schema: Any, path: str) -> int:
    found = schema.get("max_length")
    if found is None:
        raise Unbounded(f"{path}: {schema['type']} without a maximum")
    return int(found)


def _both_ends(schema: Any) -> bool:
    return bool(schema.keys() & {"ge", "gt"} and schema.keys() & {"le", "lt"})


def _ascii(pattern: str | None) -> bool:
    """Whether a pattern matches ASCII only."""
    return pattern is not None and not _NOT_ASCII.search(pattern) and "." not in _CLASS.sub("", pattern)
