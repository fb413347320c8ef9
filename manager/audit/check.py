"""What is wrong with a decision log: each finding by name, from the signed head down to single entries.

The head vouches for the leaf hashes, they for the entries. The stream may have lost its oldest entries, to its limits;
what it holds must be the rest of the tree, in its order, whole. What comes after the head's cursor is not in it yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from attestgate.bus.api import StoredMessage
from attestgate.bus.layout import LOG
from attestgate.manager.audit.copy import LogCopy
from attestgate.manager.audit.head import ACTION
from attestgate.manager.audit.intake import OVERDUE_S
from attestgate.manager.audit.merkle import consistency_proof, goes_on, leaf_hash, root_of
from attestgate.schemas.audit import Decision, open_decision
from attestgate.schemas.base import Reason, Refusal
from attestgate.schemas.checkpoint import Checkpoint
from attestgate.schemas.signing import TrustedKeys

Opened = Sequence[tuple[StoredMessage, Decision | None]]
NAMED = 5
"""Entries that one finding names."""


def check(log: LogCopy, managers: TrustedKeys, since: Sequence[Checkpoint], at: int) -> list[Reason]:
    """Every finding, none if all is well at Unix second `at`. `since`: heads of this log that were seen before."""
    findings = list(_tree(log))
    if findings:
        return findings  # nothing below rests on anything
    findings += [finding for before in since for finding in _goes_on(log, before)]
    opened = [(stored, _opened(stored, managers)) for stored in log.stored]
    kept = list(_entries(log, since, at))
    # An entry that is missing from the stream leaves a gap in its session's numbers too.
    return [*findings, *kept, *_strangers(log, opened, at), *(() if kept else _numbers(log, opened))]


def decisions(log: LogCopy, managers: TrustedKeys) -> Iterator[tuple[int, Decision, bytes]]:
    """The entries that are in the tree and still kept: index, what it says, its bytes."""
    index = log.index()
    for stored in log.stored:
        leaf, decision = leaf_hash(stored.data), _opened(stored, managers)
        if leaf in index and decision is not None:
            yield index[leaf], decision, stored.data


def kept_from(log: LogCopy) -> int:
    """Index of the oldest entry that the stream still holds; the tree's size if it holds none."""
    index = log.index()
    return min((index[leaf] for s in log.stored if (leaf := leaf_hash(s.data)) in index), default=len(log.leaves))


def _opened(stored: StoredMessage, managers: TrustedKeys) -> Decision | None:
    """What a manager signed; None for anything else."""
    try:
        return open_decision(stored.subject, stored.data, managers)
    except Refusal:
        return None


def _tree(log: LogCopy) -> Iterator[Reason]:
    if len(log.leaves) != log.checkpoint.size or root_of(log.leaves) != log.checkpoint.root:
        found = f"{len(log.leaves)} with root {root_of(log.leaves).hex()}"
        yield _finding(
            "log.leaves", "tree", f"{log.checkpoint.size} leaf hashes with root {log.checkpoint.root.hex()}", found
        )
    for leaf, times in Counter(log.leaves).items():
        if times > 1:
            yield _finding("log.repeated", f"entry {log.leaves.index(leaf)}", "once in the tree", f"{times} times")


def _goes_on(log: LogCopy, before: Checkpoint) -> Iterator[Reason]:
    now = log.checkpoint
    if before.origin != now.origin:
        yield _finding("log.origin", "saved head", now.origin, before.origin)
    elif before.size > now.size:
        yield _finding("log.rolled-back", "tree", f"at least the {before.size} entries of the saved head", now.size)
    elif before.size:
        path = consistency_proof(log.leaves, before.size)
        if not goes_on(before.size, before.root, now.size, now.root, path):
            yield _finding(
                "log.forked",
                f"the first {before.size} entries",
                f"those of the saved head, root {before.root.hex()}",
                f"different entries, root {root_of(log.leaves[: before.size]).hex()}",
            )


