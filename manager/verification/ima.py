"""Appraisal of a measurement list: every entry judged, PCR 10 replayed, the list tied to a TPM quote if there is one.

Two kinds of reasons come out. A fault says that the evidence does not hold together (malformed, a template hash that
does not fit, a replay that never meets the quoted PCR 10): no mode admits that. A finding says that the policy does
not accept what the evidence shows; in observe-only mode it is reported and admitted.

The order is quote first, then list: the list grows while it is read, so the quoted PCR 10 is met somewhere before its
end, and the entries after that point (the unanchored tail) are judged like the rest and anchored by the next quote.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal

from manager.verification.ima_keys import is_key, signed
from manager.verification.ima_list import BANK_HASHES, ByteOrder, Entry, byte_order, frames, parse, readable
from manager.verification.runtime_policy import BOOT_AGGREGATE, Judged, LoadedPolicy, Memory
from manager.verification.tpm import QuotedPcrs
from schemas.base import Reason, Refusal, shown
from schemas.host_policy import (
    BOOT_PCRS,
    IMA_PCR,
    Bank,
    BootState,
    GoldenPcrs,
    HostPolicy,
    ListVerdict,
    Replay,
    UnknownEntry,
)

MAX_UNKNOWN_LISTED = 1000
"""Unknown entries named one by one in a verdict; the rest are counted."""

MAX_PATH_SHOWN = 255
"""Bytes of a path that a verdict shows, so that a verdict stays well below the size of a message."""

Known = Literal["known", "excluded", "unknown"]
Judge = Callable[[Entry], Known]
Nearest = Callable[[bytes, int], str | None]

_HASHED = frozenset({"sha1", "sha224", "sha256", "sha384", "sha512"})
"""Algorithms under which a measured buffer's digest is computed again."""


def appraise_list(
    data: bytes,
    policy: LoadedPolicy,
    host: HostPolicy,
    *,
    before: Replay,
    quoted: QuotedPcrs | None = None,
    golden: Sequence[GoldenPcrs] = (),
    at: int,
) -> ListVerdict:
    """Judge a binary list, or what it grew by since `before` (`Replay.start()` for a whole one).

    Bad evidence gives a verdict with reasons, never an exception. `quoted` is a verified quote taken before the list
    was read; `golden` are the enrolled values of PCR 0-9, any of which will do. `at` is the time of judging, Unix
    seconds. Under a new policy the whole list must be judged again, from `Replay.start()`.
    """
    memory = policy.memory(tuple(before.pcr10))
    reading = _Reading(before, quoted, memory, lambda entry: _knows(policy, entry), policy.nearest)
    reading.read(data)
    if host.runtime_policy != policy.sha256:
        reading.fault("policy.hash", "host policy", host.runtime_policy, policy.sha256, "load the policy it names")
    if quoted is not None and quoted.bank != host.bank:
        reading.fault("tpm.bank", "TPM quote, bank", host.bank, quoted.bank, "quote the bank that was asked for")
    return _conclude(reading, host, golden, policy=policy.sha256, at=at)


def inspect_list(data: bytes, *, before: Replay, quoted: QuotedPcrs | None, at: int) -> ListVerdict:
    """Judge only whether a list holds together and fits its quote; the verdict names no policy.

    For a person looking at a file: no entry is compared with anything, violations are counted, and it is accepted only
    when a quote vouches for it.
    """
    host = HostPolicy(version=1, runtime_policy="00" * 32, accept_unjudged_boot=True, violations="accept")
    reading = _Reading(before, quoted, Memory(), lambda _entry: "known", lambda _path, _size: None)
    reading.read(data)
    return _conclude(reading, host, (), policy=None, at=at)


