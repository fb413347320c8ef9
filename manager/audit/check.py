"""What is wrong with a decision log: each finding by name, from the signed head down to single entries.

The head vouches for the leaf hashes of its tree, whose first entry may vouch for those of a tree before it; they vouch
for the entries. The stream may have lost its oldest entries, to its limits; what it holds must be the rest of the
trees, in their order, whole. What comes after the head's cursor is not in a tree yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from attestgate.bus.api import StoredMessage
from attestgate.bus.layout import LOG
from attestgate.manager.audit.copy import LogCopy, Tree
from attestgate.manager.audit.head import ACTION
from attestgate.manager.audit.intake import OVERDUE_S
from attestgate.manager.audit.merkle import consistency_proof, goes_on, leaf_hash, root_of
from attestgate.schemas.audit import Continued, Decision, open_decision
from attestgate.schemas.base import Reason, Refusal
from attestgate.schemas.checkpoint import Checkpoint
from attestgate.schemas.signing import TrustedKeys

Opened = Sequence[tuple[StoredMessage, Decision | None]]
NAMED = 5
"""Entries that one finding names."""


def check(log: LogCopy, managers: TrustedKeys, since: Sequence[Checkpoint], at: int) -> list[Reason]:
    """Every finding, none if all is well at Unix second `at`. `since`: heads of this log that were seen before."""
    findings = [finding for tree in log.trees for finding in _tree(log, tree)] + list(_repeated(log))
    if findings:
        return findings  # nothing below rests on anything
    findings += [finding for before in since for finding in _goes_on(log, before)]
    opened = [(stored, _opened(stored, managers)) for stored in log.stored]
    findings += _counted(log, opened)
    kept = list(_entries(log, since, at))
    # An entry that is missing from the stream leaves a gap in its session's numbers too.
    return [*findings, *kept, *_strangers(log, opened, at), *(() if kept else _numbers(log, opened))]


def decisions(log: LogCopy, managers: TrustedKeys) -> Iterator[tuple[int, Decision, bytes]]:
    """The entries that are in a tree and still kept: number, what it says, its bytes."""
    for stored in log.stored:
        leaf, decision = leaf_hash(stored.data), _opened(stored, managers)
        if leaf in log.index and decision is not None:
            yield log.index[leaf], decision, stored.data


def kept_from(log: LogCopy) -> int:
    """Number of the oldest entry that the stream still holds; the log's size if it holds none."""
    numbers = {log.index.get(leaf_hash(stored.data), log.size) for stored in log.stored}
    return min(numbers - log.seams, default=log.size)


def _opened(stored: StoredMessage, managers: TrustedKeys) -> Decision | None:
    """What a manager signed; None for anything else."""
    try:
        return open_decision(stored.subject, stored.data, managers)
    except Refusal:
        return None


def _tree(log: LogCopy, tree: Tree) -> Iterator[Reason]:
    root = root_of(tree.leaves)
    if (len(tree.leaves), root) != (tree.size, tree.root):
        expected = f"{tree.size} leaf hashes with root {tree.root.hex()}"
        yield _finding("log.leaves", f"tree {tree.number}", expected, f"{len(tree.leaves)} with root {root.hex()}")
    elif tree is log.newest and log.seam and (tree.number == 1 or tree.leaves[:1] != [leaf_hash(log.seam)]):
        carried = f"another entry beside its head, with leaf hash {leaf_hash(log.seam).hex()}"
        yield _finding("log.seam", f"tree {tree.number}", "its first entry, if that continues a tree", carried)


def _repeated(log: LogCopy) -> Iterator[Reason]:
    leaves = list(log.leaves())
    for leaf, times in Counter(leaves).items():
        if times > 1:
            number = log.first + leaves.index(leaf)
            yield _finding("log.repeated", f"entry {number}", "once in the log", f"{times} times")


