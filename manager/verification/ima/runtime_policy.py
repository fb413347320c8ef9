"""Keylime's runtime policy: which digests, keys and buffers are known good. Read, learned, checked.

Source of the format: Keylime's documentation, "Runtime Integrity Monitoring", and its keylime/ima/ima.py (version 1).
Two things are stricter here. Patterns are matched in linear time (RE2), so one with a back-reference or a look-around
is refused. A key that the kernel lists as loaded is judged by its digest, but only `verification-keys` verify file
signatures: what vouches for files comes from the policy alone, never from the host.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

import re2
from pydantic import Field, StringConstraints

from attestgate.manager.verification.ima.cache import VerdictCache
from attestgate.manager.verification.ima.keyrings import Keys, is_key, read_keys, signed
from attestgate.manager.verification.ima.measurement_list import ListEntry
from attestgate.manager.verification.ima.policy_dsse import PolicyKey, opened
from attestgate.schemas.base import Count, Label, Model, Refusal, parse_json
from attestgate.schemas.host_policy import Bank

MAX_POLICY = 64 * 1024 * 1024
"""Largest runtime policy read, in bytes."""

BOOT_AGGREGATE = b"boot_aggregate"
"""The name of the entry that holds the hash of PCR 0-9."""

Digest = Annotated[str, StringConstraints(pattern=r"^(?:[0-9a-f]{2}){20,64}$", max_length=128)]
Name = Annotated[str, StringConstraints(max_length=4096)]
"""A path, a keyring, a buffer, a pattern."""
MAX_NAMES = 1_000_000
Digests = Annotated[
    dict[Name, Annotated[list[Digest], Field(min_length=1, max_length=MAX_NAMES)]], Field(max_length=MAX_NAMES)
]


class Meta(Model):
    """Where the policy came from: Keylime's `meta`."""

    version: Literal[1]
    generator: Annotated[int, Field(ge=0, le=3)] = 0
    timestamp: Label | None = None


class ImaSection(Model):
    """Keylime's `ima`. The kernel writes SHA-1 template hashes; device-mapper policies are not supported."""

    ignored_keyrings: Annotated[list[Name], Field(max_length=1024)] = []
    log_hash_alg: Literal["sha1"] = "sha1"
    dm_policy: None = None


class RuntimePolicy(Model):
    """Keylime's runtime policy document, version 1."""

    meta: Meta
    release: Count = 0
    digests: Digests
    excludes: Annotated[list[Name], Field(max_length=MAX_NAMES)] = []
    keyrings: Digests = {}
    ima: ImaSection = ImaSection()
    ima_buf: Annotated[Digests, Field(alias="ima-buf")] = {}
    verification_keys: Annotated[str, Field(alias="verification-keys", max_length=1024 * 1024)] = ""

    def text(self) -> str:
        """The document as Keylime reads it."""
        document = self.model_dump(mode="json", by_alias=True)
        if self.meta.timestamp is None:
            del document["meta"]["timestamp"]
        return json.dumps(document, indent=1) + "\n"


class Pattern(Protocol):
    """A compiled RE2 pattern."""

    def match(self, text: bytes) -> Any:
        """A match at the start of `text`, or None."""
        ...


Known = dict[bytes, frozenset[bytes]]
"""Digests by path, keyring or buffer name."""

Judgement = Literal["known", "excluded", "unknown"]