class _Reading:
    """One pass over a list: what was counted, found unknown and found wrong."""

    def __init__(
        self, before: Replay, quoted: QuotedPcrs | None, memory: Memory, judge: Judge, nearest: Nearest
    ) -> None:
        self.entries = before.entries
        self.banks: tuple[Bank, ...] = tuple(before.pcr10)
        self.values = [bytes.fromhex(value) for value in before.pcr10.values()]
        self.anchored = self.violations = self.excluded = self.unknown_entries = 0
        self.unknown: list[UnknownEntry] = []
        self.first_violation: int | None = None
        self.started = before.entries > 0
        self.faults: dict[str, Reason] = {}
        self.quoted = quoted
        self._memory = memory
        self._judge = judge
        self._nearest = nearest
        self._extend = [BANK_HASHES[bank] for bank in self.banks]

    def read(self, data: bytes) -> None:
        """Read every entry; a malformed one ends the reading."""
        place, target = self._target()
        values, extend, recall = self.values, self._extend, self._memory.get
        first = index = self.entries
        if target is not None and values[place] == target:
            self.anchored = first
        try:
            order = byte_order(data, first=first)
            for frame in frames(data, order, first=first):
                extends, excluded = recall(frame) or self._first_time(frame, index, order)
                if excluded:
                    self.excluded += 1
                for bank, value in enumerate(extends):
                    values[bank] = extend[bank](values[bank] + value).digest()
                index += 1
                if values[place] == target:
                    self.anchored = index
        except Refusal as refusal:
            self.faults.update({reason.code: reason for reason in refusal.reasons})
        self.entries = index
        self._check_whole()

    def fault(self, code: str, field: str, expected: str, found: str, action: str) -> None:
        """Note that the evidence does not hold together; the first of each kind is kept."""
        if code not in self.faults:
            self.faults[code] = Reason(
                code=code, field=field, expected=shown(expected), found=shown(found), action=action
            )

    def replay(self) -> Replay:
        """Where the reading ended."""
        pcr10 = {bank: value.hex() for bank, value in zip(self.banks, self.values, strict=True)}
        return Replay(entries=self.entries, pcr10=pcr10)

    def _target(self) -> tuple[int, bytes | None]:
        """Which bank is to meet which quoted value of PCR 10."""
        if self.quoted is None:
            return 0, None
        if self.quoted.bank not in self.banks or IMA_PCR not in self.quoted.values:
            expected = f"PCR {IMA_PCR} of {' or '.join(self.banks)}"
            found = f"{self.quoted.bank}: {', '.join(map(str, self.quoted.values))}"
            self.fault("tpm.selection", "TPM quote, pcrSelect", expected, found, "quote PCR 0-10 of that bank")
            return 0, None
        return self.banks.index(self.quoted.bank), self.quoted.values[IMA_PCR]

    def _first_time(self, frame: bytes, index: int, order: ByteOrder) -> Judged:
        """Judge an entry not seen before, note what is wrong with it, and remember it if nothing is."""
        entry = parse(frame, index, order)
        if entry.pcr != IMA_PCR:
            self.fault("ima.pcr", _where(entry), f"PCR {IMA_PCR}", f"PCR {entry.pcr}", "measure into PCR 10 only")
            return Judged(())
        if entry.violation:
            # its path is not covered by any hash, so no exclude pattern may speak for it
            self.violations += 1
            self.first_violation = index if self.first_violation is None else self.first_violation
            return Judged(tuple([entry.extends(bank) for bank in self.banks]))
        judged = Judged(tuple([extend(entry.hashed).digest() for extend in self._extend]))
        recomputed = hashlib.sha1(entry.hashed, usedforsecurity=False).digest()
        if recomputed != entry.template_hash:
            action = "the list was changed on its way; send the kernel's own"
            self.fault("ima.template_hash", _where(entry), entry.template_hash.hex(), recomputed.hex(), action)
            return judged
        if entry.path == BOOT_AGGREGATE:
            self._judge_boot_aggregate(entry)
            return judged
        known = self._judge(entry)
        if known == "unknown":
            self._note_unknown(entry)
            return judged
        if known == "excluded":
            judged = Judged(judged.extends, excluded=True)
        self._memory.keep(frame, judged)
        return judged

    def _judge_boot_aggregate(self, entry: Entry) -> None:
        """By the quoted PCR 0-9 where the quote has them in the entry's bank, else like any entry; never remembered."""
        self.started = self.started or entry.number == 0
        quoted = self.quoted.boot_aggregate() if self.quoted and self.quoted.bank == entry.algorithm else None
        if quoted is None:
            if self._judge(entry) == "unknown":
                self._note_unknown(entry)
        elif quoted != entry.digest:
            action = "the list is from another boot or another host than the quote"
            self.fault("ima.boot_aggregate", _where(entry), quoted.hex(), entry.digest.hex(), action)

    def _note_unknown(self, entry: Entry) -> None:
        self.unknown_entries += 1
        if len(self.unknown) < MAX_UNKNOWN_LISTED:
            digest = f"{entry.algorithm}:{entry.digest.hex()}"
            nearest = self._nearest(entry.path, len(entry.digest))
            path = readable(entry.path[:MAX_PATH_SHOWN]) + ("..." if len(entry.path) > MAX_PATH_SHOWN else "")
            self.unknown.append(UnknownEntry(index=entry.number, path=path, digest=digest, nearest=nearest))

    def _check_whole(self) -> None:
        """What only shows at the end: a list without a beginning, and a quote that the replay never met."""
        if not self.started:
            action = "send the list from its beginning"
            self.fault("ima.start", "measurement list, entry 0", "boot_aggregate", "no such entry", action)
        if self.quoted is not None and not self.anchored:
            found = ", ".join(f"{bank} {value.hex()}" for bank, value in zip(self.banks, self.values, strict=True))
            expected = f"{self.quoted.bank} {self.quoted.values.get(IMA_PCR, b'').hex()} after one of the entries"
            action = "the list was changed, cut, or read before the quote was made"
            self.fault("ima.replay", f"measurement list, PCR {IMA_PCR}", expected, f"at the end {found}", action)


