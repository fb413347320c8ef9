"""A list that is judged in slices: the verdict is that of the whole list, and no slice is long."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestgate.manager.verification.ima import replay as replaying
from attestgate.manager.verification.ima.appraisal import ListAppraisal, appraise_list
from attestgate.manager.verification.ima.cache import VerdictCache
from attestgate.manager.verification.ima.measurement_list import ListEntry
from attestgate.manager.verification.ima.replay import MAX_COST, ReplayPass
from attestgate.manager.verification.ima.runtime_policy import Judgement, Known
from attestgate.schemas.host_policy import Bank, ListVerdict, Replay
from tests.support.ima.lists import NOW, boot_aggregate, frame, host, loaded, ng, old_frame, quote, recorded

CLEAN, DRIFT = recorded("clean"), recorded("drift")
POLICY = loaded(CLEAN)
SHORT = b"".join(
    [boot_aggregate(), frame(b"ima-sig", ng(), b"/bin/a\0", b"\3\2\4"), old_frame(bytes(range(20)), b"/bin/b")]
)


def in_pieces(data: bytes, cuts: list[int], *, quoted: str | None = None, bank: Bank | None = "sha256") -> ListVerdict:
    """The verdict on a list that comes cut at these places."""
    before = Replay.start() if bank is None else Replay.start(bank)
    by = quote(quoted) if quoted else None
    appraisal = ListAppraisal(POLICY, host(POLICY), before=before, quoted=by, at=NOW)
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, stop in pairwise(places):
        list(appraisal.take(data[start:stop]))
    list(appraisal.take(b"", last=True))
    return appraisal.verdict()


def whole(data: bytes, *, quoted: str | None = None, bank: Bank | None = "sha256") -> ListVerdict:
    before = Replay.start() if bank is None else Replay.start(bank)
    by = quote(quoted) if quoted else None
    return appraise_list(data, POLICY, host(POLICY), before=before, quoted=by, at=NOW)


@pytest.mark.parametrize("bank", ["sha256", "sha1", None])
@given(cuts=st.lists(st.integers(0, 2**20), max_size=30))
def test_pieces_give_the_verdict_of_the_whole(bank: Bank | None, cuts: list[int]) -> None:
    assert in_pieces(DRIFT, cuts, quoted="drift", bank=bank) == whole(DRIFT, quoted="drift", bank=bank)


@given(data=st.data(), cuts=st.lists(st.integers(0, 2**20), max_size=5))
def test_whatever_is_wrong_with_it(data: st.DataObject, cuts: list[int]) -> None:
    at, stop = data.draw(st.integers(0, len(SHORT) - 1)), data.draw(st.integers(0, len(SHORT)))
    changed = SHORT[:at] + bytes([data.draw(st.integers(0, 255))]) + SHORT[at + 1 :]
    assert in_pieces(changed[:stop], cuts) == whole(changed[:stop])


@given(size=st.integers(1, 100))
def test_pieces_shorter_than_an_entry(size: int) -> None:
    assert in_pieces(SHORT, list(range(0, len(SHORT), size))) == whole(SHORT)


def test_after_a_malformed_entry_nothing_is_judged() -> None:
    broken = boot_aggregate() + b"\xff" * 40
    assert in_pieces(broken + DRIFT, [len(broken)]) == whole(broken + DRIFT)
    assert in_pieces(broken + DRIFT, [len(broken)]).entries == 1


@dataclass
class Counted:
    """Rules that note what they are asked for."""

    judgement: Judgement
    digests: Known = field(default_factory=dict)
    asked: int = 0

    def memory(self, bank: Bank) -> VerdictCache:
        return VerdictCache()

    def judge(self, entry: ListEntry) -> Judgement:
        self.asked += 1
        return self.judgement

    def nearest(self, path: bytes, size: int) -> str | None:
        return None


def between_pauses(rules: Counted, data: bytes) -> list[int]:
    """How many entries the rules judged before each pause in one piece of a list, and after the last."""
    reading, found = ReplayPass(rules, Replay.start("sha256"), None), []
    for _ in reading.take(data, last=True):
        found.append(rules.asked)
        rules.asked = 0
    return [*found, rules.asked]


PLAIN = [frame(b"ima-ng", ng(), b"/tmp/%d\0" % number) for number in range(1000)]
SIGNED = [frame(b"ima-sig", ng(), b"/tmp/%d\0" % number, b"\3\2\4") for number in range(1000)]
BUFFERS = [frame(b"ima-buf", ng(), b"name%d\0" % number, b"content") for number in range(1000)]
COSTLY: list[tuple[str, list[bytes], Judgement, int]] = [
    ("excluded", PLAIN, "excluded", MAX_COST),
    ("signed", SIGNED, "known", MAX_COST // replaying._SIGNATURE),
    ("signed in vain", SIGNED, "unknown", MAX_COST // replaying._SIGNATURE),
    ("buffers", BUFFERS, "known", MAX_COST // replaying._BUFFER),
    ("named in the verdict", PLAIN[:100], "unknown", MAX_COST // replaying._NAMED),
]


@pytest.mark.parametrize(("entries", "judgement", "most"), [row[1:] for row in COSTLY], ids=[row[0] for row in COSTLY])
def test_what_is_costly_to_judge_is_judged_in_slices(entries: list[bytes], judgement: Judgement, most: int) -> None:
    rules = Counted(judgement)
    judged = between_pauses(rules, b"".join(entries))
    assert sum(judged) == len(entries)
    assert max(judged) <= most


def test_entries_known_by_digest_make_no_pauses() -> None:
    """They are cheap, and a piece is short."""
    rules = Counted("known", {b"/tmp/%d" % number: frozenset([bytes(range(32))]) for number in range(1000)})
    assert between_pauses(rules, b"".join([boot_aggregate(), *PLAIN])) == [1]