def _entries(log: LogCopy, since: Sequence[Checkpoint], at: int) -> Iterator[Reason]:
    """What the stream holds of the tree: missing, exchanged, out of order, more than there should be."""
    index, size = log.index(), log.checkpoint.size
    places = [index.get(leaf_hash(stored.data)) for stored in log.stored]
    while places and places[-1] is None and log.stored[len(places) - 1].sequence > log.checkpoint.cursor:
        places.pop()  # not in the tree yet
    known = [place for place in places if place is not None]
    strange = len(places) - len(known)
    if wrong := [after for before, after in pairwise(known) if after <= before]:
        yield _finding("log.order", _named(wrong), "entries in the tree's order, each once", "later ones before them")
    leading = next((n for n, place in enumerate(places) if place is not None), len(places))
    first = max(min(min(known, default=size), _promised(log, since, at)) - leading, 0)
    missing = sorted(set(range(first, size)) - set(known))
    if missing and strange:
        yield _finding("log.edited", _named(missing), "the entries of the tree", f"{strange} different entries")
    elif missing and missing[0] > max(known, default=-1):
        yield _finding("log.truncated", _named(missing), "in the stream", "the stream ends before them")
    elif missing:
        yield _finding("log.dropped", _named(missing), "in the stream", "no such entries")
    elif strange:
        yield _finding("log.injected", "stream", "entries of the tree only", f"{strange} that are not in it")


def _promised(log: LogCopy, since: Sequence[Checkpoint], at: int) -> int:
    """From which index on the stream's limits cannot have let an entry go: what came after a head that is young."""
    size, oldest = log.checkpoint.size, at - LOG.max_age_s
    young = [max(size - 1, 0)] if log.checkpoint.at > oldest else []
    if sum(len(stored.data) for stored in log.stored) < LOG.max_bytes // 2:
        young += [before.size for before in since if before.at > oldest]
    return min(young, default=size)


def _strangers(log: LogCopy, opened: Opened, at: int) -> Iterator[Reason]:
    """What no manager signed, and what has waited too long to be taken into the tree."""
    forged = [stored.sequence for stored, decision in opened if decision is None]
    if forged:
        yield _finding("log.forged", f"messages {forged[:NAMED]}", "entries signed by a manager", "no such signature")
    waiting = [(s.sequence, decision) for s, decision in opened if s.sequence > log.checkpoint.cursor]
    # Only a session's entry is dated by the worker that made it.
    dated = [(sequence, decision.at) for sequence, decision in waiting if decision is not None and decision.session]
    late = [sequence for sequence, made in dated if made + OVERDUE_S < at]
    if late:
        yield _finding(
            "log.overdue", f"messages {late[:NAMED]}", f"in the tree within {OVERDUE_S} s", f"{len(late)} still waiting"
        )


def _numbers(log: LogCopy, opened: Opened) -> Iterator[Reason]:
    """Each session numbers its own entries: one that is missing never came as far as the tree; one that is there twice
    was decided twice, by a record that the bus set back or gave to two workers."""
    sessions: dict[str, list[int]] = {}
    for stored, decision in opened:
        if decision is not None and decision.session is not None and stored.sequence <= log.checkpoint.cursor:
            sessions.setdefault(decision.session, []).append(decision.number)
    whole = kept_from(log) == 0
    for session, numbers in sessions.items():
        first = 1 if whole else min(numbers)
        missing = sorted(set(range(first, max(numbers) + 1)) - set(numbers))
        twice = sorted(number for number, times in Counter(numbers).items() if times > 1)
        if twice:
            yield _finding(
                "log.decided-twice",
                f"session {session}",
                f"each decision once, {twice[:NAMED]} too",
                "two decisions of one number",
            )
        if missing:
            yield _finding(
                "log.number", f"session {session}", f"its decisions {missing[:NAMED]} too", "only later decisions"
            )


def _named(places: Sequence[int]) -> str:
    more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
    return f"entries {', '.join(map(str, places[:NAMED]))}{more}"


def _finding(code: str, field: str, expected: object, found: object) -> Reason:
    return Reason(code=code, field=field, expected=str(expected), found=str(found), action=ACTION)
