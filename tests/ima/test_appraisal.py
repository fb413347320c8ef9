"""The verdict on a list: recorded lists whole, edited and growing; every kind of fault and finding."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestgate.manager.verification.ima import replay as replaying
from attestgate.manager.verification.ima.appraisal import appraise_list, inspect_list
from attestgate.manager.verification.ima.cache import MAX_KEPT, VerdictCache
from attestgate.manager.verification.ima.measurement_list import entries, replay
from attestgate.manager.verification.ima.runtime_policy import LoadedPolicy
from attestgate.manager.verification.tpm.quote import QuotedPcrs
from attestgate.schemas.base import pack, unpack
from attestgate.schemas.host_policy import Bank, GoldenPcrs, ListVerdict, Replay
from tests.support.ima.lists import (
    ANCHORED,
    ENTRIES,
    NOW,
    boot_aggregate,
    document,
    frame,
    framed,
    host,
    loaded,
    ng,
    quote,
    recorded,
)
from tests.support.reasons import codes
from tests.support.threats import rows, threat

CLEAN = recorded("clean")
POLICY = loaded(CLEAN)
UNKNOWN_IN_DRIFT = [448, 449, 450, 451, 452, 453, 455, 456, 457, 458]


def judge(
    data: bytes,
    policy: LoadedPolicy = POLICY,
    *,
    before: Replay | None = None,
    quoted: QuotedPcrs | None = None,
    golden: list[GoldenPcrs] | None = None,
    **settings: object,
) -> ListVerdict:
    """Appraise with a host policy that takes what a test does not ask about."""
    settings = {"accept_unanchored": True} | settings
    start = before or Replay.start("sha256")
    return appraise_list(
        data, policy, host(policy, **settings), before=start, quoted=quoted, golden=golden or [], at=NOW
    )


def golden_of(quoted: QuotedPcrs) -> GoldenPcrs:
    return GoldenPcrs(bank=quoted.bank, values=[quoted.values[index].hex() for index in range(10)])


def test_clean_is_accepted_anchored_where_the_quote_is_and_the_boot_is_golden() -> None:
    quoted = quote("clean")
    verdict = judge(CLEAN, quoted=quoted, golden=[golden_of(quoted)], accept_unanchored=False)
    assert verdict.accepted and verdict.admitted and verdict.reasons == []
    assert (verdict.entries, verdict.anchored_entries) == (ENTRIES["clean"], ANCHORED["clean"])
    assert (verdict.integrity, verdict.boot_state) == ("anchored", "golden")
    assert (verdict.policy, verdict.at, verdict.violations, verdict.unknown) == (POLICY.sha256, NOW, 0, [])
    assert unpack(ListVerdict, pack(verdict)) == verdict


@threat(rows.LIST_DRIFTED)
def test_drift_is_refused_for_exactly_the_right_entries() -> None:
    verdict = judge(recorded("drift"), quoted=quote("drift"))
    assert codes(verdict) == ["ima.unknown", "ima.violation"]
    assert [entry.index for entry in verdict.unknown] == UNKNOWN_IN_DRIFT
    assert verdict.unknown_entries == len(UNKNOWN_IN_DRIFT)
    assert verdict.violations == 1 and verdict.anchored_entries == ANCHORED["drift"]
    by_index = {entry.index: entry for entry in verdict.unknown}
    assert by_index[453].path == r"/usr/local/bin/odd_name\x09tab"
    assert by_index[449].digest.startswith("sha256:21b582c34e14") and by_index[449].nearest is None
    assert "entry 454" in verdict.reasons[1].field


def test_a_changed_program_is_shown_beside_the_digest_known_for_its_path() -> None:
    changed = frame(b"ima-sig", ng(b"\x09" * 32), b"/usr/bin/sh\0", b"")
    (entry,) = judge(CLEAN + changed).unknown
    assert entry.path == "/usr/bin/sh" and entry.digest == "sha256:" + "09" * 32
    assert entry.nearest == document(CLEAN).digests["/usr/bin/sh"][0]


def test_violations_are_accepted_where_the_policy_says_so_but_no_pattern_speaks_for_them() -> None:
    drift = recorded("drift")
    policy = loaded(drift, excludes=["/etc/motd$"])
    assert codes(judge(drift, policy)) == ["ima.violation"]
    accepted = judge(drift, policy, violations="accept")
    assert accepted.accepted and accepted.violations == 1


@threat(rows.LIST_EDITED)
@pytest.mark.parametrize("edit", ["removed", "doubled", "moved", "changed"])
def test_each_entry_edited_is_refused_or_in_the_tail(edit: str) -> None:
    frames, quoted = framed("clean"), quote("clean")
    for index, entry in enumerate(frames):
        if edit == "removed":
            edited = frames[:index] + frames[index + 1 :]
        elif edit == "doubled":
            edited = [*frames[: index + 1], entry, *frames[index + 1 :]]
        elif edit == "moved":
            rest = frames[:index] + frames[index + 1 :]
            to = (index + 1) % len(frames)
            edited = [*rest[:to], entry, *rest[to:]]
        else:
            edited = [*frames[:index], entry[:-6] + bytes([entry[-6] ^ 1]) + entry[-5:], *frames[index + 1 :]]
        verdict = judge(b"".join(edited), quoted=quoted)
        if index < ANCHORED["clean"] - (edit == "doubled"):
            expected = {"removed": "ima.replay", "doubled": "ima.replay", "moved": "ima.replay"}
            assert expected.get(edit, "ima.template_hash") in codes(verdict), index
        elif edit == "changed":
            assert codes(verdict) == ["ima.template_hash"], index
        elif edit == "moved" and index == len(frames) - 1:
            assert "ima.replay" in codes(verdict)
        else:
            # known entries, and the quote says nothing about the tail
            assert verdict.accepted, index


def test_a_changed_header_is_seen() -> None:
    frames = framed("clean")
    zeroed = frames[5][:4] + bytes(20) + frames[5][24:]
    assert codes(judge(b"".join([*frames[:5], zeroed, *frames[6:]]))) == ["ima.violation"]
    verdict = judge(b"".join([*frames[:5], b"\x0b" + frames[5][1:], *frames[6:]]), quoted=quote("clean"))
    assert codes(verdict) == ["ima.pcr", "ima.replay"]


@threat(rows.LIST_EDITED)
@pytest.mark.parametrize("cut", [0, 1, 100, 445])
def test_a_list_older_than_the_quote_is_refused(cut: int) -> None:
    verdict = judge(b"".join(framed("clean")[:cut]), quoted=quote("clean"))
    assert codes(verdict) == (["ima.start", "ima.replay"] if cut == 0 else ["ima.replay"])


@threat(rows.LIST_EDITED)
def test_a_list_of_another_host_is_refused() -> None:
    quoted = quote("clean")
    other = replace(quoted, banks={"sha256": {**quoted.values, 0: bytes(32)}})
    assert codes(judge(CLEAN, quoted=other)) == ["ima.boot_aggregate"]


def test_a_list_must_start_with_boot_aggregate_even_when_its_entries_are_remembered() -> None:
    assert judge(CLEAN).accepted
    rest, start = framed("clean")[1:], framed("clean")[0]
    assert codes(judge(b"".join(rest))) == ["ima.start"]
    assert codes(judge(b"".join([*rest, start]))) == ["ima.start"]


def test_boot_aggregate_without_a_quote_is_judged_like_any_entry() -> None:
    known = frame(b"ima-ng", ng(), b"/bin/a\0")
    policy = loaded(boot_aggregate() + known)
    other = frame(b"ima-ng", ng(b"\x02" * 32), b"boot_aggregate\0")
    assert judge(boot_aggregate() + known, policy).accepted
    assert codes(judge(other + known, policy)) == ["ima.unknown"]


def test_boot_aggregate_in_another_bank_than_the_quote_is_judged_by_the_policy() -> None:
    sha1 = frame(b"ima-ng", ng(b"\x02" * 20, b"sha1"), b"boot_aggregate\0")
    value = hashlib.sha256(bytes(32) + hashlib.sha256(sha1[38:]).digest()).digest()
    quoted = replace(quote("clean"), banks={"sha256": {**quote("clean").values, 10: value}})
    assert judge(sha1, loaded(sha1), quoted=quoted).anchored_entries == 1
    assert codes(judge(sha1, loaded(boot_aggregate()), quoted=quoted)) == ["ima.unknown"]


@threat(rows.LIST_UNANCHORED)
def test_unanchored_is_refused_unless_the_host_policy_says_so() -> None:
    assert codes(judge(CLEAN, accept_unanchored=False)) == ["ima.unanchored"]
    verdict = judge(CLEAN)
    assert verdict.accepted and verdict.integrity == "unanchored" and verdict.anchored_entries == 0


def test_a_fault_takes_the_anchor_away() -> None:
    quoted = quote("clean")
    verdict = judge(CLEAN + b"\x0a", quoted=quoted, golden=[golden_of(quoted)])
    assert (verdict.anchored_entries, verdict.boot_state) == (ANCHORED["clean"], "golden")
    assert codes(verdict) == ["ima.truncated"] and verdict.integrity == "unanchored"


def test_a_quote_without_golden_values_does_not_anchor() -> None:
    verdict = judge(CLEAN, quoted=quote("clean"), accept_unanchored=False)
    assert codes(verdict) == ["tpm.boot_not_judged"]
    assert (verdict.boot_state, verdict.anchored_entries) == ("not_judged", ANCHORED["clean"])
    taken = judge(CLEAN, quoted=quote("clean"), accept_unanchored=False, accept_unjudged_boot=True)
    assert taken.accepted and taken.integrity == "unanchored"


@threat(rows.BOOT_OTHER)
@pytest.mark.parametrize("index", range(10))
def test_each_golden_pcr_counts_and_accepting_unanchored_does_not_help(index: int) -> None:
    quoted = quote("clean")
    values = golden_of(quoted).values
    other = GoldenPcrs(bank="sha256", values=[*values[:index], "00" * 31 + "ff", *values[index + 1 :]])
    verdict = judge(CLEAN, quoted=quoted, golden=[other], accept_unjudged_boot=True)
    assert codes(verdict) == ["tpm.boot_state"] and verdict.boot_state == "mismatch"
    either = judge(CLEAN, quoted=quoted, golden=[other, golden_of(quoted)], accept_unanchored=False)
    assert either.accepted and either.integrity == "anchored"


def test_golden_values_of_another_bank_do_not_fit() -> None:
    golden = GoldenPcrs(bank="sha1", values=["00" * 20] * 10)
    assert judge(CLEAN, quoted=quote("clean"), golden=[golden]).boot_state == "mismatch"


def test_the_quote_must_be_over_the_bank_and_pcr_asked_for() -> None:
    quoted = quote("clean")
    assert "tpm.bank" in codes(judge(CLEAN, quoted=quoted, bank="sha384"))
    without = replace(quoted, banks={"sha256": {index: quoted.values[index] for index in range(10)}})
    assert codes(judge(CLEAN, quoted=without)) == ["tpm.selection", "ima.replay"]
    assert "tpm.selection" in codes(judge(CLEAN, quoted=quoted, before=Replay.start("sha1")))


def test_a_quote_over_several_banks_has_to_be_met_in_each_of_them() -> None:
    quoted, anchored = quote("clean"), b"".join(framed("clean")[: ANCHORED["clean"]])
    sha1 = {index: bytes(20) for index in range(10)} | {10: bytes.fromhex(replayed_to(anchored, "sha1"))}
    both = replace(quoted, banks={"sha1": sha1, "sha256": quoted.values})
    verdict = judge(CLEAN, quoted=both, before=Replay.start())
    assert verdict.accepted and verdict.anchored_entries == ANCHORED["clean"]
    early = {**sha1, 10: bytes.fromhex(replayed_to(framed("clean")[0], "sha1"))}
    verdict = judge(CLEAN, quoted=replace(both, banks={**both.banks, "sha1": early}), before=Replay.start())
    assert codes(verdict) == ["ima.replay"] and verdict.anchored_entries == 0
    assert early[10].hex() in verdict.reasons[0].expected and quoted.values[10].hex() in verdict.reasons[0].expected
    assert "tpm.selection" in codes(judge(CLEAN, quoted=both)), "a bank that is not replayed vouches for nothing"
    boot_only = replace(both, banks={"sha1": {0: bytes(20)}, "sha256": quoted.values})
    assert judge(CLEAN, quoted=boot_only, before=Replay.start()).accepted


def replayed_to(data: bytes, bank: Bank) -> str:
    return replay(Replay.start(bank), entries(data)).pcr10[bank]


def test_a_recheck_meets_every_bank_where_it_goes_on() -> None:
    frames, quoted = framed("clean"), quote("clean")
    anchored = b"".join(frames[: ANCHORED["clean"]])
    first = judge(b"".join(frames[:100]), before=Replay.start())
    sha1 = {10: bytes.fromhex(replayed_to(anchored, "sha1"))}
    both = replace(quoted, banks={"sha1": sha1, "sha256": quoted.values})
    assert judge(b"".join(frames[100:]), before=first.replay, quoted=both).anchored_entries == ANCHORED["clean"]
    whole = judge(anchored, before=Replay.start(), quoted=both)
    assert judge(b"", before=whole.replay, quoted=both).anchored_entries == ANCHORED["clean"]


@threat(rows.BOOT_OTHER)
def test_golden_values_are_not_met_by_a_quote_that_leaves_them_out() -> None:
    quoted = quote("clean")
    partial = replace(quoted, banks={"sha256": {index: quoted.values[index] for index in (0, 7, 10)}})
    verdict = judge(CLEAN, quoted=partial, golden=[golden_of(quoted)], accept_unjudged_boot=True)
    assert verdict.boot_state == "not_judged" and codes(verdict) == ["tpm.boot_not_judged"]
    assert verdict.integrity == "unanchored" and verdict.anchored_entries == ANCHORED["clean"]
    assert judge(CLEAN, quoted=partial).accepted, "boot_aggregate is then judged by the policy, like any entry"


def test_a_recheck_sends_only_what_is_new() -> None:
    drift = recorded("drift")
    first = judge(CLEAN, quoted=quote("clean"))
    second = judge(drift[len(CLEAN) :], loaded(drift), before=first.replay, quoted=quote("drift"), violations="accept")
    assert second.accepted
    assert (second.entries, second.anchored_entries) == (ENTRIES["drift"], ANCHORED["drift"])
    refused = judge(drift[len(CLEAN) :], before=first.replay, quoted=quote("drift"))
    assert [entry.index for entry in refused.unknown] == UNKNOWN_IN_DRIFT


def test_a_recheck_with_nothing_new_is_anchored_by_a_quote_of_the_same_value() -> None:
    frames, quoted = framed("clean"), quote("clean")
    first = judge(b"".join(frames[: ANCHORED["clean"]]), quoted=quoted)
    second = judge(b"", before=first.replay, quoted=quoted)
    assert second.accepted and second.anchored_entries == ANCHORED["clean"]
    assert second.replay == first.replay


@threat(rows.LIST_EDITED)
def test_a_swapped_prefix_is_found_at_the_recheck() -> None:
    frames, drift = framed("clean"), recorded("drift")
    swapped = judge(b"".join([*frames[:2], frames[3], frames[2], *frames[4:]]))
    assert swapped.accepted, "without a quote nothing tells the order"
    found = judge(drift[len(CLEAN) :], loaded(drift), before=swapped.replay, quoted=quote("drift"), violations="accept")
    assert codes(found) == ["ima.replay"]


def test_observe_only_admits_findings_and_never_faults() -> None:
    drift, quoted = recorded("drift"), quote("drift")
    verdict = judge(drift, quoted=quoted, mode="observe-only")
    assert (verdict.accepted, verdict.admitted, verdict.mode) == (False, True, "observe-only")
    assert not judge(drift[:-1], quoted=quoted, mode="observe-only").admitted
    assert not judge(drift, quoted=quote("clean"), mode="observe-only", bank="sha1").admitted
    assert not judge(drift, quoted=quoted).admitted


def test_a_malformed_end_refuses_and_counts_what_was_read() -> None:
    verdict = judge(CLEAN + b"\x0a\x00")
    assert codes(verdict) == ["ima.truncated"]
    assert verdict.entries == ENTRIES["clean"] and "entry 448" in verdict.reasons[0].field


def test_a_host_policy_for_another_runtime_policy_is_refused() -> None:
    other = loaded(recorded("drift"))
    verdict = appraise_list(CLEAN, other, host(POLICY), before=Replay.start(), quoted=None, at=NOW)
    assert "policy.hash" in codes(verdict)


def test_excluded_paths_are_accepted_and_counted_each_time() -> None:
    policy = loaded(CLEAN, excludes=["/usr/local/bin/", "/root/out/"])
    extra = frame(b"ima-ng", ng(), b"/usr/local/bin/any\0")
    for _ in range(2):
        verdict = judge(CLEAN + extra, policy)
        assert verdict.accepted and verdict.excluded == 1


@threat(rows.HOST_ENDLESS)
def test_unknown_entries_are_named_while_there_is_room_and_all_counted() -> None:
    many = b"".join(frame(b"ima-ng", ng(), b"/bin/%d\0" % number) for number in range(3000))
    verdict = judge(boot_aggregate() + many, loaded(boot_aggregate()))
    assert 900 < len(verdict.unknown) < 1100
    assert verdict.unknown_entries == 3000 and "3000" in verdict.reasons[0].found


@threat(rows.HOST_ENDLESS)
def test_a_path_bomb_is_named_whole_and_a_verdict_stays_small() -> None:
    bomb = b"".join(frame(b"ima-ng", ng(), b"\xff" * 4000 + b"%05d\0" % number) for number in range(2000))
    verdict = judge(boot_aggregate() + bomb, loaded(boot_aggregate()))
    assert verdict.unknown_entries == 2000 and verdict.unknown[0].path == r"\xff" * 4000 + "00000"
    assert len(pack(verdict)) < 2**19


def test_remembered_entries_give_the_same_verdict_and_unknown_ones_are_judged_again() -> None:
    policy, drift = loaded(CLEAN), recorded("drift")
    first, second = judge(drift, policy), judge(drift, policy)
    assert first == second and first.unknown_entries == len(UNKNOWN_IN_DRIFT)
    assert len(policy.memory("sha256")) == ENTRIES["clean"] - 1, "all of clean but boot_aggregate"
    assert judge(drift, policy, before=Replay.start()).pcr10["sha256"] == first.pcr10["sha256"]


def test_memory_is_bounded_and_the_oldest_goes_first() -> None:
    memory = VerdictCache(limit=2)
    for name in (b"a", b"b", b"c"):
        memory.known[name] = b"x"
        memory.trim()
    assert (len(memory), memory.known.get(b"a"), memory.known.get(b"c")) == (2, None, b"x")
    memory.excluded.update({b"%d" % number: b"x" for number in range(100)})
    memory.trim()
    assert list(memory.known) == [b"b", b"c"] and list(memory.excluded) == [b"98", b"99"]


def test_a_list_longer_than_the_memory_is_not_held_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaying, "TRIM_EVERY", 40)
    policy = loaded(boot_aggregate(), excludes=["/tmp/"])
    kept = policy._memories["sha256"] = VerdictCache(limit=50)
    most: list[int] = []

    class Watched(dict[bytes, bytes]):
        def __setitem__(self, key: bytes, value: bytes) -> None:
            super().__setitem__(key, value)
            most.append(len(self))

    kept.excluded = Watched()
    many = b"".join(frame(b"ima-ng", ng(), b"/tmp/%d\0" % number) for number in range(500))
    assert judge(boot_aggregate() + many, policy).excluded == 500
    assert 50 < max(most) <= 50 + 40 and len(kept) <= 50


def test_long_entries_are_judged_each_time() -> None:
    long = frame(b"ima-sig", ng(), b"/bin/a\0", bytes(MAX_KEPT))
    policy = loaded(boot_aggregate() + long)
    assert judge(boot_aggregate() + long, policy).accepted
    assert len(policy.memory("sha256")) == 0


def test_lists_judged_in_threads_give_the_same_verdicts() -> None:
    policy = loaded(CLEAN)
    policy._memories["sha256"] = VerdictCache(limit=20)
    with ThreadPoolExecutor(4) as pool:
        verdicts = list(pool.map(lambda _: judge(CLEAN, policy), range(16)))
    assert all(verdict == verdicts[0] for verdict in verdicts) and verdicts[0].accepted


def test_a_full_memory_changes_no_verdict() -> None:
    small = loaded(CLEAN)
    small._memories["sha256"] = VerdictCache(limit=10)
    assert judge(CLEAN, small) == judge(CLEAN, small)
    assert judge(CLEAN, small).accepted and 0 < len(small.memory("sha256")) <= 10


def test_inspect_names_no_policy_and_wants_a_quote() -> None:
    seen = inspect_list(recorded("drift"), before=Replay.start(), quoted=quote("drift"), at=NOW)
    assert seen.accepted and seen.policy is None and seen.violations == 1 and seen.boot_state == "not_judged"
    assert codes(inspect_list(CLEAN, before=Replay.start(), quoted=None, at=NOW)) == ["ima.unanchored"]
    assert codes(inspect_list(CLEAN, before=Replay.start(), quoted=quote("drift"), at=NOW)) == ["ima.replay"]


@given(st.binary(max_size=300))
def test_random_bytes_give_a_refused_verdict_and_never_an_exception(data: bytes) -> None:
    verdict = judge(data)
    assert not verdict.accepted and not verdict.admitted


@threat(rows.LIST_EDITED)
@given(st.integers(0, len(CLEAN) - 1), st.integers(1, 255))
def test_any_byte_of_a_recorded_list_changed_is_never_accepted_in_the_anchored_part(place: int, flip: int) -> None:
    data = bytearray(CLEAN)
    data[place] ^= flip
    verdict = judge(bytes(data), quoted=quote("clean"))
    frames = list(entries(CLEAN))
    assert len(frames) == ENTRIES["clean"]
    # what no hash covers and no judgement reads may change: the name of a template with the same fields
    assert not verdict.accepted or verdict.replay == judge(CLEAN, quoted=quote("clean")).replay