def _where(entry: Entry) -> str:
    return f"measurement list, entry {entry.number}, {readable(entry.path[:MAX_PATH_SHOWN])}"


def _knows(policy: LoadedPolicy, entry: Entry) -> Known:
    """By digest under its path, then by exclude pattern, then by signature."""
    if entry.buffer is not None:
        return _knows_buffer(policy, entry, entry.buffer)
    if entry.digest in policy.digests.get(entry.path, ()):
        return "known"
    if policy.excluded(entry.path):
        return "excluded"
    by_signature = not entry.verity and signed(policy.keys, entry.signature or b"", entry.algorithm, entry.digest)
    return "known" if by_signature else "unknown"


def _knows_buffer(policy: LoadedPolicy, entry: Entry, buffer: bytes) -> Known:
    """A key that was loaded by its keyring's digests, any other buffer by its name's, as Keylime does."""
    if entry.algorithm not in _HASHED or hashlib.new(entry.algorithm, buffer).digest() != entry.digest:
        return "unknown"
    a_key = is_key(buffer)
    if entry.digest in (policy.keyrings if a_key else policy.buffers).get(entry.path, ()):
        return "known"
    ignored = a_key and not policy.ignored_keyrings.isdisjoint({b"*", entry.path})
    return "excluded" if ignored or policy.excluded(entry.path) else "unknown"


def _boot_state(quoted: QuotedPcrs | None, golden: Sequence[GoldenPcrs]) -> BootState:
    """The quoted PCR 0-9 against every enrolled boot."""
    if quoted is None or not golden:
        return "not_judged"
    found = [quoted.values.get(index, b"").hex() for index in BOOT_PCRS]
    same_boot = any(boot.bank == quoted.bank and list(boot.values) == found for boot in golden)
    return "golden" if same_boot else "mismatch"


def _conclude(
    reading: _Reading, host: HostPolicy, golden: Sequence[GoldenPcrs], *, policy: str | None, at: int
) -> ListVerdict:
    """The verdict: faults, then what the host policy makes of the rest."""
    boot = _boot_state(reading.quoted, golden)
    faults, findings = list(reading.faults.values()), _findings(reading, host, boot)
    return ListVerdict(
        accepted=not faults and not findings,
        admitted=not faults and (not findings or host.mode == "observe-only"),
        mode=host.mode,
        at=at,
        policy=policy,
        integrity="anchored" if reading.anchored and boot == "golden" and not faults else "unanchored",
        boot_state=boot,
        anchored_entries=reading.anchored,
        violations=reading.violations,
        excluded=reading.excluded,
        unknown_entries=reading.unknown_entries,
        unknown=reading.unknown,
        reasons=faults + findings,
        replay=reading.replay(),
    )


def _findings(reading: _Reading, host: HostPolicy, boot: BootState) -> list[Reason]:
    """What the policies do not accept in evidence that may well be genuine."""
    found: list[Reason] = []

    def refuse(code: str, field: str, expected: str, what: str, action: str) -> None:
        found.append(Reason(code=code, field=field, expected=expected, found=shown(what), action=action))

    if reading.unknown:
        first = reading.unknown[0]
        refuse(
            "ima.unknown",
            f"measurement list, entry {first.index}",
            "every entry known to the runtime policy",
            f"{reading.unknown_entries} unknown, the first is {first.path} {first.digest}",
            "remove the program, or add it with `attestgate policy learn --add`",
        )
    if reading.violations and host.violations == "refuse":
        refuse(
            "ima.violation",
            f"measurement list, entry {reading.first_violation}",
            "no violations",
            f"{reading.violations}",
            "a file was read while open for writing: reboot the host, or accept violations in the host policy",
        )
    if boot == "mismatch":
        refuse(
            "tpm.boot_state",
            "TPM quote, PCR 0-9",
            "the golden values of an enrolled boot",
            "other values",
            "find out what changed in firmware, boot loader, kernel or command line; approve it by enrolling it",
        )
    if not host.accept_unanchored and reading.quoted is None:
        refuse(
            "ima.unanchored",
            "measurement list",
            "a TPM quote that vouches for it",
            "no quote",
            "enrol the host's TPM, or say `accept_unanchored` in the host policy",
        )
    if not host.accept_unanchored and not host.accept_unjudged_boot and reading.quoted and boot == "not_judged":
        refuse(
            "tpm.boot_not_judged",
            "TPM quote, PCR 0-9",
            "golden values to compare with",
            "none enrolled",
            "enrol the host with `--golden-from`, or say `accept_unjudged_boot` in the host policy",
        )
    return found