def _goes_on(log: LogCopy, before: Checkpoint) -> Iterator[Reason]:
    now = log.checkpoint
    if before.log != now.log:
        yield _finding("log.origin", "saved head", now.log, before.origin)
    elif before.tree > now.tree:
        yield _finding("log.rolled-back", "log", f"tree {before.tree}, as in the saved head", f"tree {now.tree}")
    elif (tree := _tree_of(log, before)) is None:
        kept = " and ".join(str(tree.number) for tree in log.trees)
        yield _finding("log.gone", "saved head", f"a head of tree {kept}, which the bus has", f"tree {before.tree}")
    elif before.size > tree.size:
        expected = f"at least the {before.size} entries of the saved head"
        yield _finding("log.rolled-back", f"tree {tree.number}", expected, tree.size)
    elif before.size:
        path = consistency_proof(tree.leaves, before.size)
        if not goes_on(before.size, before.root, tree.size, tree.root, path):
            yield _finding(
                "log.forked",
                f"the first {before.size} entries of tree {tree.number}",
                f"those of the saved head, root {before.root.hex()}",
                f"different entries, root {root_of(tree.leaves[: before.size]).hex()}",
            )


def _tree_of(log: LogCopy, before: Checkpoint) -> Tree | None:
    return next((tree for tree in log.trees if tree.number == before.tree), None)


def _counted(log: LogCopy, opened: Opened) -> Iterator[Reason]:
    """The seam before the older tree, where it is kept, counts the entries up to there as the one after it does."""
    for stored, decision in opened:
        if decision is not None and isinstance(fact := decision.fact, Continued):
            number = log.index.get(leaf_hash(stored.data))
            if number is not None and (number not in log.seams or fact.entries != number):
                yield _finding("log.seam", f"entry {number}", f"{number} entries before it", fact.entries)


def _entries(log: LogCopy, since: Sequence[Checkpoint], at: int) -> Iterator[Reason]:
    """What the stream holds of the trees: missing, exchanged, out of order, more than there should be."""
    size, seams = log.size, log.seams
    held = [(log.index.get(leaf_hash(stored.data)), stored.sequence) for stored in log.stored]
    placed = [(place, sequence) for place, sequence in held if place not in seams]
    while placed and placed[-1][0] is None and placed[-1][1] > log.checkpoint.cursor:
        placed.pop()  # not in a tree yet
    places = [place for place, _ in placed]
    known = [place for place in places if place is not None]
    strange = len(places) - len(known)
    if wrong := [after for before, after in pairwise(known) if after <= before] or _early(log):
        yield _finding("log.order", _named(wrong), "entries in the tree's order, each once", "later ones before them")
    leading = next((n for n, place in enumerate(places) if place is not None), len(places))
    first = max(min(min(known, default=size), _promised(log, since, at)) - leading, log.first)
    missing = sorted(set(range(first, size)) - {place for place, _ in held})
    if missing and strange:
        yield _finding("log.edited", _named(missing), "the entries of the tree", f"{strange} different entries")
    elif missing and missing[0] > max(known, default=-1):
        yield _finding("log.truncated", _named(missing), "in the stream", "the stream ends before them")
    elif missing:
        yield _finding("log.dropped", _named(missing), "in the stream", "no such entries")
    elif strange:
        yield _finding("log.injected", "stream", "entries of the tree only", f"{strange} that are not in it")


def _early(log: LogCopy) -> list[int]:
    """The entries that trees begin with where they are in the stream twice, or before one of the tree before."""
    places = [log.index.get(leaf_hash(stored.data)) for stored in log.stored]
    early = []
    for seam in log.seams & set(places):
        after = places[places.index(seam) + 1 :]
        if any(place is not None and place <= seam for place in after):
            early.append(seam)
    return early


def _promised(log: LogCopy, since: Sequence[Checkpoint], at: int) -> int:
    """From which number on the stream's limits cannot have let an entry go: what came after a head that is young."""
    size, oldest = log.size, at - LOG.max_age_s
    young = [max(size - 1, 0)] if log.checkpoint.at > oldest else []
    if sum(len(stored.data) for stored in log.stored) < LOG.max_bytes // 2:
        seen = [(_tree_of(log, before), before) for before in since if before.at > oldest]
        young += [tree.first + before.size for tree, before in seen if tree is not None]
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
