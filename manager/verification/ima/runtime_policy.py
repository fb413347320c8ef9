"""Keylime's runtime policy: which digests, keys and buffers are known good. Read, learned, checked.

Source of the format: Keylime's documentation, "Runtime Integrity Monitoring", and its keylime/ima/ima.py (version 1).
Two things are stricter here. Patterns are matched in linear time (RE2), so one with a back-reference or a look-around
is refused. A key that the kernel lists as loaded is judged by its digest, but only `verification-keys` verify file
signatures: what vouches for files comes from the policy alone, never from the host.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

import re2
from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from attestgate.manager.verification.ima.cache import VerdictCache
from attestgate.manager.verification.ima.keyrings import Keys, is_key, read_keys_in_slices, signed
from attestgate.manager.verification.ima.measurement_list import ListEntry
from attestgate.manager.verification.ima.policy_dsse import PolicyKey, opened, opened_in_slices
from attestgate.manager.verification.ima.policy_json import members
from attestgate.manager.verification.ima.slices import finish
from attestgate.schemas.base import Count, Label, Model, Refusal, not_json, not_valid, parse_json, where
from attestgate.schemas.host_policy import Bank

MAX_POLICY = 64 * 1024 * 1024
"""Largest runtime policy read, in bytes."""

MAX_REST = 1024 * 1024
"""Of which all but the digests: patterns and keys."""

DIGESTS_A_SLICE = 400
"""Checked at a time while a policy is read in slices."""

BOOT_AGGREGATE = b"boot_aggregate"
"""The name of the entry that holds the hash of PCR 0-9."""

Digest = Annotated[str, StringConstraints(pattern=r"^(?:[0-9a-f]{2}){20,64}$", max_length=128)]
Name = Annotated[str, StringConstraints(max_length=4096)]
"""A path, a keyring, a buffer, a pattern."""
MAX_NAMES = 1_000_000
Digests = Annotated[
    dict[Name, Annotated[list[Digest], Field(min_length=1, max_length=MAX_NAMES)]], Field(max_length=MAX_NAMES)
]
_DIGESTS = TypeAdapter(Digests)


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

    @property
    def programsize(self) -> int:
        """Its length in RE2's instructions."""
        ...

    def match(self, text: bytes) -> Any:
        """A match at the start of `text`, or None."""
        ...


PATTERN_MEMORY = 1024 * 1024
"""Bytes that RE2 may use for a pattern: about 80,000 instructions, which take it some 15 ms to compile."""
PROGRAM, MAX_PROGRAM = 8192, 320_000
"""Instructions that patterns are compiled together up to; and of all patterns, since each entry is matched by all."""

Known = dict[bytes, frozenset[bytes]]
"""Digests by path, keyring or buffer name."""

Judgement = Literal["known", "excluded", "unknown"]

_HASHED = frozenset({"sha1", "sha224", "sha256", "sha384", "sha512"})
"""Algorithms under which a measured buffer's digest is computed again."""

