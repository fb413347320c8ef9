"""Subjects: built and read back, and nothing else is taken for one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestgate.bus import layout, subjects
from attestgate.bus.subjects import STEPS, Address
from attestgate.schemas.base import Refusal
from tests.support.reasons import refusal_code

ids = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
sessions = st.binary(min_size=16, max_size=16).map(bytes.hex)
roles_steps = st.sampled_from([(role, step) for role, steps in STEPS.items() for step in steps])


@given(roles_steps, ids, ids)
def test_inbound_there_and_back(role_step: tuple[str, str], id: str, host: str) -> None:
    role, step = role_step
    name = subjects.app_name(host, id) if role == "app" else id
    assert subjects.parse_inbound(subjects.inbound(role, name, step)) == Address(role, name, step)


@pytest.mark.parametrize(("role", "name"), [("host", "h1.a1"), ("app", "a1"), ("app", "h1.a1.x"), ("gateway", "g.1")])
def test_a_name_has_as_many_tokens_as_its_role(role: str, name: str) -> None:
    for build in (subjects.inbound, subjects.outbound, subjects.event):
        with pytest.raises(ValueError, match="token"):
            build(role, name, subjects.STEPS[role][0])
    with pytest.raises(Refusal):
        subjects.parse_inbound(f"{subjects.IN}.{role}.{name}.{subjects.STEPS[role][0]}")


@given(ids, ids)
def test_the_others_there_and_back(one: str, two: str) -> None:
    assert subjects.parse_outbound(subjects.outbound("host", one, "grant")) == Address("host", one, "grant")
    assert subjects.parse_operator(subjects.operator(one, two)) == (one, two)
    assert subjects.parse_work(f"attest.v1.work.host.{one}.{two}") == ("host", one, two)


@given(sessions)
def test_a_deadline_leads_to_its_session(session: str) -> None:
    assert subjects.parse_due(subjects.due(subjects.deadline(session))) == session


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for parse in (
        subjects.parse_inbound,
        subjects.parse_outbound,
        subjects.parse_operator,
        subjects.parse_work,
        subjects.parse_due,
    ):
        with pytest.raises(Refusal) as refusal:
            parse(text)
        assert refusal_code(refusal) == "bus.subject"


@pytest.mark.parametrize(
    "subject",
    [
        "attest.v1.in.host.h1",
        "attest.v1.in.host.h1.hello.more",
        "attest.v1.in.host..hello",
        "attest.v1.in.host.*.hello",
        "attest.v1.in.host.H1.hello",
        "attest.v1.in.host.h1.no_such_step",
        "attest.v1.in.gateway.g1.hello",
        "attest.v1.in.manager.m.hello",
        "attest.v1.out.host.h1.hello",
        "attest.v1.in.host.h1.hello\n",
        " attest.v1.in.host.h1.hello",
        "attest.v1.in.host." + "h" * 65 + ".hello",
    ],
)
def test_what_is_not_inbound_is_refused(subject: str) -> None:
    with pytest.raises(Refusal):
        subjects.parse_inbound(subject)


@pytest.mark.parametrize("id", ["", "a.b", "*", ">", "a b", "H1", "h1\r\nPUB x", "-h", "é"])
def test_no_token_can_widen_a_subject(id: str) -> None:
    builders: tuple[Callable[[], str], ...] = (
        lambda: subjects.inbound("host", id, "hello"),
        lambda: subjects.outbound("host", id, "grant"),
        lambda: subjects.outbound_all("host", id),
        lambda: subjects.event("host", id, "x"),
        lambda: subjects.operator(id, "revoke"),
        lambda: subjects.work("host", id, "x"),
        lambda: subjects.deadline(id),
    )
    for build in builders:
        with pytest.raises(ValueError, match="token"):
            build()


def test_an_unknown_step_is_the_programmers_mistake() -> None:
    with pytest.raises(ValueError, match="STEPS"):
        subjects.inbound("host", "h1", "colocation_proof")


@pytest.mark.parametrize("subject", ["attest.v1.in.host.h1.hello", "attest.v1.schedules.x"])
def test_only_a_deadline_comes_due(subject: str) -> None:
    with pytest.raises(ValueError, match="not a deadline"):
        subjects.due(subject)


@pytest.mark.parametrize(
    ("pattern", "subject", "fits"),
    [
        ("a.>", "a.b", True),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.*.c", "a.b.c", True),
        (">", "a", True),
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
    ],
)
def test_patterns_match_as_the_server_does(pattern: str, subject: str, fits: bool) -> None:
    assert subjects.matches(pattern, subject) is fits


def test_every_stored_subject_has_one_stream_and_consumers_lie_within_theirs() -> None:
    samples = [
        subjects.inbound("host", "h1", "hello"),
        subjects.operator("alice", "revoke"),
        subjects.event("host", "h1", "trusted"),
        subjects.work("host", "ab" * 16, "x"),
        subjects.deadline("ab" * 16),
        subjects.due(subjects.deadline("ab" * 16)),
    ]
    for sample in samples:
        takers = [s.name for s in layout.STREAMS.values() if any(subjects.matches(p, sample) for p in s.subjects)]
        assert len(takers) == 1, sample
    for consumer in layout.CONSUMERS.values():
        assert set(consumer.filter_subjects) <= set(layout.STREAMS[consumer.stream].subjects)


def test_only_the_managers_own_stream_has_features_that_reach_across_subjects() -> None:
    assert [stream.name for stream in layout.STREAMS.values() if stream.own_features] == [layout.WORK.name]