_HASHED = frozenset({"sha1", "sha224", "sha256", "sha384", "sha512"})
"""Algorithms under which a measured buffer's digest is computed again."""


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A runtime policy ready to judge with. `sha256` names it; its memory goes when it goes."""

    sha256: str
    digests: Known
    keyrings: Known
    buffers: Known
    ignored_keyrings: frozenset[bytes]
    excludes: Pattern | None
    keys: Keys
    _memories: dict[Bank, VerdictCache] = field(default_factory=dict)

    def memory(self, bank: Bank) -> VerdictCache:
        """The memory of entries judged good while PCR 10 of this bank was replayed."""
        return self._memories.setdefault(bank, VerdictCache())

    def judge(self, entry: ListEntry) -> Judgement:
        """An entry that is no violation: by digest under its path, then by exclude pattern, then by signature."""
        if entry.buffer is not None:
            return self._judge_buffer(entry, entry.buffer)
        if entry.digest in self.digests.get(entry.path, ()):
            return "known"
        if self.excluded(entry.path):
            return "excluded"
        # A version-2 signature does not say of which kind its digest is: taken for an fs-verity digest too, it could
        # vouch for a file that nobody signed.
        by_signature = not entry.verity and signed(self.keys, entry.signature or b"", entry.algorithm, entry.digest)
        return "known" if by_signature else "unknown"

    def _judge_buffer(self, entry: ListEntry, buffer: bytes) -> Judgement:
        """A key that was loaded by its keyring's digests, any other buffer by its name's, as Keylime does."""
        # The template hash covers digest and buffer without saying that they belong together: stops a known digest
        # beside another buffer.
        if entry.algorithm not in _HASHED or hashlib.new(entry.algorithm, buffer).digest() != entry.digest:
            return "unknown"
        a_key = is_key(buffer)
        if entry.digest in (self.keyrings if a_key else self.buffers).get(entry.path, ()):
            return "known"
        # Only a key is excused by an ignored keyring, not any buffer that bears a keyring's name.
        ignored = a_key and not self.ignored_keyrings.isdisjoint({b"*", entry.path})
        return "excluded" if ignored or self.excluded(entry.path) else "unknown"

    def excluded(self, path: bytes) -> bool:
        """True if an exclude pattern matches at the start of the path."""
        return self.excludes is not None and self.excludes.match(path) is not None

    def nearest(self, path: bytes, size: int) -> str | None:
        """A digest known for the same path, of `size` bytes if there is one, in hexadecimal."""
        known = sorted(self.digests.get(path, ()), key=lambda digest: (len(digest) != size, digest))
        return known[0].hex() if known else None


def read(raw: bytes, *, source: str = "runtime policy", authors: Sequence[PolicyKey] = ()) -> RuntimePolicy:
    """The document itself, not made ready to judge with. Raises Refusal (`file.*`, `policy.*`)."""
    if len(raw) > MAX_POLICY:
        raise _refused("policy.size", source, f"at most {MAX_POLICY} bytes", f"{len(raw)} bytes", "split the policy")
    return parse_json(RuntimePolicy, opened(raw, authors, source=source), source=source, limit=MAX_POLICY)


def load(text: str | bytes, *, source: str = "runtime policy", authors: Sequence[PolicyKey] = ()) -> LoadedPolicy:
    """Read a runtime policy. Raises Refusal: `file.*` for its form, `policy.*` for what it says.

    If `authors` are given it must be in a DSSE envelope that one of them signed. Its name is the hash of what was read,
    envelope and all.
    """
    raw = text.encode() if isinstance(text, str) else text
    policy = read(raw, source=source, authors=authors)
    keys = read_keys(policy.verification_keys, source=source)
    if not policy.digests and not keys:
        raise _refused(
            "policy.empty",
            f"{source}: digests",
            "at least one known digest or key",
            "neither",
            "learn a policy from a known-good host",
        )
    return LoadedPolicy(
        sha256=hashlib.sha256(raw).hexdigest(),
        digests=_known(policy.digests),
        keyrings=_known(policy.keyrings),
        buffers=_known(policy.ima_buf),
        ignored_keyrings=frozenset(_path(name) for name in policy.ima.ignored_keyrings),
        excludes=_patterns(policy.excludes, raw, source),
        keys=keys,
    )


def learn(
    lists: Iterable[Iterable[ListEntry]],
    *,
    files: Iterable[tuple[bytes, bytes]] = (),
    add_to: RuntimePolicy | None = None,
) -> tuple[RuntimePolicy, list[bytes]]:
    """A policy that knows every entry of the lists, on top of `add_to`; and the paths that it cannot hold.

    `files` are paths and digests from elsewhere, a directory tree for example. Violations teach nothing (nothing
    vouches for their data), nor does a file's digest of zeros (the kernel could not read it). A path that is not UTF-8
    has no place in JSON: it is returned, to be excluded by a pattern or renamed.
    """
    base = add_to or RuntimePolicy.model_validate({"meta": {"version": 1}, "digests": {}})
    learned = {
        name: {path: list(known) for path, known in getattr(base, name).items()}
        for name in ("digests", "keyrings", "ima_buf")
    }
    left_out: list[bytes] = []

    def add(section: str, path: bytes, digest: bytes) -> None:
        try:
            known = learned[section].setdefault(path.decode(), [])
        except UnicodeDecodeError:
            left_out.append(path)
            return
        if digest.hex() not in known:
            known.append(digest.hex())

    for entry in (entry for measured in lists for entry in measured):
        if not entry.violation and (any(entry.digest) or entry.path == BOOT_AGGREGATE):
            section = "digests" if entry.buffer is None else "keyrings" if is_key(entry.buffer) else "ima_buf"
            add(section, entry.path, entry.digest)
    for path, digest in files:
        add("digests", path, digest)
    return base.model_copy(update=learned), left_out


def _known(digests: Digests) -> Known:
    return {_path(name): frozenset(map(bytes.fromhex, values)) for name, values in digests.items()}


def _path(name: str) -> bytes:
    return name.encode()


def compiled(pattern: str) -> Pattern:
    """One pattern in linear time, on bytes. Raises ValueError in RE2's words."""
    options = re2.Options()
    options.log_errors = False
    try:
        made: Pattern = re2.compile(pattern.encode(), options)
    except re2.error as error:
        said = error.args[0] if error.args else b"not a pattern"
        raise ValueError(said.decode(errors="replace") if isinstance(said, bytes) else str(said)) from None
    return made


def _patterns(excludes: list[str], raw: bytes, source: str) -> Pattern | None:
    """All patterns as one alternation; the one that RE2 refuses is named by its line."""
    for number, pattern in enumerate(excludes):
        try:
            compiled(pattern)
        except ValueError as error:
            raise _bad_pattern(f"{source}, line {line_of(pattern, raw)}: excludes[{number}]", pattern, error) from None
    if not excludes:
        return None
    try:
        return compiled("|".join(f"(?:{pattern})" for pattern in excludes))
    except ValueError as error:
        raise _bad_pattern(f"{source}: excludes", f"{len(excludes)} patterns together", error) from None


def _bad_pattern(field: str, pattern: str, error: ValueError) -> Refusal:
    expected = "a pattern that RE2 takes (no back-references, no look-around)"
    return _refused("policy.pattern", field, expected, f"{pattern}: {error}", "rewrite the pattern")


def line_of(text: str, raw: bytes) -> int:
    """The line in a JSON document where a string first occurs, from 1 (0 if it is written in another way)."""
    for written in (json.dumps(text), json.dumps(text, ensure_ascii=False)):
        place = raw.find(written.encode())
        if place >= 0:
            return raw.count(b"\n", 0, place) + 1
    return 0


def _refused(code: str, field: str, expected: str, found: str, action: str) -> Refusal:
    return Refusal.because(code, field, expected=expected, found=found, action=action)