_UNLIKE = (b"/usr/bin/x", b"/etc/x", b"/home/x", b"/tmp/x", b"/var/x", b"/init", b"/0", b"/\x01")
"""Paths with nothing in common but that they are absolute: an exclude pattern that matches all of them matches any."""


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A runtime policy ready to judge with. `sha256` names it; its memory goes when it goes."""

    sha256: str
    digests: Known
    keyrings: Known
    buffers: Known
    ignored_keyrings: frozenset[bytes]
    excludes: tuple[Pattern, ...]
    """Alternations of the exclude patterns: several of them where there are many patterns."""
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
        return any(some.match(path) is not None for some in self.excludes)

    def nearest(self, path: bytes, size: int) -> str | None:
        """A digest known for the same path, of `size` bytes if there is one, in hexadecimal."""
        known = sorted(self.digests.get(path, ()), key=lambda digest: (len(digest) != size, digest))
        return known[0].hex() if known else None


def read(raw: bytes, *, source: str = "runtime policy", authors: Sequence[PolicyKey] = ()) -> RuntimePolicy:
    """The document itself, not made ready to judge with. Raises Refusal (`file.*`, `policy.*`)."""
    _check_size(raw, source)
    return parse_json(RuntimePolicy, opened(raw, authors, source=source), source=source, limit=MAX_POLICY)


def load(text: str | bytes, *, source: str = "runtime policy", authors: Sequence[PolicyKey] = ()) -> LoadedPolicy:
    """Read a runtime policy. Raises Refusal: `file.*` for its form, `policy.*` for what it says.

    If `authors` are given it must be in a DSSE envelope that one of them signed. Its name is the hash of what was read,
    envelope and all.
    """
    raw = text.encode() if isinstance(text, str) else text
    return finish(load_in_slices(raw, source=source, authors=authors))


def load_in_slices(
    raw: bytes, *, source: str = "runtime policy", authors: Sequence[PolicyKey] = ()
) -> Generator[None, None, LoadedPolicy]:
    """The same, as a generator that yields after each slice."""
    _check_size(raw, source)
    name = hashlib.sha256(raw).hexdigest()
    yield
    policy = yield from opened_in_slices(raw, authors, source=source)
    known: dict[str, Known] = {"digests": {}, "keyrings": {}, "ima-buf": {}}
    rest = yield from _read_sections(policy, known, source)
    keys = yield from read_keys_in_slices(rest.verification_keys, source=source)
    if not known["digests"] and not keys:
        raise _refused(
            "policy.empty",
            f"{source}: digests",
            "at least one known digest or key",
            "neither",
            "learn a policy from a known-good host",
        )
    excludes = yield from _patterns(rest.excludes, policy, source)
    return LoadedPolicy(
        sha256=name,
        digests=known["digests"],
        keyrings=known["keyrings"],
        buffers=known["ima-buf"],
        ignored_keyrings=frozenset(_path(name) for name in rest.ima.ignored_keyrings),
        excludes=excludes,
        keys=keys,
    )


def _check_size(raw: bytes, source: str) -> None:
    if len(raw) > MAX_POLICY:
        raise _refused("policy.size", source, f"at most {MAX_POLICY} bytes", f"{len(raw)} bytes", "split the policy")


def _read_sections(raw: bytes, known: dict[str, Known], source: str) -> Generator[None, None, RuntimePolicy]:
    """Read the digests into `known`, by section. Returns the policy without them."""
    rest: dict[str, Any] = {}
    part: dict[str, Any] = {}
    within, count = "", 0
    try:
        for section, key, value in members(raw, known):
            if part and (section != within or count >= DIGESTS_A_SLICE):
                yield from _check_digests(part, known[within], f"{source}: {within}")
                part, count = {}, 0
            within = section
            if section:
                part[key] = value
                count += len(value) if isinstance(value, list) else 1
            else:
                rest[key] = value
        if part:
            yield from _check_digests(part, known[within], f"{source}: {within}")
        text = json.dumps(rest)
    except (ValueError, RecursionError) as error:
        raise not_json(error, source) from None
    if len(text) > MAX_REST:
        found = f"{len(text)} bytes"
        raise _refused("policy.size", f"{source}: all but digests", f"at most {MAX_REST} bytes", found, "use fewer")
    return parse_json(RuntimePolicy, text, source=source)


def _check_digests(part: dict[str, Any], known: Known, field: str) -> Generator[None, None, None]:
    """Some digests, which are known from now on if they are well-formed."""
    yield
    try:
        digests = _DIGESTS.validate_python(part, strict=True)
    except ValidationError as error:
        raise not_valid(error, f"{field}.{where(error)}", "list of digests") from None
    yield
    known |= _known(digests)


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
    options.max_mem = PATTERN_MEMORY
    try:
        made: Pattern = re2.compile(pattern.encode(), options)
    except re2.error as error:
        said = error.args[0] if error.args else b"not a pattern"
        raise ValueError(said.decode(errors="replace") if isinstance(said, bytes) else str(said)) from None
    return made


def _patterns(excludes: list[str], raw: bytes, source: str) -> Generator[None, None, tuple[Pattern, ...]]:
    """All patterns as few alternations; the one that RE2 refuses is named by its line.

    One alternation of all would take RE2 seconds where they are many, with nothing else done in between.
    """
    groups: list[list[str]] = []
    size = total = 0
    for number, pattern in enumerate(excludes):
        field = f"{source}, line {line_of(pattern, raw)}: excludes[{number}]"
        try:
            one = compiled(pattern)
        except ValueError as error:
            raise _bad_pattern(field, pattern, error) from None
        if all(one.match(path) is not None for path in _UNLIKE):
            expected, found = "a pattern that matches some paths", f"{pattern!r}, which matches every path"
            action = "narrow it, or take it out: every program would be accepted unseen"
            raise _refused("policy.pattern", field, expected, found, action)
        length = one.programsize
        total += length
        size += length
        if not groups or size > PROGRAM:
            groups.append([])
            size = length
        groups[-1].append(f"(?:{pattern})")
        yield
    if total > MAX_PROGRAM:
        found = f"{len(excludes)} patterns with {total}"
        expected = f"patterns that RE2 compiles to at most {MAX_PROGRAM} instructions in all"
        raise _refused("policy.pattern", f"{source}: excludes", expected, found, "use fewer or simpler patterns")
    made = []
    for group in groups:
        try:
            made.append(compiled("|".join(group)))
        except ValueError as error:
            raise _bad_pattern(f"{source}: excludes", f"{len(excludes)} patterns together", error) from None
        yield
    return tuple(made)


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
