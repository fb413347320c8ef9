"""One pass over a measurement list: every entry judged, PCR 10 replayed, what is wrong noted.

This loop dominates a fleet's cost. An entry that was judged good before, under the same policy, is looked
up by its bytes and only replayed; a new one is parsed, its template hash computed again, and judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import sha1 as _sha1
from itertools import islice
from typing import Protocol

from attestgate.manager.verification.ima.cache import MAX_KEPT, TRIM_EVERY, VerdictCache
from attestgate.manager.verification.ima.fast_path import reader
from attestgate.manager.verification.ima.measurement_list import (
    BANK_HASHES,
    HEADER,
    ByteOrder,
    ListEntry,
    Truncated,
    byte_order,
    entries,
    frames,
    readable,
)
from attestgate.manager.verification.ima.measurement_list import replay as replayed
from attestgate.manager.verification.ima.runtime_policy import BOOT_AGGREGATE, Judgement, Known
from attestgate.manager.verification.tpm.quote import QuotedPcrs
from attestgate.schemas.base import Reason, Refusal, shown
from attestgate.schemas.host_policy import IMA_PCR, Bank, Replay, UnknownEntry

MAX_SHOWN = 256 * 1024
"""Bytes, about, in which a verdict names unknown entries, well below the size of a message; the rest are counted."""

MAX_COST = 256
"""Between two pauses within one piece of a list. An entry whose digest is known for its path (4 µs) counts nothing."""
_JUDGED, _BUFFER, _SIGNATURE, _NAMED = 1, 16, 32, 16
"""What others count, in units of some 10 µs: judged by the rules; a measured buffer, which may be a key in four forms;
a signature to be verified; an unknown one that the verdict names, in addition."""

_ROOM_OF_ONE = 250
"""Bytes that an unknown entry takes beside its path."""


class ReplayRules(Protocol):
    """What a list is judged by."""

    @property
    def digests(self) -> Known:
        """Known digests by path: what most entries are known by."""
        ...

    def memory(self, bank: Bank) -> VerdictCache:
        """Entries judged good before by these rules, while PCR 10 of this bank was replayed."""
        ...

    def judge(self, entry: ListEntry) -> Judgement:
        """Whether an entry that is no violation is known good."""
        ...

    def nearest(self, path: bytes, size: int) -> str | None:
        """A digest known for a path, of `size` bytes if there is one, in hexadecimal."""
        ...


class ReplayPass:
    """What one pass counted, found unknown and found wrong.

    One bank is replayed entry by entry: the quoted one, or else the first of `before`. The others follow at the end.
    """

    def __init__(self, rules: ReplayRules, before: Replay, quoted: QuotedPcrs | None, room: int = MAX_SHOWN) -> None:
        self.quoted = quoted
        self.entries = before.entries
        self.anchored = self.violations = self.excluded = self.unknown_entries = 0
        self.unknown: list[UnknownEntry] = []
        self.first_violation = -1
        self.faults: dict[str, Reason] = {}
        self.replay = before
        self._before = before
        self._started = before.entries > 0
        self._rules = rules
        self._digests_of = rules.digests.get
        self._room = room
        self._bank, self._target = self._what_to_meet()
        self._hash = BANK_HASHES[self._bank]
        self._memory = rules.memory(self._bank)
        self._known, self._excluded = self._memory.known, self._memory.excluded
        self._value = bytes.fromhex(before.pcr10[self._bank])
        if self._value == self._target:
            self.anchored = before.entries
        self._order: ByteOrder | None = None
        self._rest = b""
        """The beginning of an entry that goes on in the next piece."""
        self._kept: list[bytes] | None = [] if len(before.pcr10) > 1 else None
        """The list, where other banks are to be replayed."""
        self._ended = False
        self._cost = 0

    def take(self, piece: bytes, *, last: bool) -> Iterator[None]:
        """Read the entries of the next piece of the list; a malformed one ends the reading.

        An entry may go on in the next piece. Yields after so many entries as cost much more than others.
        """
        if self._ended:
            return
        if self._kept is not None:
            self._kept.append(piece)
        data = self._rest + piece
        if not (last or self._order or len(data) >= HEADER):
            self._rest = data
            return
        self._rest = b""
        try:
            yield from self._read(data)
        except Truncated as cut:
            if last:
                self._end(cut)
            else:
                self._rest = data[cut.start :]
        except Refusal as refusal:
            self._end(refusal)
        self._memory.trim()

    def finish(self) -> None:
        """Conclude, after the last piece, what only shows there."""
        self._finish(b"".join(self._kept or ()), self._value)

    def _end(self, refusal: Refusal) -> None:
        self.faults.update({reason.code: reason for reason in refusal.reasons})
        self._ended = True

    def _read(self, data: bytes) -> Iterator[None]:
        first = index = self.entries
        value = self._value
        extend, target, recall = self._hash, self._target, self._known.get
        try:
            self._order = self._order or byte_order(data, first=first)
            parse = reader(self._order)
            for frame in frames(data, self._order, first=first):
                template = recall(frame)
                if template is None:
                    template = self._first_time(frame, index, parse)
                    if self._cost >= MAX_COST:
                        self._cost = 0
                        yield
                if template:
                    value = extend(value + template).digest()
                index += 1
                if value == target:
                    self.anchored = index
                if not index % TRIM_EVERY:
                    self._memory.trim()
        finally:
            self.entries, self._value = index, value

    def fault(self, code: str, field: str, expected: str, found: str, action: str) -> None:
        """Note that the evidence does not hold together; the first of each kind is kept."""
        if code not in self.faults:
            self.faults[code] = Reason(
                code=code, field=field, expected=shown(expected), found=shown(found), action=action
            )

    def _what_to_meet(self) -> tuple[Bank, bytes | None]:
        """The bank to replay, and the quoted value of PCR 10 to be met in it."""
        banks = tuple(self._before.pcr10)
        if self.quoted is None:
            return banks[0], None
        if not self.quoted.banks.keys() <= set(banks) or IMA_PCR not in self.quoted.values:
            expected = f"PCR {IMA_PCR} of {' or '.join(banks)}"
            found = "; ".join(f"{bank} {', '.join(map(str, pcrs))}" for bank, pcrs in self.quoted.attest.selection)
            self.fault("tpm.selection", "TPM quote, pcrSelect", expected, found, "quote PCR 0-10 of that bank")
            return banks[0], None
        return self.quoted.bank, self.quoted.values[IMA_PCR]

    def _first_time(self, frame: bytes, index: int, parse: Callable[[bytes, int], ListEntry]) -> bytes:
        """What an entry not known to be good extends PCR 10 with (nothing if it is not of PCR 10), once judged."""
        if self._excluded and (template := self._excluded.get(frame)):
            self.excluded += 1
            return template
        entry = parse(frame, index)
        # Only PCR 10 is replayed against the quote, so an entry of another PCR would be vouched for by nothing.
        if entry.pcr != IMA_PCR:
            if "ima.pcr" not in self.faults:
                self.fault("ima.pcr", _where(entry), f"PCR {IMA_PCR}", f"PCR {entry.pcr}", "measure into PCR 10 only")
            return b""
        hashed, path = entry.hashed, entry.path
        template = self._hash(hashed).digest()
        # SHA-1 vouches for nothing: it finds a damaged list early, and what PCR 10 is extended with is computed from
        # the data, in the bank's own hash.
        if _sha1(hashed, usedforsecurity=False).digest() != entry.template_hash:
            return self._violated(entry) if entry.violation else self._misfit(entry, template)
        if path == BOOT_AGGREGATE:
            self._judge_boot_aggregate(entry)
        # The algorithm's name is not compared: to meet a known value by another one takes a second preimage.
        elif entry.digest in self._digests_of(path, ()) and entry.buffer is None and len(frame) <= MAX_KEPT:
            self._known[frame] = template  # most entries, so without a detour
        else:
            self._judge(frame, entry, template)
        return template

    def _violated(self, entry: ListEntry) -> bytes:
        """Its path is not covered by any hash, so no exclude pattern may speak for it."""
        self.first_violation = entry.number if not self.violations else self.first_violation
        self.violations += 1
        return entry.extends(self._bank)

    def _misfit(self, entry: ListEntry, template: bytes) -> bytes:
        if "ima.template_hash" in self.faults:
            return template
        recomputed = entry.extends("sha1").hex()
        action = "the list was changed in transit: send the kernel's own"
        self.fault("ima.template_hash", _where(entry), entry.template_hash.hex(), recomputed, action)
        return template

    def _judge(self, frame: bytes, entry: ListEntry, template: bytes) -> None:
        """By the rules; what they accept is remembered."""
        judgement = self._by_rules(entry)
        if judgement == "unknown":
            self._note_unknown(entry)
            return
        self.excluded += judgement == "excluded"
        if len(frame) <= MAX_KEPT:
            kept = self._known if judgement == "known" else self._excluded
            kept[frame] = template

    def _by_rules(self, entry: ListEntry) -> Judgement:
        self._cost += _BUFFER if entry.buffer is not None else _SIGNATURE if entry.signature else _JUDGED
        return self._rules.judge(entry)

    def _judge_boot_aggregate(self, entry: ListEntry) -> None:
        """By the quoted PCR 0-9 where the quote has them in the entry's bank, else like any entry; never remembered."""
        self._started = self._started or entry.number == 0
        quoted = self.quoted.boot_aggregate(entry.algorithm) if self.quoted else None
        if quoted is None:
            if self._by_rules(entry) == "unknown":
                self._note_unknown(entry)
        # Stops a good boot's list with whose digests another kernel has extended PCR 10: PCR 0-9 are not that boot's.
        elif quoted != entry.digest and "ima.boot_aggregate" not in self.faults:
            action = "send the list and the quote of one host and one boot"
            self.fault("ima.boot_aggregate", _where(entry), quoted.hex(), entry.digest.hex(), action)

    def _note_unknown(self, entry: ListEntry) -> None:
        self.unknown_entries += 1
        if self._room <= 0:
            return
        self._cost += _NAMED
        path, digest = readable(entry.path), f"{entry.algorithm}:{entry.digest.hex()}"
        self._room -= len(path) + _ROOM_OF_ONE
        nearest = self._rules.nearest(entry.path, len(entry.digest))
        self.unknown.append(UnknownEntry(index=entry.number, path=path, digest=digest, nearest=nearest))

    def _finish(self, data: bytes, value: bytes) -> None:
        """Where the reading ended, in each bank; and what only shows there: no beginning, or a quote never met."""
        at_quote, ended = self._other_banks(data)
        ended[self._bank] = value.hex()
        self.replay = Replay(entries=self.entries, pcr10={bank: ended[bank] for bank in self._before.pcr10})
        wanted = self._quoted_elsewhere()
        # Where a quote covers several banks, the list has to lead to each value after one and the same entry.
        if any(at_quote.get(bank) != value for bank, value in wanted.items()):
            self.anchored = 0
        # Stops a list that leaves out its beginning; where the quoted PCR 10 is met, that proves the beginning, since a
        # replay starts at zero.
        if not self._started and not self.anchored:
            action = "send the list from its beginning"
            self.fault("ima.start", "measurement list, entry 0", "boot_aggregate", "no such entry", action)
        if self.quoted is not None and not self.anchored:
            wanted[self._bank] = self._target.hex() if self._target else "a value"
            action = "quote first, then send the whole list: this one was changed, cut, or read too early"
            expected = f"{_values(wanted)} after one of the entries"
            found = f"at the end {_values(self.replay.pcr10)}"
            self.fault("ima.replay", f"measurement list, PCR {IMA_PCR}", expected, found, action)

    def _other_banks(self, data: bytes) -> tuple[dict[Bank, str], dict[Bank, str]]:
        """PCR 10 of the banks not replayed yet, where the quote was met and at the end."""
        start = self._before.entries
        others = {bank: value for bank, value in self._before.pcr10.items() if bank != self._bank}
        if not others:
            return {}, {}
        read = entries(data, first=start)
        at_quote = replayed(Replay(entries=start, pcr10=others), islice(read, max(self.anchored - start, 0)))
        return at_quote.pcr10, replayed(at_quote, islice(read, self.entries - at_quote.entries)).pcr10

    def _quoted_elsewhere(self) -> dict[Bank, str]:
        """PCR 10 as quoted in banks beside the one replayed entry by entry."""
        banks = self.quoted.banks if self.quoted else {}
        quoted = {bank: values[IMA_PCR].hex() for bank, values in banks.items() if IMA_PCR in values}
        return {bank: value for bank, value in quoted.items() if bank != self._bank}


def _values(banks: dict[Bank, str]) -> str:
    return ", ".join(f"{bank} {value}" for bank, value in banks.items())


def _where(entry: ListEntry) -> str:
    return f"measurement list, entry {entry.number}, {shown(readable(entry.path))}"
