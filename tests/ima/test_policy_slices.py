"""A runtime policy that is read in slices: the same policy, and no slice is long."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from attestgate.manager.verification.ima import runtime_policy
from attestgate.manager.verification.ima.policy_json import members
from attestgate.manager.verification.ima.runtime_policy import DIGESTS_A_SLICE, LoadedPolicy, load, load_in_slices, read
from attestgate.schemas.base import Refusal
from tests.support.ima.lists import document, recorded

DIGEST = "ab" * 32
KNOWN: dict[str, Any] = {"meta": {"version": 1}, "digests": {"/bin/a": [DIGEST]}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.just(DIGEST),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["digests", "keyrings", "ima-buf", "excludes", "ima", "meta", "release", "more", ""])
SECTION = st.dictionaries(st.text(max_size=4), st.lists(st.just(DIGEST), min_size=1, max_size=3), max_size=4)


def refused(work: Any) -> str | None:
    """The code of the refusal, or None."""
    try:
        work()
    except Refusal as refusal:
        return refusal.reasons[0].code
    return None


def known(section: dict[str, list[str]]) -> dict[bytes, frozenset[bytes]]:
    return {path.encode(): frozenset(map(bytes.fromhex, values)) for path, values in section.items()}


@given(changes=st.dictionaries(KEYS, JSON | SECTION, max_size=3), indent=st.sampled_from([None, 0, 3]))
def test_what_the_model_takes_is_taken_and_what_it_refuses_is_refused(changes: dict[str, Any], indent: int) -> None:
    raw = json.dumps(KNOWN | changes, indent=indent).encode()
    whole = refused(lambda: read(raw))
    if whole is not None:
        assert refused(lambda: load(raw)) == whole
    elif not changes.get("digests", True):
        assert refused(lambda: load(raw)) == "policy.empty"
    else:
        policy, model = load(raw), read(raw)
        assert (policy.digests, policy.keyrings) == (known(model.digests), known(model.keyrings))
        assert policy.buffers == known(model.ima_buf)


@given(at=st.integers(0, 10_000), stop=st.integers(0, 10_000), put=st.binary(max_size=3))
@example(at=1349, stop=0, put=b"(")
@settings(max_examples=300)
def test_a_damaged_document_is_refused_where_the_model_refuses_it(at: int, stop: int, put: bytes) -> None:
    raw = json.dumps(KNOWN | {"keyrings": {".ima": [DIGEST]}, "excludes": ["/tmp/"]}, indent=1).encode()
    at %= len(raw)
    changed = raw[:at] + put + raw[max(at, stop % (len(raw) + 1)) :]
    if refused(lambda: read(changed)) is not None:
        assert refused(lambda: load(changed)) is not None
    else:  # as the same document, written anew: it may still have no digest, or a pattern that does not compile
        assert refused(lambda: load(changed)) == refused(lambda: load(read(changed).text()))


REPEATED = ['{"meta": {"version": 1}, "digests": {"/a": [], "/a": []}}', '{"digests": {}, "digests": {}}']
BROKEN = ["[]", "", "{}x", '{"a" 1}', '{"a": 1,}', "{,}", '{"a": 1 "b": 2}', "{1: 2}"]


@pytest.mark.parametrize("text", [*REPEATED, *BROKEN])
def test_what_is_no_document_without_repeated_keys(text: str) -> None:
    with pytest.raises(Refusal, match=r"file\.json"):
        load(text)


def test_a_refusal_names_the_section_and_the_path() -> None:
    with pytest.raises(Refusal, match=r"policy: keyrings\.\.ima\.1: "):
        load(json.dumps(KNOWN | {"keyrings": {".ima": [DIGEST, "xyz"]}}), source="policy")


@given(sizes=st.lists(st.integers(1, 3 * DIGESTS_A_SLICE), max_size=6))
@settings(max_examples=20)
def test_few_digests_are_checked_at_a_time(sizes: list[int]) -> None:
    """Or those of one path: they are one value of the document."""
    digests = {f"/{number}": [f"{n:064x}" for n in range(size)] for number, size in enumerate(sizes)}
    raw = json.dumps(KNOWN | {"digests": digests, "verification-keys": ""}).encode()
    counted: list[int] = []
    real = runtime_policy._known

    def counting(part: dict[str, list[str]]) -> dict[bytes, frozenset[bytes]]:
        counted.append(sum(map(len, part.values())))
        return real(part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime_policy, "_known", counting)
        code = refused(lambda: load(raw))
    assert code == (None if sizes else "policy.empty")
    assert sum(counted) == sum(sizes)
    assert all(count < DIGESTS_A_SLICE + max(sizes) for count in counted)


def test_it_pauses_after_each_of_them() -> None:
    raw = json.dumps(KNOWN | {"digests": {f"/{n}": [f"{n:064x}"] for n in range(5 * DIGESTS_A_SLICE)}}).encode()
    assert sum(1 for _ in load_in_slices(raw)) > 2 * 5


def many(count: int) -> LoadedPolicy:
    return load(json.dumps(KNOWN | {"excludes": [f"/srv/{number}/[a-z]+/" for number in range(count)]}))


def test_many_patterns_are_matched_in_groups() -> None:
    policy = many(2000)
    assert 1 < len(policy.excludes) < 10
    assert all(group.programsize <= 2 * runtime_policy.PROGRAM for group in policy.excludes)
    assert all(policy.excluded(b"/srv/%d/abc/x" % number) for number in range(2000))
    assert not policy.excluded(b"/srv/2000/abc/x") and not policy.excluded(b"x/srv/1/abc/x")


def test_few_patterns_are_one_group_and_none_is_none() -> None:
    assert (len(many(100).excludes), len(many(0).excludes)) == (1, 0)


def test_all_patterns_together_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_policy, "MAX_PROGRAM", 1000)
    many(20)
    with pytest.raises(Refusal, match=r"policy\.pattern.* at most 1000 instructions"):
        many(200)


def test_what_is_beside_the_digests_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_policy, "MAX_REST", 1000)
    load(document(recorded("clean")).text())
    with pytest.raises(Refusal, match=r"policy\.size.*all but digests"):
        many(200)


def test_members_of_sections_come_one_by_one() -> None:
    found = list(members(b' {"a": {"x": 1, "y": {"z": 2}}, "b": {"x": 3}, "c": [] } ', ("a", "c")))
    assert found == [("", "a", {}), ("a", "x", 1), ("a", "y", {"z": 2}), ("", "b", {"x": 3}), ("", "c", [])]
