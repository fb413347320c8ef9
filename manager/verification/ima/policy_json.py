"""A runtime policy's JSON, member by member: it may hold 100,000 digests, and its reader has other things to do.

What is read is what `json.loads` reads. A key that is repeated is an error: a document must not show one value to its
author's tools and another to this reader.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

Member = tuple[str, str, Any]
"""The section that it is in ("" for the document itself), its key, its value."""
_SPACE = re.compile(r"[ \t\n\r]*")


def members(raw: bytes, sections: Collection[str]) -> Iterator[Member]:
    """The members of a document, and those of its `sections` one by one. Raises ValueError, RecursionError.

    A section comes first as an empty member of the document, then with its own members.
    """
    text = _Text(raw.decode())
    for key in text.names():
        if key in sections and text.next() == "{":
            yield "", key, {}
            for name in text.names():
                yield key, name, text.value()
        else:
            yield "", key, text.value()
    if text.next():
        raise ValueError("more text after the document")


class _Text:
    """A JSON text, and how far it has been read."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self._decode = json.JSONDecoder(object_pairs_hook=_unique).raw_decode

    def next(self) -> str:
        """The next character that is no white space, not yet read; empty at the end."""
        space = _SPACE.match(self._text, self._at)
        self._at = space.end() if space else self._at
        return self._text[self._at : self._at + 1]

    def value(self) -> Any:
        """Read one value."""
        self.next()
        value, self._at = self._decode(self._text, self._at)
        return value

    def names(self) -> Iterator[str]:
        """Read an object: the name of each member, whose value has to be read before the next."""
        self._expect("{")
        known = set[str]()
        while self.next() != "}" or known:
            key = self.value()
            if not isinstance(key, str):
                raise ValueError("a key that is no string")
            if key in known:
                raise ValueError("a key is repeated")
            known.add(key)
            self._expect(":")
            yield key
            if self.next() != ",":
                break
            self._expect(",")
        self._expect("}")

    def _expect(self, sign: str) -> None:
        if self.next() != sign:
            raise ValueError(f"expected {sign} at character {self._at}")
        self._at += 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise ValueError("a key is repeated")
    return keys
